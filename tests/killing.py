"""Runs that are killed. Each is a real process: a fork of this one, which has torch in memory already and starts fast.

Patches in the fork decide where it dies; the product contains no code for that.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forking import fork
from safetensors.torch import load_file

import linnaeus
from linnaeus.console import Console
from linnaeus.training.finish import finalize
from linnaeus.training.finish.finalize import Run

QUIET = Console(quiet=True)


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs skip plots and report, which take most of a second."""
    monkeypatch.setattr(finalize, "write_plots", lambda *args: "")
    monkeypatch.setattr("linnaeus.report.page.write_report", lambda *args, **more: None)
    monkeypatch.setattr("linnaeus.report.range_test.ranges", lambda *args: "")


def train(source: Path, recipe: Path | None, out: Path | None, every: str = "2steps", **more: Any) -> Run:
    arguments = {"console": QUIET, "device": "cpu", **more}
    return linnaeus.train(source, str(recipe) if recipe else None, out=out, checkpoint_every=every, **arguments)


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a fork and return its exit status, or minus the number of the signal that ended it."""
    pid = fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(module: Any, name: str, nth: int = 1, after: bool = False, of: str = "") -> None:
    """Make the `nth` call of `module.name` kill the process, before or `after` the call is executed.

    `of`: count only calls whose first argument is a path with a name that starts with this text.
    """
    real, calls = getattr(module, name), 0

    def call(*args: Any, **more: Any) -> Any:
        nonlocal calls
        counts = not of or Path(args[0]).name.startswith(of)
        calls += counts
        last = calls == nth and counts
        if last and not after:
            die()
        result = real(*args, **more)
        if last:
            die()
        return result

    setattr(module, name, call)


def contents(run: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, str]], dict[str, Any]]:
    """Weights, history and metrics of a run, both without durations."""
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("seconds")
    with (run / "history.csv").open(newline="") as file:
        history = [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]
    return load_file(run / "model.safetensors"), history, metrics


def check_same(run: Path, whole: Path) -> None:
    """Check that two runs have equal weights, history and metrics, and the same files."""
    (weights, history, metrics), (expected, *rest) = contents(run), contents(whole)
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert [history, metrics] == rest
    assert (run / "recipe.toml").read_bytes() == (whole / "recipe.toml").read_bytes()
    assert sorted(file.name for file in run.iterdir()) == sorted(file.name for file in whole.iterdir())
    assert not (run / "checkpoint").exists()
