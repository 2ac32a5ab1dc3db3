"""Intervals of areas under ROC curves: the variance of DeLong et al. 1988, on the logit scale.

The logit keeps the interval within 0..1 and makes it asymmetric near 1, where percentiles of the bootstrap are too
high: a resample repeats the images that happen to be ranked well. Coverage was measured on 300 samples each of 60 and
200 images, of which a half or an eighth are positive, with normal scores and with a few positives scored like
negatives, at areas of 0.9, 0.98 and 0.995: 90 to 98 %. Bootstrap percentiles lay above the true area for up to 17 % of
the samples and covered it in 83 % at worst, although samples of an area of 1 had no interval and count as covered.

The variance is a sum of squares over the images, each of which has an influence on the area. Images of a group are
summed before they are squared, as in Obuchowski 1997, and few groups widen the interval by Student's quantile.

References
----------
E. DeLong, D. DeLong and D. Clarke-Pearson, Comparing the areas under two or more correlated ROC curves, 1988.
N. Obuchowski, Nonparametric analysis of clustered ROC curve data, Biometrics 53, 567-578, 1997.
C. J. Clopper and E. S. Pearson, The use of confidence or fiducial limits illustrated in the case of the binomial, 1934.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from linnaeus.metrics.intervals import NORMAL_QUANTILE, Estimate, lowest_mean, student_quantile


def auc_influences(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """The area under the ROC curve, and how much each image changes it, (n,): the squares sum to its variance.

    `scores` (n,) are larger for positive images, `positive` (n,) bool has both kinds; equal scores count as half.
    """
    influences = np.empty(len(scores))
    area = 0.0
    for kind in (True, False):
        rows = positive == kind
        own, other = scores[rows], np.sort(scores[~rows])
        below = np.searchsorted(other, own, "left") + np.searchsorted(other, own, "right")
        placements = below / (2 * len(other))  # the share of the other kind that is lower, ties as half
        area = float(placements.mean()) if kind else area
        n = len(own)
        deviations = placements - placements.mean()
        # A single image has no spread to estimate: the largest possible variance, 1/4, stands in.
        part = deviations / math.sqrt(n * (n - 1)) if n > 1 else np.array([0.5])
        influences[rows] = part if kind else -part
    return area, influences


def area_interval(
    area: float, influences: np.ndarray, smaller: Iterable[np.ndarray], groups: np.ndarray | None = None
) -> tuple[float, float]:
    """95 % interval of an area, or of the mean of several, with the influences (n,) of the images.

    `groups` (n,) int64 are numbered from 0 on without gaps; None where each image stands alone.
    At exactly 0 or 1 the variance is 0. The interval is then that of shares of which all images are right. For each
    area these are the images `smaller`, (n,) bool, of the kind with fewer images or groups.
    """
    if area in (0, 1):
        bound = lowest_mean(smaller, groups)
        return (bound, 1.0) if area == 1 else (0.0, 1 - bound)
    quantile = NORMAL_QUANTILE
    if groups is not None:
        influences = np.bincount(groups, weights=influences)
        if (k := len(influences)) == 1:
            return 0.0, 1.0
        quantile = math.sqrt(k / (k - 1)) * student_quantile(k - 1)
    half = quantile * math.sqrt(float((influences**2).sum())) / (area * (1 - area))
    center = math.log(area / (1 - area))
    low, high = (1 / (1 + math.exp(-max(min(center + side, 700.0), -700.0))) for side in (-half, half))
    return low, high


def roc_estimates(
    classes: Iterable[tuple[np.ndarray, np.ndarray]], groups: np.ndarray | None
) -> tuple[list[Estimate], Estimate]:
    """The area of each class, and their mean, from its scores (n,) and its images, (n,) bool.

    The area of a class that has all images or none is undefined, and not part of the mean.
    """
    estimates, areas, kinds = list[Estimate](), list[float](), list[np.ndarray]()
    total: np.ndarray | float = 0.0
    if groups is not None:  # once for all classes
        groups = np.unique(groups, return_inverse=True)[1]
    for scores, positive in classes:
        if positive.all() or not positive.any():
            estimates.append(Estimate(None))
            continue
        area, influences = auc_influences(scores, positive)
        smaller = smaller_kind(positive, groups)
        estimates.append(Estimate(area, area_interval(area, influences, [smaller], groups)))
        areas.append(area)
        if area in (0, 1):  # only where all are is it needed, and the memory of many classes is not
            kinds.append(smaller)
        total = total + influences
    if not areas:
        return estimates, Estimate(None)
    mean = float(np.mean(areas))
    assert isinstance(total, np.ndarray)
    return estimates, Estimate(mean, area_interval(mean, total / len(areas), kinds, groups))


def smaller_kind(positive: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
    """(n,) bool: the positive images or the others, whichever are fewer, or are in fewer groups, (n,) int64."""
    kinds = positive, ~positive
    return min(kinds, key=lambda rows: np.count_nonzero(rows if groups is None else np.bincount(groups[rows])))
