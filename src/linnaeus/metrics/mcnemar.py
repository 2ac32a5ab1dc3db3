"""Paired comparison of two classifiers on the same images: test, interval, and correction for many comparisons.

References
----------
Q. McNemar, Note on the sampling error of the difference between correlated proportions, Psychometrika 12, 1947.
R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired data,
Statistics in Medicine 17, 2635-2650, 1998.
S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6, 65-70, 1979.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr

from linnaeus.metrics.intervals import NORMAL_QUANTILE, design_effect, wilson

SIGNIFICANT = 0.05  # a smaller p is called significant


def significance(p: float) -> str:
    """The result of a test in words."""
    return "significant" if p < SIGNIFICANT else "no significant difference"


@dataclass(frozen=True)
class McNemar:
    """Numbers of images that both, one or none of two classifiers got right."""

    n: int
    both: int
    only_first: int
    only_second: int
    # With groups: in how many of them the first, and the second, classifier got more images right.
    group_wins: tuple[int, int] | None = None
    effect: float = 1.0  # design effect of the groups on the variance of the difference (`intervals.design_effect`)
    z: float = NORMAL_QUANTILE

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None) -> McNemar:
        """Compare two classifiers by which images each got right, (n,) bool, in the same order.

        `groups`, (n,) int64, numbers the group of each image; None means independent images.
        """
        assert len(first) == len(second)
        counts = len(first), int((first & second).sum()), int((first & ~second).sum()), int((~first & second).sum())
        if groups is None:
            return cls(*counts)
        gain = second.astype(np.int64) - first.astype(np.int64)
        lead = np.bincount(np.unique(groups, return_inverse=True)[1], weights=gain)
        return cls(*counts, (int((lead < 0).sum()), int((lead > 0).sum())), *design_effect(gain, groups))

    @property
    def difference(self) -> float:
        """Accuracy of the second classifier minus that of the first, in -1..1."""
        return (self.only_second - self.only_first) / self.n

    @property
    def p(self) -> float:
        """p-value of McNemar's exact test, two-sided.

        Under the null hypothesis an image that only one classifier got right favors either of them with probability
        1/2 (a binomial sign test). With groups the unit is the group in which one classifier got more images right, so
        that a patient counts once. 1 where there is no such image or group.
        """
        first, second = self.group_wins or (self.only_first, self.only_second)
        return min(1.0, 2 * float(bdtr(min(first, second), first + second, 0.5)))

    @property
    def difference_ci95(self) -> tuple[float, float]:
        """95 % interval of `difference`: Newcombe's method 10, a hybrid of two Wilson intervals.

        With groups the counts are divided by the design effect; with a single group the interval is (-1, 1).
        """
        # A single group: nothing can be said.
        if math.isinf(self.effect):
            return -1.0, 1.0
        n, a, b, c = (count / self.effect for count in (self.n, self.both, self.only_second, self.only_first))
        d = max(0.0, n - a - b - c)
        second, first = (a + b) / n, (a + c) / n
        low2, high2 = wilson(a + b, n, self.z)
        low1, high1 = wilson(a + c, n, self.z)
        product = (a + b) * (c + d) * (a + c) * (b + d)
        cross: float = a * d - b * c
        if cross > 0:  # continuity correction of the correlation, towards independence
            cross = max(cross - n / 2, 0)
        phi = cross / math.sqrt(product) if product else 0.0

        def distance(x: float, y: float) -> float:
            return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

        below, above = distance(second - low2, high1 - first), distance(high2 - second, first - low1)
        return max(-1.0, self.difference - below), min(1.0, self.difference + above)

    def to_dict(self) -> dict[str, Any]:
        """The comparison for JSON."""
        wins = self.group_wins
        return {
            "n": self.n,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "difference": self.difference,
            "difference_ci95": list(self.difference_ci95),
            "p": self.p,
            **({} if wins is None else {"groups": {"first": wins[0], "second": wins[1]}}),
        }


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of p-values, in their order.

    Rejecting where the corrected value is below 0.05 keeps the probability of any false rejection at 5 %, without
    assumptions on how the tests depend on each other.
    """
    corrected = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected
