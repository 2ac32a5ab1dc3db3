"""The head: held-out answers are those of heads that were really solved without the images."""

from __future__ import annotations

import numpy as np
import pytest

from linnaeus.label.head import BIAS, PENALTIES, SCALE, Head, HeadSolver


def problem(n: int, width: int, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features of length 1, labels, groups with some of two and three images)."""
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % classes
    x = generator.standard_normal((classes, width))[labels] + 2 * generator.standard_normal((n, width))
    groups = np.arange(n)
    groups[3], groups[6], groups[7], groups[n - 1] = 0, 0, 1, 2
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels, groups


def scores_without(x: np.ndarray, labels: np.ndarray, groups: np.ndarray, i: int, penalty: float) -> np.ndarray:
    """The scores of image i under the ridge regression on the images of other groups, in float64."""
    keep = groups != groups[i]
    x = np.concatenate([x, np.full((len(x), 1), BIAS)], 1).astype(np.float64)
    y = np.eye(labels.max() + 1)[labels] - 1 / (labels.max() + 1)
    weight = np.linalg.solve(x[keep].T @ x[keep] + penalty * np.eye(x.shape[1]), x[keep].T @ y[keep])
    return x[i] @ weight


@pytest.mark.parametrize(("n", "width"), [(40, 64), (120, 32)], ids=["fewer images", "more images"])
@pytest.mark.parametrize("first", [1.0, 0.9, 0.82])
def test_held_out_answers_are_those_of_heads_without_the_group(n: int, width: int, first: float):
    x, labels, groups = problem(n, width)
    solver, m = HeadSolver(), int(first * n)
    head: Head = solver.solve(x[:m], labels[:m], 3, groups[:m])
    for k in range(m, n):  # the others one by one
        head = solver.solve(x[: k + 1], labels[: k + 1], 3, groups[: k + 1], same=k)
    for i in (0, 3, 5, 7, n - 1):
        expected = SCALE * scores_without(x, labels, groups, i, head.penalty)
        assert head.held_out[i] == pytest.approx(expected, abs=2e-3)
    all_ = np.concatenate([x, np.full((n, 1), BIAS)], 1).astype(np.float64)
    y = np.eye(3)[labels] - 1 / 3
    weight = np.linalg.solve(all_.T @ all_ + head.penalty * np.eye(width + 1), all_.T @ y)
    assert head.weight[:-1] == pytest.approx(weight[:-1], abs=1e-3)


def test_several_images_and_changed_labels_are_added_to_a_solved_system():
    x, labels, groups = problem(60, 32)
    for n, start in ((60, 50), (30, 26)):
        solver = HeadSolver()
        solver.solve(x[:start], labels[:start], 3, groups[:start])
        changed = labels.copy()
        changed[5] = (changed[5] + 1) % 3
        added = solver.solve(x[:n], changed[:n], 3, groups[:n], same=start)
        expected = [SCALE * scores_without(x[:n], changed[:n], groups[:n], i, added.penalty) for i in range(n)]
        assert added.held_out == pytest.approx(np.array(expected), abs=2e-3)


def test_the_penalty_follows_the_data():
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    means = np.eye(3, 20)[labels]
    chosen = []
    for noise in (0.1, 2.0):
        x = (means + noise * generator.standard_normal((300, 20))).astype(np.float32)
        x /= np.linalg.norm(x, axis=1, keepdims=True)
        solver, last = HeadSolver(), None
        for n in (30, 60, 120, 240, 300):
            last = solver.solve(x[:n], labels[:n], 3, np.arange(n))
        assert last is not None
        chosen.append(last.penalty)
    assert chosen[0] < chosen[1]
    assert set(chosen) <= set(PENALTIES)


@pytest.mark.parametrize("width", [400, 100], ids=["fewer images", "more images"])
@pytest.mark.parametrize("step", [1, 3])
def test_additions_do_not_add_up_errors(width: int, step: int):
    """Features of few directions and a small penalty: in float32 the head broke down after some dozen additions.

    An inverse that was extended by several images at a time broke down in float64, too.
    """
    generator = np.random.default_rng(0)
    labels = np.arange(300) % 3
    x = generator.standard_normal((3, 8))[labels] + 0.1 * generator.standard_normal((300, 8))
    x = x @ generator.standard_normal((8, width)) + 0.01 * generator.standard_normal((300, width))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    solver = HeadSolver()
    solver.solve(x[:245], labels[:245], 3, np.arange(245))
    for n in range(245 + step, 301, step):
        added = solver.solve(x[:n], labels[:n], 3, np.arange(n), same=n - step)
    x, labels = x[:n], labels[:n]
    assert added.penalty < 0.1
    expected = [SCALE * scores_without(x, labels, np.arange(n), i, added.penalty) for i in range(0, n, 30)]
    assert added.held_out[::30] == pytest.approx(np.array(expected), abs=0.02)
