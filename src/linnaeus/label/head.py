"""The head that is solved again after each answer: ridge regression on the classes, with exact held-out answers.

Ridge regression has its leave-one-out residuals in closed form, also for whole groups of images that must be held out
together (Cook and Weisberg 1982, "Residuals and influence in regression", section 3.6). So each labelled image is
judged by a head that has seen all others but its near duplicates, at no more cost than solving the head. A logistic
head needs iterations for each fold: `linear_probe` takes seconds where this takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_factor, cho_solve, lapack

from linnaeus.metrics.calibration import fit_temperature
from linnaeus.metrics.outputs import Outputs, softmax

PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Of the ridge, for features of length 1 after centering."""

SEARCH_AGAIN = 1.25
"""Growth of the number of labels after which the penalty is chosen again."""

SCALE = 8.0
"""Scores of 0 and 1 as logits: the prior of `fit_temperature` expects a temperature near 1."""


@dataclass(frozen=True)
class Head:
    """A solved head."""

    weight: np.ndarray
    """(width + 1, classes) float32, the bias in the last row."""
    penalty: float
    temperature: float
    held_out: np.ndarray
    """(n, classes) float32: logits of each labelled image by a head that has not seen its group."""

    @property
    def held_out_probabilities(self) -> np.ndarray:
        """(n, classes) float64, calibrated."""
        return softmax(self.held_out / self.temperature)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """(n, width) centered features of length 1 -> (n, classes) float64, calibrated."""
        return softmax(SCALE * (x @ self.weight[:-1] + self.weight[-1]) / self.temperature)


@dataclass
class HeadSolver:
    """Solves heads for a growing set of labels."""

    _penalty: float = 0.1
    _searched_at: int = 0
    _gram: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    _rows: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def solve(self, x: np.ndarray, labels: np.ndarray, classes: int, groups: np.ndarray) -> Head:
        """The head for x (n, width) float32 with labels (n,) int64; images of one group (n,) are held out together."""
        n = len(x)
        x = np.concatenate([x, np.full((n, 1), 0.5, np.float32)], 1)  # the bias is hardly penalized at this scale
        y = np.zeros((n, classes), np.float32)
        y[np.arange(n), labels] = 1
        y -= 1 / classes
        system = self._system(x)
        if n >= SEARCH_AGAIN * self._searched_at or n < self._searched_at:
            # the predicted residual error sum of squares (Allen 1974)
            losses = {p: float((_held_out(system, x, y, p, groups)[1] ** 2).sum()) for p in PENALTIES}
            self._penalty, self._searched_at = min(losses, key=lambda p: losses[p]), n
        weight, residuals = _held_out(system, x, y, self._penalty, groups)
        held_out = SCALE * (y - residuals)
        temperature = fit_temperature(Outputs(labels, held_out))
        weight[-1] *= 0.5
        return Head(weight, self._penalty, temperature, held_out)

    def _system(self, x: np.ndarray) -> np.ndarray:
        """The matrix to factor: X X^T (n, n) for few images, X^T X (width, width) for many."""
        n, d = x.shape
        if n > d:
            return x.T @ x
        same = len(self._rows) if self._rows.shape[1:] == x.shape[1:] else 0
        same = min(same, n)
        if same and not np.array_equal(x[:same], self._rows[:same]):
            same = 0
        gram = np.empty((n, n), np.float32)
        gram[:same, :same] = self._gram[:same, :same]
        if same < n:
            gram[same:] = x[same:] @ x.T
            gram[:same, same:] = gram[same:, :same].T
        self._gram, self._rows = gram, x
        return gram


def _held_out(
    system: np.ndarray, x: np.ndarray, y: np.ndarray, penalty: float, groups: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(weight (width, classes), residual (n, classes) of each image under the head that has not seen its group)."""
    matrix = system + penalty * np.eye(len(system), dtype=np.float32)
    if len(system) == len(x):
        factor, _ = lapack.spotrf(matrix, lower=1, overwrite_a=1)
        inverse, _ = lapack.spotri(factor, lower=1)
        inverse = np.tril(inverse) + np.tril(inverse, -1).T
        dual = inverse @ y
        return x.T @ dual, _by_group(dual, groups, inverse.diagonal(), lambda rows: inverse[np.ix_(rows, rows)])
    solved = cho_solve(cho_factor(matrix, lower=True, check_finite=False), x.T, check_finite=False)  # (width, n)
    weight = solved @ y

    def block(rows: np.ndarray) -> np.ndarray:
        return np.eye(len(rows), dtype=np.float32) - x[rows] @ solved[:, rows]

    return weight, _by_group(y - x @ weight, groups, 1 - np.einsum("ij,ji->i", x, solved), block)


def _by_group(
    values: np.ndarray, groups: np.ndarray, diagonal: np.ndarray, block: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Residuals (n, classes) without the group of each image: its block of the matrix, inverted, times `values`."""
    residuals = values / np.maximum(diagonal, 1e-6)[:, None]
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    for g in np.flatnonzero(sizes > 1):
        rows = np.flatnonzero(group == g)
        residuals[rows] = np.linalg.solve(block(rows), values[rows])
    return residuals
