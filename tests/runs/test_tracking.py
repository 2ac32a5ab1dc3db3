"""Experiment trackers: what they get, and that training never fails because of one."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

import pytest

from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.metrics.classification import Figures
from linnaeus.runs import trackers
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.history import Row
from linnaeus.runs.trackers import TrackedRun, parameters
from linnaeus.runs.tracking import check_trackers, open_tracking

RECIPE = {"name": "small", "seed": None, "phase": [{"lr": 1e-3, "train": ["head"]}, {"lr": 1e-4, "train": []}]}
VALID = Figures(n=4, correct=3, accuracy=0.75, accuracy_ci95=(0.3, 0.95), top5=None, balanced_accuracy=0.7, loss=0.5)


def row(epoch: int = 1, train_accuracy: float | None = 0.5) -> Row:
    return Row(1, epoch, 1e-3, 1.5, train_accuracy, 2.5, 0.25, 1.5)


class Recording:
    """A tracker that records its calls."""

    opened: ClassVar[list[Recording]] = []

    def __init__(self, run: TrackedRun):
        self.run, self.identifier = run, run.identifier or "run-1"
        self.values: list[tuple[int, dict[str, float]]] = []
        self.status = ""
        Recording.opened.append(self)

    def add(self, values: Mapping[str, float], step: int) -> None:
        self.values.append((step, dict(values)))

    def close(self, status: str) -> None:
        self.status = status


class Unreachable(Recording):
    def add(self, values: Mapping[str, float], step: int) -> None:
        raise ConnectionError("Max retries exceeded\nwith url: /api")


class Exiting(Recording):
    def add(self, values: Mapping[str, float], step: int) -> None:
        raise SystemExit("not logged in")


class Silent(Recording):
    """Waits forever for its server."""

    def add(self, values: Mapping[str, float], step: int) -> None:
        threading.Event().wait()


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> list[Recording]:
    monkeypatch.setattr(Recording, "opened", [])
    monkeypatch.setitem(trackers.OPENERS, "mlflow", Recording)
    monkeypatch.setitem(trackers.OPENERS, "trackio", Unreachable)
    return Recording.opened


def test_a_tracker_gets_recipe_epochs_and_result(tmp_path: Path, recording: list[Recording]):
    tracking = open_tracking(["mlflow"], RunFolder(tmp_path), RECIPE, Console(silent=True))
    with tracking:
        tracking.add_epoch(row(1), 1)
        tracking.add_epoch(row(2, None), 2)
        tracking.finish({"valid": VALID}, interrupted=False)
    [tracker] = recording
    assert tracker.run.parameters["phase.2.lr"] == 1e-4
    values = {"lr": 1e-3, "train/loss": 1.5, "train/accuracy": 0.5, "valid/loss": 2.5, "valid/accuracy": 0.25}
    assert tracker.values[0] == (1, values)
    assert tracker.values[1] == (2, {name: v for name, v in values.items() if name != "train/accuracy"})
    assert tracker.values[2][0] == 2
    assert tracker.values[2][1]["final/valid/accuracy"] == 0.75
    assert tracker.status == "FINISHED"


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt, "KILLED"), (ValueError, "FAILED")])
def test_an_error_ends_the_run_in_the_tracker(
    tmp_path: Path, recording: list[Recording], error: type[BaseException], status: str
):
    with pytest.raises(error), open_tracking(["mlflow"], RunFolder(tmp_path), RECIPE, Console(silent=True)):
        raise error
    assert recording[0].status == status


def test_a_tracker_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, recording: list[Recording], capsys: pytest.CaptureFixture[str]
):
    tracking = open_tracking(["trackio", "mlflow"], RunFolder(tmp_path), RECIPE, Console())
    with tracking:
        tracking.add_epoch(row(1), 1)
        tracking.add_epoch(row(2), 2)
        tracking.finish({"valid": VALID}, interrupted=True)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "trackio" in line]
    assert warnings == ["warning: --track trackio: Max retries exceeded; the run continues without it"]
    assert [step for step, _ in recording[1].values] == [1, 2, 2]
    assert recording[1].status == "KILLED"


@pytest.mark.parametrize(("kind", "reason"), [(Silent, "no answer within 0.2 seconds"), (Exiting, "not logged in")])
def test_a_tracker_that_hangs_or_exits_is_left_out_too(
    kind: type[Recording],
    reason: str,
    tmp_path: Path,
    recording: list[Recording],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setitem(trackers.OPENERS, "trackio", kind)
    monkeypatch.setattr("linnaeus.runs.tracking.PATIENCE", 0.2)
    with open_tracking(["trackio", "mlflow"], RunFolder(tmp_path), RECIPE, Console()) as tracking:
        tracking.add_epoch(row(1), 1)
        tracking.finish({"valid": VALID}, interrupted=False)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "trackio" in line]
    assert warnings == [f"warning: --track trackio: {reason}; the run continues without it"]
    assert recording[1].status == "FINISHED"


def test_a_tracker_that_never_opens_is_one_line_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(trackers.OPENERS, "mlflow", lambda run: threading.Event().wait())
    monkeypatch.setattr("linnaeus.runs.tracking.PATIENCE", 0.2)
    with pytest.raises(UserError, match=r"--track mlflow: no answer within 0\.2 seconds; MLFLOW_TRACKING_URI"):
        open_tracking(["mlflow"], RunFolder(tmp_path), RECIPE, Console(silent=True))


def test_damaged_names_of_a_run_begin_it_again(tmp_path: Path, recording: list[Recording]):
    (tmp_path / "tracking.json").write_text('{"mlflow": "ru')
    with open_tracking(["mlflow"], RunFolder(tmp_path), RECIPE, Console(silent=True)):
        pass
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": "run-1"}


def test_a_resumed_run_continues_under_its_name(tmp_path: Path, recording: list[Recording]):
    folder = RunFolder(tmp_path)
    with open_tracking(["mlflow"], folder, RECIPE, Console(silent=True)):
        pass
    assert json.loads((tmp_path / "tracking.json").read_text()) == {"mlflow": "run-1"}
    folder.resumed, folder.rows[:] = True, [row(1)]
    with open_tracking(["mlflow"], folder, RECIPE, Console(silent=True)):
        pass
    assert [(tracker.run.identifier, tracker.run.resumed) for tracker in recording] == [(None, None), ("run-1", 1)]


def test_a_tracker_that_cannot_be_reached_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(run: TrackedRun) -> trackers.Tracker:
        raise ConnectionError("HTTPConnectionPool: refused\nsecond line")

    monkeypatch.setitem(trackers.OPENERS, "mlflow", refuse)
    with pytest.raises(UserError, match=r"--track mlflow: HTTPConnectionPool: refused; MLFLOW_TRACKING_URI names"):
        open_tracking(["mlflow"], RunFolder(tmp_path), RECIPE, Console(silent=True))


def test_unknown_and_missing_trackers_are_named(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"--track tensorbord: not one of .* \(did you mean tensorboard\?\)"):
        check_trackers(["tensorbord"])
    monkeypatch.setattr("linnaeus.runs.tracking.find_spec", lambda name: None)
    with pytest.raises(UserError, match="--track mlflow: not installed: pip install mlflow"):
        check_trackers(["mlflow"])


def test_parameters_are_the_keys_of_set():
    assert parameters(RECIPE) == {
        "name": "small",
        "phase.1.lr": 1e-3,
        "phase.1.train": '["head"]',
        "phase.2.lr": 1e-4,
        "phase.2.train": "[]",
    }


def test_tensorboard_gets_every_row(tmp_path: Path):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking = open_tracking(["tensorboard"], RunFolder(tmp_path), RECIPE, Console(silent=True))
    with tracking:
        tracking.add_epoch(row(1), 1)
        tracking.add_epoch(row(2, None), 2)
        tracking.finish({"valid": VALID}, interrupted=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("valid/loss")] == [1, 2]
    assert [event.step for event in events.Scalars("train/accuracy")] == [1]
    assert [event.value for event in events.Scalars("final/valid/accuracy")] == [0.75]


@pytest.mark.long
def test_mlflow_keeps_one_run_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    with suppress(KeyboardInterrupt), open_tracking(["mlflow"], folder, RECIPE, Console(silent=True)) as tracking:
        for epoch in (1, 2):
            tracking.add_epoch(row(epoch), epoch)
        raise KeyboardInterrupt
    folder.resumed, folder.rows[:] = True, [row(1)]  # the last checkpoint is from the first epoch
    with open_tracking(["mlflow"], folder, RECIPE, Console(silent=True)) as tracking:
        for epoch in (2, 3):
            tracking.add_epoch(row(epoch), epoch)
        tracking.finish({"valid": VALID}, interrupted=False)
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("linnaeus").experiment_id])
    assert (run.info.status, run.data.params["phase.1.lr"]) == ("FINISHED", "0.001")
    assert [metric.step for metric in client.get_metric_history(run.info.run_id, "valid/loss")] == [1, 2, 3]
    assert run.data.metrics["final/valid/accuracy"] == 0.75


@pytest.mark.long
def test_trackio_keeps_one_run_over_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    if "trackio" not in sys.modules:  # reads its folder when it is imported
        pytest.importorskip("trackio", reason="needs the extra trackio")
    from trackio.sqlite_storage import SQLiteStorage

    folder = RunFolder(tmp_path)
    for rows, epochs in (([], (1, 2)), ([row(1), row(2)], (3,))):
        folder.resumed, folder.rows[:] = bool(rows), rows
        with open_tracking(["trackio"], folder, RECIPE, Console(silent=True)) as tracking:
            for epoch in epochs:
                tracking.add_epoch(row(epoch), epoch)
            tracking.finish({"valid": VALID}, interrupted=not rows)
    [name] = SQLiteStorage.get_runs("linnaeus")
    assert name == json.loads((tmp_path / "tracking.json").read_text())["trackio"]
    logged = SQLiteStorage.get_logs("linnaeus", name)
    assert sorted(values["step"] for values in logged if "valid/loss" in values) == [1, 2, 3]
