"""Two classifiers on the same images: is one better, or was it three images?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.metrics.intervals import NORMAL, design, wilson


@dataclass(frozen=True)
class Paired:
    """What two classifiers got right of the same n images."""

    n: int
    both: int
    only_first: int
    only_second: int
    tossed: tuple[int, int] | None = None
    """Of images in groups: in how many groups the first, and the second, got more right."""
    effect: float = 1.0
    """By how much groups widen the variance of the difference (`shares.design`)."""
    z: float = NORMAL

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray, groups: np.ndarray | None = None) -> Paired:
        """From whether each was right, (n,) bool, image by image; `groups` (n,) int64: which belong together."""
        assert len(first) == len(second)
        counts = len(first), int((first & second).sum()), int((first & ~second).sum()), int((~first & second).sum())
        if groups is None:
            return cls(*counts)
        ahead = second.astype(np.int64) - first.astype(np.int64)
        lead = np.bincount(np.unique(groups, return_inverse=True)[1], weights=ahead)
        return cls(*counts, (int((lead < 0).sum()), int((lead > 0).sum())), *design(ahead, groups))

    @property
    def difference(self) -> float:
        """Accuracy of the second less that of the first, in -1..1."""
        return (self.only_second - self.only_first) / self.n

    @property
    def p(self) -> float:
        """McNemar's exact p-value, two-sided (McNemar 1947): how likely a coin is to fall at least so unevenly.

        It is tossed for each image that only one of the two got right; of images in groups, for each group of which
        one got more right, so that no patient is counted twice. 1 where there are none.
        """
        for_first, for_second = self.tossed or (self.only_first, self.only_second)
        fewer, tossed = min(for_first, for_second), for_first + for_second
        ways, total = 1, 0
        for k in range(fewer + 1):  # whole numbers: exact however many
            total += ways
            ways = ways * (tossed - k) // (k + 1)
        return min(1.0, 2 * total / 2**tossed)

    @property
    def difference_ci95(self) -> tuple[float, float]:
        """The 95 % interval of `difference`, from the two Wilson intervals (Newcombe 1998b, method 10).

        R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on paired
        data, Statistics in Medicine 17, 2635-2650. With groups, of as many images as these are worth.
        """
        if math.isinf(self.effect):
            return -1.0, 1.0
        n, a, b, c = (count / self.effect for count in (self.n, self.both, self.only_second, self.only_first))
        d = max(0.0, n - a - b - c)
        second, first = (a + b) / n, (a + c) / n
        low2, high2 = wilson(a + b, n, self.z)
        low1, high1 = wilson(a + c, n, self.z)
        product = (a + b) * (c + d) * (a + c) * (b + d)
        cross: float = a * d - b * c
        if cross > 0:  # a continuity correction, towards independence
            cross = max(cross - n / 2, 0)
        phi = cross / math.sqrt(product) if product else 0.0

        def reach(x: float, y: float) -> float:
            return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

        down, up = reach(second - low2, high1 - first), reach(high2 - second, first - low1)
        return max(-1.0, self.difference - down), min(1.0, self.difference + up)

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "only_first": self.only_first,
            "only_second": self.only_second,
            "difference": self.difference,
            "difference_ci95": list(self.difference_ci95),
            "p": self.p,
            **({} if self.tossed is None else {"groups": {"first": self.tossed[0], "second": self.tossed[1]}}),
        }


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for how many there are (Holm 1979): below 0.05, the chance of any false alarm is 5 %."""
    corrected = [0.0] * len(p)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = largest
    return corrected
