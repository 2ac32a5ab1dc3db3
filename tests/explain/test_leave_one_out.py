"""One Newton step without each training image, against solving again without it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linnaeus.explain import leave_one_out as module
from linnaeus.explain.influence import SolvedHead
from linnaeus.explain.leave_one_out import leave_one_out
from linnaeus.models.logistic_regression import Problems

N, D, CLASSES, PENALTY = 36, 24, 3, 0.02


def few_images(kind: str) -> tuple[SolvedHead, torch.Tensor]:
    """A head on few images with many features, in which each image has a large part of the curvature, and an answer."""
    views = 2 if kind == "views" else 1
    generator = np.random.default_rng(4)
    labels = np.repeat(np.arange(N) % CLASSES, views)
    rows = np.repeat(generator.normal(size=(N, D)), views, 0) + 0.3 * generator.normal(size=(N * views, D))
    x = torch.from_numpy(2 * (rows + 0.9 * np.eye(CLASSES, D)[labels]) + 1).float()
    y, weights, pairs = torch.from_numpy(labels), torch.ones(len(x)), None
    if kind == "balanced":
        weights = torch.tensor([0.5, 1.0, 2.0])[y]
    if kind == "several":
        y = torch.from_numpy(np.eye(CLASSES, dtype=np.float32)[labels])
        y[::4, 0], pairs = 1, torch.tensor([[1.0, 0.8, 0.7], [1.0, 1.5, 2.0]])
    problem = Problems(x, y, (weights / weights.sum())[:, None], CLASSES, pairs)
    head = SolvedHead.of(problem, PENALTY, np.arange(len(x)) // views, torch.zeros(CLASSES, D + 1))
    return head, x[:1] + 0.7


@pytest.mark.parametrize("kind", ["plain", "balanced", "views", "several"])
def test_it_agrees_with_solving_again_where_the_first_order_does_not(kind: str):
    head, answer = few_images(kind)
    here = head.logits(answer).numpy()
    estimate, again = leave_one_out(head, answer), head.without(answer, np.arange(N))
    assert estimate is not None
    assert estimate.shape == again.shape == (N, CLASSES)
    # Of a softmax only differences of logits are defined.
    slopes = torch.tensor([[1.0, 0, 0] if kind == "several" else [1.0, -0.5, -0.5]], dtype=torch.float64)
    true, closed = (again - here) @ slopes[0].numpy(), (estimate - here) @ slopes[0].numpy()
    error, crude = (np.abs(c - true).max() / np.abs(true).max() for c in (closed, head.first_order(answer, slopes)[0]))
    assert error < 0.2, error
    assert error < 0.6 * crude, (error, crude)


def test_large_problems_are_left_to_the_first_order(monkeypatch: pytest.MonkeyPatch):
    head, answer = few_images("plain")
    monkeypatch.setattr(module, "WORK", 1e3)
    assert leave_one_out(head, answer) is None
