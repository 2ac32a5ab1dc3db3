"""Accuracy by slice: on the images of each value of a column, such as the camera, and which value is worse than others.

The smallest slice has the most extreme accuracy by chance alone, so a slice is called worse only where a test against
all other images says so after correction for the number of slices (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from linnaeus.metrics.intervals import design_effect, proportion_interval
from linnaeus.metrics.mcnemar import SIGNIFICANT, holm


@dataclass(frozen=True)
class Slice:
    """The images that have one value of a column."""

    value: str
    n: int
    correct: int
    interval: tuple[float, float]  # 95 % interval of the accuracy; it respects groups
    difference: float  # accuracy minus that of all other images, in -1..1; NaN where there are none
    p: float  # corrected p-value of the difference, two-sided; 1 where there are no other images

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    @property
    def is_worse(self) -> bool:
        """Whether the accuracy is significantly below that of all other images."""
        return self.p < SIGNIFICANT and self.difference < 0

    def to_dict(self) -> dict[str, Any]:
        difference = None if math.isnan(self.difference) else self.difference
        return {
            "value": self.value,
            "n": self.n,
            "correct": self.correct,
            "accuracy": self.accuracy,
            "accuracy_ci95": list(self.interval),
            "difference": difference,
            "p": self.p,
            "significantly_worse": self.is_worse,
        }


def accuracy_by_slice(correct: np.ndarray, values: Sequence[str], groups: np.ndarray | None = None) -> list[Slice]:
    """Slices of the images by `values` (n,), the lowest accuracy first; `correct` (n,) bool.

    `groups` (n,) int64 numbers the group of each image. Without groups the test is Fisher's exact one. With groups it
    is a z-test of two proportions at their effective sample sizes (Rao and Scott 1992), because Fisher's test assumes
    independent images.
    """
    of = np.asarray(values)
    names = sorted(set(values))
    members = [of == name for name in names]
    corrected = holm([_p_value(correct, inside, groups) for inside in members])
    slices = []
    for name, inside, p in zip(names, members, corrected, strict=True):
        hits, others = correct[inside], correct[~inside]
        interval = proportion_interval(hits, None if groups is None else groups[inside])
        difference = float(hits.mean() - others.mean()) if len(others) else math.nan
        slices.append(Slice(name, len(hits), int(hits.sum()), interval, difference, p))
    return sorted(slices, key=lambda slice_: (slice_.accuracy, -slice_.n))


def _p_value(correct: np.ndarray, inside: np.ndarray, groups: np.ndarray | None) -> float:
    """Two-sided p-value of the difference between the images `inside` a slice and all others."""
    if inside.all():
        return 1.0
    parts = (inside, ~inside)
    if groups is None:
        from scipy.stats import fisher_exact  # half a second, which only this test needs

        return float(fisher_exact([[int((correct & p).sum()), int((~correct & p).sum())] for p in parts]).pvalue)
    sizes = [p.sum() / design_effect(correct[p], groups[p])[0] for p in parts]
    if min(sizes) == 0:  # a single group says nothing about others
        return 1.0
    pooled = correct.mean()
    deviation = math.sqrt(pooled * (1 - pooled) * (1 / sizes[0] + 1 / sizes[1]))
    if deviation == 0:
        return 1.0
    return 2 * float(ndtr(-abs(correct[inside].mean() - correct[~inside].mean()) / deviation))
