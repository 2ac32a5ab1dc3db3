"""Precision: the names of the recipe, one precision for all published figures, and no GPU for a run on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from killing import train
from tiny import write_recipe

from linnaeus.errors import UserError
from linnaeus.inference.classifier import load
from linnaeus.recipe import load_recipe


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
        ("fp16", "16-mixed"),
        ("bf16", "bf16-mixed"),
        ("BF16", "bf16-mixed"),
        ("bfloat16", "bf16-mixed"),
        ("auto", "auto"),
    ],
)
def test_precision_is_accepted_as_it_is_written_elsewhere(given: Any, precision: str):
    assert load_recipe("digits", {"precision": given}).precision == precision


@pytest.mark.parametrize("given", [True, 16, 33, 64, "8", "double", [], 0])
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
