"""Influence of training images on an answer of a solved head: first order, solved again, and truly removed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linnaeus.explain.influence import SolvedHead
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.models.logistic_regression import Problems, solve

N, D, CLASSES = 90, 7, 3


def features(views: int = 1) -> tuple[torch.Tensor, np.ndarray]:
    generator = np.random.default_rng(4)
    labels = np.arange(N) % CLASSES
    x = generator.normal(size=(N, D)) + 0.9 * np.eye(CLASSES, D)[labels]
    rows = np.repeat(x, views, 0) + (0.3 * generator.normal(size=(N * views, D)) if views > 1 else 0)
    return torch.from_numpy(3 * rows + 1).float(), np.repeat(labels, views)


def solved(x: torch.Tensor, y: torch.Tensor, image: np.ndarray, weights=None, pairs=None) -> SolvedHead:
    weights = torch.ones(len(x)) if weights is None else weights
    problem = Problems(x, y, (weights / weights.sum())[:, None], CLASSES, pairs)
    return SolvedHead.of(problem, 0.02, image, torch.zeros(CLASSES, D + 1))


@pytest.mark.parametrize("kind", ["plain", "balanced", "views", "several"])
def test_the_first_order_agrees_with_solving_again(kind: str):
    views = 2 if kind == "views" else 1
    x, labels = features(views)
    y, weights, pairs = torch.from_numpy(labels), None, None
    if kind == "balanced":
        weights = torch.tensor([0.5, 1.0, 2.0])[y]
    if kind == "several":
        y = torch.from_numpy(np.eye(CLASSES, dtype=np.float32)[labels])
        y[::4, 0], pairs = 1, torch.tensor([[1.0, 0.8, 0.7], [1.0, 1.5, 2.0]])
    head = solved(x, y, np.arange(len(x)) // views, weights, pairs)
    answer = x[:1] + 0.7
    slopes = torch.tensor([[1.0, -0.5, -0.5]] if kind != "several" else [[1.0, 0.0, 0.0]], dtype=torch.float64)
    first_order = head.first_order(answer, slopes)[0]
    assert first_order.shape == (N,)
    again = (head.without(answer, np.arange(N)) - head.logits(answer).numpy()) @ slopes[0].numpy()
    assert np.corrcoef(first_order, again)[0, 1] > 0.98
    assert np.abs(first_order - again).max() < 0.35 * np.abs(again).max()


def test_solving_again_is_true_removal():
    """The same as a problem without the row, in the same standardized features."""
    x, labels = features()
    head = solved(x, torch.from_numpy(labels), np.arange(N))
    kept = np.arange(N) != 17
    rows = head.problem.x[torch.from_numpy(kept)]
    alone = Problems(
        rows, head.problem.y[torch.from_numpy(kept)], torch.full((N - 1, 1), 1 / (N - 1), dtype=torch.float64), CLASSES
    )
    expected = solve(alone, 0.02, alone.zeros().double(), steps=500, tolerance=1e-12).values[0]
    assert np.allclose(head.without(x[:1], np.array([17]))[0], (expected @ head.rows(x[:1])[0]).numpy(), atol=1e-4)


def test_a_head_of_the_linear_probe_is_at_its_minimum_already():
    x, labels = features()
    probe = fit_linear_probe(x.clone(), labels, CLASSES)
    weight = torch.cat([probe.weight, probe.bias[:, None]], 1)
    problem = Problems(x, torch.from_numpy(labels), torch.full((N, 1), 1 / N), CLASSES)
    head = SolvedHead.of(problem, probe.penalty, np.arange(N), weight)
    assert torch.allclose(head.logits(x).float(), x @ probe.weight.T + probe.bias, atol=0.02)


def test_more_features_than_images():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(20, 50))).float()
    labels = torch.arange(20) % CLASSES
    problem = Problems(x, labels, torch.full((20, 1), 0.05), CLASSES)
    head = SolvedHead.of(problem, 0.1, np.arange(20), torch.zeros(CLASSES, 51))
    first_order = head.first_order(x[:1], torch.tensor([[1.0, -0.5, -0.5]], dtype=torch.float64))[0]
    again = (head.without(x[:1], np.arange(20)) - head.logits(x[:1]).numpy()) @ np.array([1.0, -0.5, -0.5])
    assert np.corrcoef(first_order, again)[0, 1] > 0.9
    assert np.argmin(first_order) == np.argmin(again) == 0  # the image itself
