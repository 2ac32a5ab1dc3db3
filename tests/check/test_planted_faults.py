"""Faults of every kind planted among real photographs: a single `linnaeus check` reports all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import COPIES, bomb

from linnaeus.models.weights.store import import_file

NAMES = {"train": unicodedata.normalize("NFC", "pensée"), "valid": unicodedata.normalize("NFD", "pensée")}


@dataclass
class Planted:
    """The faults, by the names of the files."""

    corrupt: set[str] = field(default_factory=set)
    leaks: set[tuple[str, str]] = field(default_factory=set)
    flipped: set[str] = field(default_factory=set)


def plant(source: Path, folder: Path, seed: int) -> Planted:
    """A copy of flowers16 in `folder`, by symbolic links, with 5 corrupt files, 10 leaks, 5 % flipped labels, and one
    class in two Unicode forms."""
    generator = np.random.default_rng(seed)
    files: list[str] = []
    for path in sorted(source.glob("*/*/*.jpg")):
        split, name = path.parts[-3:-1]
        where = folder / split / (NAMES[split] if name == "97" else name)
        where.mkdir(parents=True, exist_ok=True)
        (where / path.name).symlink_to(path)
        files.append(str((where / path.name).relative_to(folder)))
    (folder / "cat_to_name.json").symlink_to(source / "cat_to_name.json")
    planted = Planted()
    order = [files[i] for i in generator.permutation(len(files))]
    for k, name in enumerate(order[:5]):
        path = folder / name
        whole = path.read_bytes()
        path.unlink()
        if k == 0:
            path = path.with_suffix(".png")
            bomb(path)
        else:
            path.write_bytes((b"", b"not an image", whole[:5000], whole[: len(whole) // 2])[k - 1])
        planted.corrupt.add(str(path.relative_to(folder)))
    rest = order[5:]
    train = [name for name in rest if name.startswith("train")][:10]
    for k, name in enumerate(train):
        copied = Path("valid") / Path(name).parent.name / f"leak {k}.jpg"
        if copied.parent.name == NAMES["train"]:
            copied = Path("valid") / NAMES["valid"] / copied.name
        with Image.open(folder / name) as image:
            list(COPIES.values())[k % len(COPIES)](image.convert("RGB")).save(folder / copied, quality=90)
        planted.leaks.add((name, str(copied)))
    for name in [name for name in rest if name not in train][: round(0.05 * len(files))]:
        split, old, file = Path(name).parts
        others = sorted(path.name for path in (folder / split).iterdir() if path.name != old)
        new = folder / split / others[generator.integers(len(others))] / file
        (folder / name).rename(new)
        planted.flipped.add(str(new.relative_to(folder)))
    return planted


@pytest.mark.long
def test_one_check_reports_every_planted_fault(shared_data: Path, tmp_path: Path):
    weights = shared_data / "weights" / "resnet50-v1-imagenet.safetensors"
    import_file("resnet50-v1-imagenet", weights)
    planted = plant(shared_data / "flowers16", tmp_path / "photos", seed=1)
    assert (len(planted.corrupt), len(planted.leaks), len(planted.flipped)) == (5, 10, 66)
    command = [sys.executable, "-m", "linnaeus", "check", "photos", "--json", "found.json", "--gallery", "found.html"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["findings"]

    def paths(*kinds: str) -> list[tuple[str, ...]]:
        return [tuple(finding["paths"]) for finding in found if finding["kind"] in kinds]

    assert {name for (name,) in paths("truncated", "empty", "unreadable", "too-large")} == planted.corrupt
    leaks = paths("leak")
    for pair in planted.leaks:
        assert any(set(pair) <= set(group) for group in leaks), pair
    assert len(leaks) <= len(planted.leaks) + 1  # the photographs contain one already
    suspects = [name for (name,) in paths("suspicious-label")]
    assert planted.flipped <= set(suspects)
    assert np.mean([name in suspects[: round(0.08 * 1340)] for name in planted.flipped]) >= 0.8
    (names,) = [finding for finding in found if finding["kind"] == "confusable-names"]
    assert names["classes"] == [NAMES["train"]]
    assert "(NFC) in train" in names["detail"]
    assert "(NFD) in valid" in names["detail"]
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    shown = [*planted.corrupt, *planted.flipped, *(name for pair in planted.leaks for name in pair)]
    assert [name for name in shown if name.replace("'", "&#39;") not in page] == []
    assert len(page) < 5e6
    for kind in ("leaks between splits", "suspicious labels", "confusable class names", "empty files", "too large"):
        assert kind in done.stdout
