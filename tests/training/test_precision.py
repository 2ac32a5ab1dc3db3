"""Precision: the names of the recipe, one precision for all published figures, and no GPU for a run on the CPU."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import check_same, dying, in_child, train
from several import several
from tiny import write_recipe
from torch import nn

from linnaeus.console import Console
from linnaeus.distributed.precision import BF16, CHANNELS_LAST, FLOAT32
from linnaeus.errors import UserError
from linnaeus.inference.classifier import load
from linnaeus.recipe import load_recipe
from linnaeus.training import loop
from linnaeus.training.recorder import RunRecorder
from linnaeus.training.tuning import precision


@pytest.mark.parametrize(
    ("given", "precision"),
    [
        (32, "32"),
        (32.0, "32"),
        ("32", "32"),
        ("32-true", "32"),
        ("fp32", "32"),
        ("float32", "32"),
        ("16", "16-mixed"),
        (16, "16-mixed"),
        ("fp16", "16-mixed"),
        ("bf16", "bf16-mixed"),
        ("BF16", "bf16-mixed"),
        ("bfloat16", "bf16-mixed"),
        ("auto", "auto"),
    ],
)
def test_precision_is_accepted_as_it_is_written_elsewhere(given: Any, precision: str):
    assert load_recipe("digits", {"precision": given}).precision == precision


@pytest.mark.parametrize("given", [True, 33, 64, "8", "double", [], 0])
def test_other_precisions_are_refused(given: Any):
    with pytest.raises(UserError, match="precision"):
        load_recipe("digits", {"precision": given})


@pytest.mark.usefixtures("undrawn_runs")
def test_the_figures_of_a_bf16_run_are_those_of_evaluate(idx: Path, tmp_path: Path):
    """To the last bit: all figures come from float32."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, precision="bf16-mixed")
    run = train(idx, recipe, tmp_path / "run")
    assert run.test is not None
    again = load(run.path, device="cpu").evaluate(idx, split="test")
    assert (again.correct, again.loss) == (run.test.correct, pytest.approx(run.test.loss, rel=1e-6))


@pytest.mark.usefixtures("undrawn_runs")
def test_a_run_on_the_cpu_leaves_the_gpu_alone(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a machine that has one: a context there takes 300 MB, and a forked process cannot make one."""

    def initialize() -> None:
        raise AssertionError("a run on the CPU initializes CUDA")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "_lazy_init", initialize)
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "run")
    assert run.test is not None


@dataclass
class Trials:
    """Trials whose clock says what a test wants; they still run the steps."""

    seconds: dict[str, float]
    made: int = 0

    def time_steps(self, run: Any, engine: Any, batch: Any) -> tuple[float, float]:
        self.made += 1
        _, loss = self.real(run, engine, batch)
        return self.seconds[engine.precision], loss

    def __post_init__(self) -> None:
        self.real = precision.time_steps


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> Trials:
    """As on a processor where bfloat16 is fast, and every phase worth a trial."""
    trials = Trials({FLOAT32: 1.0, CHANNELS_LAST: 0.95, BF16: 0.4})
    monkeypatch.setattr(precision, "WORTH_TRYING", 0.0)
    monkeypatch.setattr(precision, "time_steps", trials.time_steps)
    monkeypatch.setattr(precision, "_has_bf16", lambda: True)
    return trials


def recorded(run: Path) -> dict[str, str]:
    return json.loads((run / "metrics.json").read_text())["precision"]


@pytest.mark.usefixtures("undrawn_runs")
def test_a_cpu_trains_in_the_precision_that_a_trial_found_fastest(
    trials: Trials, idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    run = train(idx, recipe, tmp_path / "run", console=Console())
    said = capsys.readouterr().out
    assert "precision bf16-mixed: 2.5 times as fast as 32-true in a trial of 16 samples" in said
    assert next(line for line in said.splitlines() if line.startswith("device ")).endswith("1 thread)")
    assert recorded(run.path) == {"phase 1": BF16}
    explicit = train(idx, write_recipe(tmp_path / "e.toml", {"epochs": 1}, precision="bf16"), tmp_path / "explicit")
    assert torch.equal(weights(run.path), weights(explicit.path)), "the trial has left a trace in the training"
    assert trials.made == 3
    again = train(idx, recipe, tmp_path / "again")  # remembered for this machine and network
    assert (trials.made, recorded(again.path)) == (3, {"phase 1": BF16})
    trials.seconds[BF16] = 0.92
    wide = write_recipe(tmp_path / "w.toml", {"epochs": 1, "optimizer": "sgd"})
    assert recorded(train(idx, wide, tmp_path / "wide").path) == {"phase 1": FLOAT32}, "too little is gained"


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("setting", ["32", "bf16", "auto"])
def test_every_phase_says_the_precision_it_trains_in(
    setting: str, trials: Trials, idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The line of the device says 32-true or bf16-mixed only where that holds for all phases."""
    phases: list[dict[str, Any]] = [{"epochs": 1}, {"epochs": 1, "train": ["head"], "optimizer": "sgd"}]
    trials.seconds[BF16] = 0.95  # too little is gained
    recipe = write_recipe(tmp_path / "r.toml", *phases, precision=setting)
    run = train(idx, recipe, tmp_path / "run", console=Console())
    said = capsys.readouterr().out.splitlines()
    device = next(line for line in said if line.startswith("device "))
    per_phase = [line for line in said if line.startswith("  precision ")]
    everywhere = {"32": FLOAT32, "bf16": BF16, "auto": None}[setting]
    if everywhere is None:
        assert per_phase == 2 * ["  precision 32-true: no faster alternative in a trial of 16 samples"]
        assert not any(name in device for name in (FLOAT32, BF16))
    else:
        assert device.endswith(f", {everywhere}")
        assert per_phase == []
    assert recorded(run.path) == dict.fromkeys(("phase 1", "phase 2"), everywhere or FLOAT32)


@pytest.mark.usefixtures("undrawn_runs")
def test_phases_that_did_not_run_have_no_precision(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def stop(*given: Any, **more: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "record_rate", stop)  # in the second phase
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, {"epochs": 1, "lr": "auto"})
    run = train(idx, recipe, tmp_path / "run")
    assert run.interrupted
    assert recorded(run.path) == {"phase 1": FLOAT32}


def weights(run: Path) -> torch.Tensor:
    network = load(run, device="cpu").network
    return torch.cat([p.detach().reshape(-1) for p in network.parameters()])


@pytest.mark.usefixtures("undrawn_runs", "trials")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
@pytest.mark.parametrize("fastest", [BF16, CHANNELS_LAST])
def test_a_resumed_run_keeps_the_precisions_of_its_phases(
    fastest: str, trials: Trials, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """To the last bit, with 1x1 convolutions, whose layout is ambiguous, and a phase in another precision after it."""
    trials.seconds[fastest] = 0.1
    phases: tuple[dict[str, Any], ...] = ({}, {"epochs": 1, "optimizer": "sgd", "momentum": 0.9})
    monkeypatch.setattr(precision, "choose_precision", by_optimizer(precision.choose_precision))
    monkeypatch.setattr("linnaeus.training.tuning.tuning.choose_precision", precision.choose_precision)
    recipe = write_recipe(tmp_path / "r.toml", *phases)
    whole = train(idx, recipe, tmp_path / "whole", model=bottleneck()).path
    assert recorded(whole) == {"phase 1": fastest, "phase 2": FLOAT32}
    for step in (5, 11):

        def work(step: int = step) -> None:
            dying(loop, "step_within_memory", step)
            train(idx, recipe, tmp_path / f"cut {step}", model=bottleneck())

        assert in_child(work) == -signal.SIGKILL
        monkeypatch.setattr(precision, "time_steps", None)  # not measured again
        check_same(train(idx, recipe, tmp_path / f"cut {step}", model=bottleneck(), resume=True).path, whole)


@pytest.mark.usefixtures("undrawn_runs", "trials")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_two_processes_train_in_the_precision_that_the_first_one_chose(idx: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, {"epochs": 1, "train": ["head"], "lr": "auto"})

    def work(rank: int) -> int:
        train(idx, recipe, tmp_path / "run")
        return rank

    assert several(2, work) == [0, 1]
    assert recorded(tmp_path / "run") == {"phase 1": BF16, "phase 2": BF16}


def by_optimizer(real: Any) -> Any:
    """Trials for Adam alone: phases with SGD are too short."""

    def choose(run: Any, engine: Any, seconds: float) -> Any:
        return real(run, engine, seconds if run.phase.optimizer != "sgd" else -1.0)

    return choose


def bottleneck() -> nn.Module:
    torch.manual_seed(5)
    body = [nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 16, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.Conv2d(16, 1, 3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, 3))


@pytest.mark.usefixtures("undrawn_runs")
def test_a_network_that_bf16_breaks_stays_in_float32(trials: Trials, idx: Path, tmp_path: Path):
    run = train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "run", model=Fixed())
    assert recorded(run.path) == {"phase 1": FLOAT32}
    assert trials.made == 3


class Fixed(nn.Module):
    """A network that multiplies its features, whose type it fixes."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.weight = nn.Conv2d(1, 3, 5, 5), nn.Parameter(torch.eye(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.convolution(x).mean((2, 3))
        with torch.autocast("cpu", enabled=False):
            return features @ self.weight


def test_short_phases_are_not_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "_trial", None)
    unused: Any = None
    assert precision.choose_precision(unused, unused, precision.WORTH_TRYING - 1).chosen == FLOAT32
