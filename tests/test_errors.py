"""Suggestions in error messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

import linnaeus
from linnaeus.errors import JobError, UserError, did_you_mean_run
from linnaeus.modelfile.onnx import read_onnx
from linnaeus.modelfile.safetensors import model_path, read_header
from linnaeus.runs.compared_run import read_compared_predictions
from linnaeus.runs.reader import read_run
from linnaeus.training.derived.solved_run import SolvedRun


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/tulips, the newest run runs/photos-2, and runs/killed, which has no model."""
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("tulips", "photos-2", "killed")):
        folder = Path("runs", name)
        folder.mkdir(parents=True)
        for file in ("metrics.json", "model.safetensors")[: 1 if name == "killed" else 2]:
            (folder / file).touch()
            os.utime(folder / file, (i, i))


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("path", "run"),
    [
        ("gone", "runs/photos-2"),
        ("runs/gone", "runs/photos-2"),
        ("runs", "runs/photos-2"),
        ("runs/killed", "runs/photos-2"),
        ("runs/tulip", "runs/tulips"),
        ("tulips", "runs/tulips"),
    ],
)
def test_a_run_with_a_similar_name_or_the_newest_is_suggested(path: str, run: str):
    assert did_you_mean_run(Path(path)) == f" (did you mean {run}?)"


def test_no_run_is_suggested_where_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert did_you_mean_run(Path("gone")) == ""


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    "read",
    [
        read_header,
        read_onnx,
        read_run,
        read_compared_predictions,
        lambda path: SolvedRun.read(path, "its classes cannot be changed"),
    ],
    ids=["model", "onnx", "run", "compare", "classes"],
)
def test_every_reader_of_runs_suggests_one(read: Callable[[Path], object]):
    with pytest.raises(UserError, match=r"gone: no such .*did you mean runs/photos-2\?"):
        read(Path("gone"))


@pytest.mark.usefixtures("runs")
def test_a_folder_without_a_model():
    with pytest.raises(UserError, match=r"runs: holds no model.safetensors \(did you mean runs/photos-2\?\)"):
        model_path("runs")
    with pytest.raises(UserError, match=r"runs/tulips: holds no split.csv; give"):
        SolvedRun.read(Path("runs/tulips"), "its classes cannot be changed")


@pytest.mark.parametrize("name", ["a\0b", "\udcff", "x" * 300, "y/" * 3000])
def test_a_name_that_no_file_can_have_is_one_line(name: str, tmp_path: Path):
    """A NUL, bytes that are not UTF-8, under which safetensors opens nothing, and names that are too long."""
    for attempt in (
        lambda: linnaeus.load(tmp_path / name),
        lambda: linnaeus.load(name),
        lambda: linnaeus.train("digits", recipe="digits", out=tmp_path / name),
        lambda: linnaeus.train("digits", recipe="photos", weights=name, out=tmp_path / "run"),
    ):
        with pytest.raises((UserError, JobError)) as error:
            attempt()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []
