"""Suggestions and next steps in error messages."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import write_tiny_model

import linnaeus
from linnaeus.errors import JobError, UserError, did_you_mean_run, exhausted
from linnaeus.files import explained, read_object
from linnaeus.inference.resume import read_existing
from linnaeus.modelfile.onnx import read_onnx
from linnaeus.modelfile.safetensors import model_path, read_header
from linnaeus.models.backbones.hub import read_folder
from linnaeus.models.weights.files import read_weights
from linnaeus.recipe import load_recipe
from linnaeus.runs.compared_run import read_compared_predictions
from linnaeus.runs.parsing import read_csv, read_json
from linnaeus.runs.reader import read_run
from linnaeus.sweeps.run import record_description
from linnaeus.training.derived.solved_run import SolvedRun


def unopenable(monkeypatch: pytest.MonkeyPatch, path: Path, number: int) -> None:
    """Let Python open any file but `path`, for which the system reports the error `number`. Root may open any file."""
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == path:
            raise OSError(number, os.strerror(number), str(path))
        return opened(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "w.safetensors", "w.pth", "metrics.json", "recipe.toml", "split.csv"]
)
def test_a_file_that_may_not_be_read_is_not_called_missing_or_damaged(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = write_tiny_model(tmp_path / "model.safetensors").rename(tmp_path / name)
    read: dict[str, Callable[[Path], object]]
    read = {
        "model.safetensors": linnaeus.load,
        "metrics.json": read_json,
        "split.csv": read_csv,
        "recipe.toml": lambda p: load_recipe(str(p)),
    }
    for number, step in ((errno.EACCES, "check its permissions"), (errno.EMFILE, "allow more open files")):
        with monkeypatch.context() as now:
            unopenable(now, path, number)
            with pytest.raises(UserError, match=f"{name}.*: cannot be read .*; {step}"):
                read.get(name, read_weights)(path)


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


def test_a_path_that_is_too_long_is_to_be_shorter():
    error = OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), "x" * 300)
    assert str(explained(error)).endswith("(File name too long); choose a shorter name")


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


@pytest.mark.parametrize(
    ("error", "lack"),
    [
        (ImportError("libc10.so: failed to map segment from shared object"), "memory"),
        (MemoryError(), "memory"),
        (RuntimeError("can't start new thread"), "memory or threads"),
        (RuntimeError("could not create a primitive"), "memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "memory"),
    ],
)
def test_a_process_without_memory_or_threads_says_so(
    error: Exception, lack: str, say: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr("linnaeus.check.command.run", fail)
    said = say("check", tmp_path)
    assert (said.status, said.err) == (1, f"error: out of {lack}; close other programs, or allow this one more\n")
    assert exhausted(RuntimeError("a mistake of ours")) == ""
    assert exhausted(ImportError("No module named 'nothing'")) == ""


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("metrics.json", read_json),
        ("config.json", lambda path: read_folder(path.parent)),
        ("model.safetensors.index.json", read_weights),
        ("answers.jsonl", lambda path: read_existing(path, "jsonl", 1)),
        ("sweep.json", lambda path: record_description(path.parent, {}, "images")),
    ],
)
def test_json_that_is_nested_too_deeply_is_one_line(name: str, read: Callable[[Path], object], tmp_path: Path):
    (tmp_path / name).write_text('{"path":' * 100_000 + "1" + "}" * 100_000 + "\n")
    with pytest.raises(UserError, match=f"{name}:") as caught:
        read(tmp_path / name)
    assert len(str(caught.value).splitlines()) == 1
    assert read_object(tmp_path / name) == {}


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
