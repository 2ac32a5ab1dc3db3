"""The curves of a solved head: held-out accuracy and loss over the penalty."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.report.curves import axis_range
from linnaeus.report.penalty_curve import penalty_charts, penalty_curves
from linnaeus.runs.penalties import Trial, penalties_file, read_penalties, write_penalties


def test_the_search_keeps_accuracy_and_loss_of_every_penalty():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 90)
    features = torch.from_numpy(rng.normal(size=(90, 5)).astype(np.float32) + labels[:, None])
    head = fit_linear_probe(features, labels, 3)
    assert head.accuracies.keys() == head.losses.keys()
    chosen = float((head.probabilities.argmax(1) == labels).mean())
    assert head.accuracies[head.penalty] == np.float32(chosen)


def test_trials_are_read_as_written_and_damaged_rows_left_out(tmp_path: Path):
    trials = [Trial(1.0, 0.5, 0.75, 40, (0.5, 0.875), 20, 10), Trial(1e-6, 0.25, 1.0), Trial(0.1, 0.2, 0.875)]
    write_penalties(penalties_file(tmp_path, 2), trials)
    assert read_penalties(tmp_path) == {2: sorted(trials, key=lambda trial: trial.penalty)}
    with penalties_file(tmp_path, 2).open("a") as file:
        file.write("x,1,1\n-1,1,1\n1,nan,1\n1,1,7\n2\n")
    assert len(read_penalties(tmp_path)[2]) == 3
    write_penalties(penalties_file(tmp_path, 1), [Trial(0.1, 2.0)])  # several labels have no accuracy
    assert read_penalties(tmp_path)[1] == [Trial(0.1, 2.0, None)]


def test_a_small_difference_of_accuracy_is_no_cliff():
    """98.33 and 98.54 % of 480 are one image apart."""
    low, high = axis_range(98.33, 98.54, "accuracy")
    assert (high - low, high) == pytest.approx((4.0, 100.435))
    assert axis_range(20.0, 95.0, "accuracy") == (14.0, 101.0)
    assert axis_range(99.0, 100.0, "accuracy") == (97.5, 101.5)
    assert axis_range(0.02, 0.12, "loss") == pytest.approx((0.012, 0.128))


def test_each_penalty_is_a_dot_and_the_chosen_one_has_the_ring(tmp_path: Path):
    trials = [Trial(1e-6, 0.3, 0.9), Trial(1e-5, 0.2, 0.875), Trial(1e-4, 0.4, 0.9996)]
    accuracy, loss = penalty_charts(trials, 1)
    assert accuracy.note == "penalty 1e-05: 87.5\u202f% held out"
    assert accuracy.drawing.count("dot valid") == loss.drawing.count("dot valid") == 3
    assert "penalty 0.0001: accuracy &gt;99.9\u202f% on held-out images" in accuracy.drawing
    assert [chart.title for chart in penalty_charts([Trial(0.1, 2.0)], 1)] == ["Loss by penalty"]
    penalty_curves(trials, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 5000
