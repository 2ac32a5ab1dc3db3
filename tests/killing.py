"""Runs that are killed: a real process, which is a fork of this one and has torch in memory already, so that it takes a
fraction of a second. Where it dies is decided by patches in the fork; the product knows nothing of them.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import linnaeus
from linnaeus.console import Console
from linnaeus.training import finalize
from linnaeus.training.finalize import Run

QUIET = Console(quiet=True)


def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs leave out their images and page, which take most of a second."""
    monkeypatch.setattr(finalize, "write_plots", lambda *args: "")
    monkeypatch.setattr("linnaeus.report.page.write_report", lambda *args, **more: None)
    monkeypatch.setattr("linnaeus.report.plots.ranges", lambda *args: "")


def train(source: Path, recipe: Path | None, out: Path | None, every: str = "2steps", **more: Any) -> Run:
    given = {"console": QUIET, "device": "cpu", **more}
    return linnaeus.train(source, str(recipe) if recipe else None, out=out, checkpoint_every=every, **given)


def in_child(work: Callable[[], object]) -> int:
    """Do `work` in a fork; its exit status, or minus the signal that ended it."""
    pid = os.fork()
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
    """From now on the `nth` call of `module.name` kills the process, before or `after` it is carried out.

    `of`: only calls count whose first argument is a path with a name that begins so.
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


def story(run: Path) -> tuple[dict[str, torch.Tensor], list[str], dict[str, Any]]:
    """Weights, history without seconds, metrics without seconds."""
    metrics = json.loads((run / "metrics.json").read_text())
    metrics.pop("seconds")
    history = [line.rpartition(",")[0] for line in (run / "history.csv").read_text().splitlines()]
    return load_file(run / "model.safetensors"), history, metrics


def check_same(run: Path, whole: Path) -> None:
    """Everything of two runs is the same, and neither has left anything behind that the other has not."""
    (weights, history, metrics), (expected, *rest) = story(run), story(whole)
    assert weights.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert [history, metrics] == rest
    assert (run / "recipe.toml").read_bytes() == (whole / "recipe.toml").read_bytes()
    assert sorted(file.name for file in run.iterdir()) == sorted(file.name for file in whole.iterdir())
    assert not (run / "checkpoint").exists()
