"""Runs whose images may have several labels are compared on the same images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tomli_w
from sklearn.metrics import average_precision_score, f1_score

from linnaeus.errors import UserError
from linnaeus.metrics.mcnemar import McNemar
from linnaeus.metrics.multilabel import compute_label_metrics
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.compare import compare_runs
from linnaeus.runs.label_predictions import LabelPredictionRow, write_label_predictions
from linnaeus.runs.layout import PREDICTIONS

CLASSES = ("a", "b", "c")
N = 160


def truth() -> np.ndarray:
    return np.random.default_rng(0).random((N, 3)) < [0.6, 0.3, 0.2]


def write_run(folder: Path, noise: float, seed: int, classes: tuple[str, ...] = CLASSES, each: int = 0) -> np.ndarray:
    """A run whose probabilities are the better, the less noise. Returns them, (n, labels)."""
    folder.mkdir()
    labels = truth()
    noisy = 2 * labels - 1 + noise * np.random.default_rng(seed).normal(size=labels.shape)
    probabilities = 1 / (1 + np.exp(-2 * noisy))
    rows = [
        LabelPredictionRow(
            f"{i}.png",
            "valid",
            tuple(np.array(classes)[labels[i]]),
            tuple(np.array(classes)[probabilities[i] >= 0.5]),
            probabilities[i],
            str(i // each) if each else "",
        )
        for i in range(N)
    ]
    write_label_predictions(folder / PREDICTIONS, rows, classes)
    (folder / "metrics.json").write_text(json.dumps({"task": "multi-label", "seconds": {"total": 3.0}}))
    (folder / "recipe.toml").write_text(tomli_w.dumps({"seed": seed}))
    return probabilities


def test_figures_and_tests_are_those_of_the_predictions(tmp_path: Path):
    found = {name: write_run(tmp_path / name, noise, k) for k, (name, noise) in enumerate({"x": 1.2, "y": 0.5}.items())}
    comparison = compare_runs([tmp_path / "x", tmp_path / "y"])
    labels = truth()
    for row, probabilities in zip(comparison.rows, found.values(), strict=True):
        assert row.labels is not None
        assert row.labels.figures.map == pytest.approx(average_precision_score(labels, probabilities), abs=1e-9)
        assert row.labels.figures.macro_f1 == pytest.approx(f1_score(labels, probabilities >= 0.5, average="macro"))
        assert row.correct == ((probabilities >= 0.5) == labels).all(1).sum()
    right = [((probabilities >= 0.5) == labels).all(1) for probabilities in found.values()]
    assert comparison.pairs[0, 1] == McNemar.of(*right)
    record = json.loads(comparison.to_json())
    low, high = record["pairs"][0]["map_difference_ci95"]
    assert low < record["pairs"][0]["map_difference"] == record["runs"][1]["map"] - record["runs"][0]["map"] < high
    assert low > 0, "the better run is better on nearly all resamples"
    outputs = Outputs(labels, np.log(found["x"] / (1 - found["x"])))
    evaluated = compute_label_metrics(outputs, found["x"] >= 0.5)["map"].ci95
    assert record["runs"][0]["map_ci95"] == pytest.approx(evaluated, abs=1e-9), "the interval of `evaluate`"
    text = comparison.render()
    assert "by thresholds that were chosen on these images" in text
    assert "y is better" in text
    assert "differences of mAP (interval: paired bootstrap)" in text


def test_the_interval_of_a_difference_is_paired(tmp_path: Path):
    write_run(tmp_path / "x", 1.0, 1)
    write_run(tmp_path / "same", 1.0, 1)
    record = json.loads(compare_runs([tmp_path / "x", tmp_path / "same"]).to_json())
    assert record["pairs"][0]["map_difference"] == 0
    assert record["pairs"][0]["map_difference_ci95"] is None  # no resample differs
    assert record["runs"][0]["map_ci95"][0] < record["runs"][0]["map"]


def test_groups_widen_the_interval(tmp_path: Path):
    write_run(tmp_path / "x", 1.0, 1, each=8)
    write_run(tmp_path / "y", 0.8, 2, each=8)
    comparison = compare_runs([tmp_path / "x", tmp_path / "y"])
    assert comparison.grouped
    assert comparison.rows[0].labels is not None
    assert comparison.rows[0].labels.figures.groups == N // 8


def test_runs_with_other_labels_or_another_task_are_refused(tmp_path: Path):
    write_run(tmp_path / "x", 1.0, 1)
    write_run(tmp_path / "y", 1.0, 1, ("a", "b", "d"))
    with pytest.raises(UserError, match=r"other labels than .*such as 'c', 'd'"):
        compare_runs([tmp_path / "x", tmp_path / "y"])
    one = tmp_path / "one"
    one.mkdir()
    (one / PREDICTIONS).write_text(
        "sample,split,true,predicted,probability,probability_of_true,group\n0.png,valid,a,a,0.9,0.9,\n"
    )
    (one / "metrics.json").write_text(json.dumps({"seconds": {"total": 3.0}}))
    (one / "recipe.toml").write_text("")
    with pytest.raises(UserError, match="some runs give images one label, the others several"):
        compare_runs([tmp_path / "x", one])
