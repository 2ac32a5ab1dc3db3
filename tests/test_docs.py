"""Every command and every line of Python in the README runs, in order, in a folder like its reader's."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NOT_RUN = ("make ",)  # they make an environment; the set-up itself is tried on a clean checkout


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(README.read_text(encoding="utf-8")) if kind == language]


def commands() -> list[str]:
    """The shell commands, without their comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(NOT_RUN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: photos/rose and photos/tulip, red and yellow on green."""
    folder = tmp_path_factory.mktemp("reader")
    generator = np.random.default_rng(0)
    for name, color in (("rose", (200, 30, 60)), ("tulip", (230, 200, 40))):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(12):
            picture = generator.integers(0, 80, (160, 200, 3)) + np.array([0, 60, 0])
            top, left = generator.integers(20, 80, 2)
            picture[top : top + 60, left : left + 60] = np.array(color) + generator.integers(-20, 20, (60, 60, 3))
            Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / "photos" / name / f"{i}.jpg")
    return folder


def run(folder: Path, command: list[str], cache: Path) -> None:
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LINNAEUS_CACHE": str(cache),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def test_there_are_commands_to_run():
    assert len(commands()) >= 12
    assert len(blocks("python")) >= 1


@pytest.mark.long
def test_readme_runs(folder: Path, tmp_path: Path):
    for command in commands():
        run(folder, ["bash", "-c", command], tmp_path / "cache")
    for block in blocks("python"):
        run(folder, [sys.executable, "-c", block], tmp_path / "cache")
    assert (folder / "grid.png").stat().st_size > 1000
    assert len((folder / "predictions.csv").read_text().splitlines()) == 25
