"""The warning that a saved model is not as good as during training: only beyond what rounding explains."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from killing import train
from tiny import settings, write_label_sets, write_recipe

from linnaeus.console import Console
from linnaeus.distributed.precision import BF16, CHANNELS_LAST, FLOAT32
from linnaeus.metrics.classification import figures
from linnaeus.metrics.multilabel import label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.training.finish import rounding
from linnaeus.training.finish.evaluation import FinalEvaluation
from linnaeus.training.finish.label_evaluation import LabelEvaluation
from linnaeus.training.finish.rounding import decided_by_rounding, map_within_rounding, rounding_error


def test_only_images_that_rounding_may_decide_excuse_another_count():
    logits = np.array([[1.0, 1.001, 0.0], [1.0, 1.01, 0.0], [1.0, 1.1, 0.0], [1.0, 3.0, 0.0]], np.float32)
    outputs = Outputs(np.zeros(4, np.int64), logits)
    assert [decided_by_rounding(outputs, e) for e in (rounding.FLOAT32, rounding.MIXED_16, rounding.INT8)] == [1, 2, 3]


@pytest.mark.parametrize(
    ("engine", "phases", "executors", "error"),
    [
        (FLOAT32, {}, {}, rounding.FLOAT32),
        (FLOAT32, {"1": CHANNELS_LAST}, {"stem to layer3": "fused"}, rounding.FLOAT32),
        (BF16, {}, {}, rounding.MIXED_16),
        ("16-mixed", {}, {}, rounding.MIXED_16),
        (FLOAT32, {"1": FLOAT32, "2": BF16}, {"stem": "fused"}, rounding.MIXED_16),
        (FLOAT32, {"1": FLOAT32}, {"stem to layer4": "bf16"}, rounding.MIXED_16),
        (BF16, {}, {"stem to layer4": "int8"}, rounding.INT8),
    ],
)
def test_the_error_follows_from_precisions_and_executors(engine: str, phases: Any, executors: Any, error: float):
    tuned = SimpleNamespace(precisions=phases, executors=executors)
    prepared: Any = SimpleNamespace(engine=SimpleNamespace(precision=engine), identity=SimpleNamespace(tuned=tuned))
    assert rounding_error(prepared) == error


def outputs(close: int, clear: int) -> Outputs:
    """Images of two classes, all correct; the logits of `close` of them differ by one percent."""
    labels = np.arange(close + clear) % 2
    gap = np.where(np.arange(close + clear) < close, 0.01, 1.0)
    logits = np.stack([np.where(labels == 0, 1, 1 - gap), np.where(labels == 1, 1, 1 - gap)], 1)
    return Outputs(labels, logits.astype(np.float32))


@pytest.mark.parametrize(("wrong", "error", "warns"), [(1, 2**-6, False), (2, 2**-6, True), (1, 2**-9, True)])
def test_another_count_is_a_warning_beyond_rounding(wrong: int, error: float, warns: bool):
    """In bfloat16 one of ten images may have swapped its two largest logits, in float32 none."""
    out = outputs(close=1, clear=9)
    swapped = out.logits.copy()
    swapped[:wrong] = swapped[:wrong, ::-1]
    warning = FinalEvaluation({"valid": out}, 1).difference(figures(Outputs(out.labels, swapped)), error)
    assert bool(warning) == warns
    if warns:
        assert f"has 10 of 10 validation images correct, but had {10 - wrong} during training" in warning


def test_another_mean_average_precision_is_a_warning_beyond_rounding():
    generator = np.random.default_rng(3)
    labels = generator.random((200, 3)) < 0.4
    out = Outputs(labels, (labels + generator.standard_normal((200, 3))).astype(np.float32))
    size = np.abs(out.logits).max(1, keepdims=True)

    def warning(noise: float, error: float) -> str:
        logits = out.logits + noise * size * generator.standard_normal(out.logits.shape)
        chosen = label_figures(Outputs(labels, logits))
        return LabelEvaluation({"valid": out}, ("a", "b", "c"), None).difference(chosen, error)

    assert warning(rounding.MIXED_16 / 4, rounding.MIXED_16) == ""
    assert "but had" in warning(0.4, rounding.MIXED_16)
    small, large = (map_within_rounding(out, error) for error in (rounding.FLOAT32, rounding.INT8))
    assert 0 < small < large < 0.1


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("several", [False, True])
def test_a_run_in_bfloat16_does_not_warn(several: bool, idx: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = settings(split={"valid": 0.3}) if several else {}
    source = write_label_sets(tmp_path / "sets", 60) if several else idx
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3}, precision="bf16-mixed", **data)
    train(source, recipe, tmp_path / "run", console=Console())
    said = capsys.readouterr()
    assert "bf16-mixed" in said.out
    assert "during training" not in said.out + said.err
