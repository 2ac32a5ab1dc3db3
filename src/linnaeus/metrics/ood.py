"""Unknown images: the distance of an image from the training images, and the thresholds beyond which it is unknown.

Two scores are combined, because each misses what the other sees. The distance from the training images' features finds
something else entirely (far); the largest calibrated probability finds similar things of another kind (near).

The distance is 1 minus the cosine of the angle between the features of an image and the nearest of a few reference
vectors: Sun et al. 2022 (arXiv:2204.06507, section 3), with the centers of the training features instead of all of
them. An image is unknown where its distance is above one threshold, or its probability below the other.

References
----------
Y. Sun, Y. Ming, X. Zhu and Y. Li, Out-of-distribution detection with deep nearest neighbors, ICML 2022.
V. Vovk, A. Gammerman and G. Shafer, Algorithmic Learning in a Random World, 2005 (split-conformal prediction).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import betaincinv

from linnaeus.metrics.roc import area_interval, auc_influences, smaller_kind

ACCEPTED = 0.95  # share of known images that the thresholds accept
ROUNDING = 1e-5  # the smallest threshold of a distance: below, it is rounding of float32
CHUNK = 4096  # images compared with the references at a time


@dataclass(frozen=True)
class Thresholds:
    """From where on an image is unknown, chosen on known images."""

    distance: float | None  # an image at a larger distance is unknown; None where the model has no distance
    probability: float  # an image is unknown where its most likely class is less probable
    n: int  # number of known images that chose the thresholds
    accepted: int  # number of these that they accept
    target: float = ACCEPTED  # share of known images to accept, in 0..1
    # Training images among the `n`, each scored by a model that had not seen it; the others are validation images.
    cross_validated: int = 0

    @property
    def few(self) -> bool:
        """Whether there are too few images for the target: a new image may be beyond each score that chose them."""
        return math.ceil((self.n + 1) * self.target - 1e-9) + self._scores - 1 > self.n

    @property
    def assured(self) -> float:
        """Share of new images of the same kind that is accepted at least, with a confidence of 97.5 %.

        With one score it is a quantile of the Beta distribution of the coverage (Vovk 2012, Conditional validity of
        inductive conformal predictors, proposition 2a). A second score may reject as if one image fewer was accepted.
        """
        inside = self.accepted - (self._scores - 1)
        return float(betaincinv(inside, self.n + 1 - inside, 0.025)) if inside > 0 else 0.0

    @property
    def chosen_on(self) -> str:
        """The images that chose the thresholds, in words."""
        if not self.cross_validated:
            return "validation images"
        return f"images ({self.n - self.cross_validated:,} of validation, {self.cross_validated:,} cross-validated)"

    @property
    def _scores(self) -> int:
        """Number of scores that can reject an image."""
        return max(1, (self.distance is not None) + (self.probability > 0))

    def unknown(self, distance: np.ndarray | None, probability: np.ndarray) -> np.ndarray:
        """(n,) bool. `distance` (n,), None without one; `probability` (n,) of the most likely class."""
        near = ~(probability >= self.probability)  # NaN is unknown
        return near if self.distance is None or distance is None else near | ~(distance <= self.distance)

    def is_unknown(self, distance: float | None, probability: float) -> bool:
        """`unknown` for one image."""
        return bool(self.unknown(None if distance is None else np.array([distance]), np.array([probability]))[0])

    def to_dict(self) -> dict[str, Any]:
        """For JSON and for the model file."""
        return {
            "distance": self.distance,
            "probability": self.probability,
            "n": self.n,
            "accepted": self.accepted,
            "target": self.target,
            "cross_validated": self.cross_validated,
        }


def choose_thresholds(
    distance: np.ndarray | None, probability: np.ndarray | None, target: float = ACCEPTED
) -> Thresholds:
    """The thresholds that accept a share `target` of known images, by the scores (n,) of n of them, at least one.

    Both scores get the same share of rejections. An image's nonconformity is the worse of its two ranks, and the
    threshold its split-conformal quantile, the ceil((n + 1) * target)-th smallest value: a new image of the same kind
    is accepted with probability `target`, on average over such samples. Without one of the scores (None) only the
    other counts: each image passes the threshold of the missing one.
    """
    scores = [score for score in (distance, None if probability is None else -probability) if score is not None]
    n = len(scores[0])
    ranks = [np.searchsorted(np.sort(score), score, "right") for score in scores]
    # The conformal quantile of the larger of both ranks: both scores must accept an image.
    level = np.sort(np.maximum.reduce(ranks))[min(math.ceil((n + 1) * target - 1e-9), n) - 1]
    accepted = [score[rank <= level].max() for score, rank in zip(scores, ranks, strict=True)]
    # A threshold lies halfway to the next score: the same image, computed in another batch, differs by rounding.
    following = [score[score > most].min(initial=math.inf) for score, most in zip(scores, accepted, strict=True)]
    limits = [
        float((most + after) / 2 if math.isfinite(after) else most + 1e-3 * abs(most) + 1e-6)
        for most, after in zip(accepted, following, strict=True)
    ]
    thresholds = Thresholds(
        distance=None if distance is None else max(limits[0], ROUNDING),
        probability=0.0 if probability is None else max(0.0, -limits[-1]),
        n=n,
        accepted=0,
        target=target,
    )
    known = ~thresholds.unknown(distance, np.ones(n) if probability is None else probability)
    return replace(thresholds, accepted=int(known.sum()))


def combined_scores(known: Sequence[np.ndarray], scores: Sequence[np.ndarray]) -> np.ndarray:
    """Several scores (n,) as one in 0..1: the largest share of the `known` images with a lower score.

    Larger scores mean less known. An image is rejected by thresholds that reject the same share of known images by
    each score exactly where this one is above a threshold.
    """
    below = [
        np.searchsorted(np.sort(base), score, "left") / len(base) for base, score in zip(known, scores, strict=True)
    ]
    return np.maximum.reduce(below)


def unit(features: np.ndarray) -> np.ndarray:
    """(n, d) features as directions of length 1, float32; a zero vector stays zero."""
    features = features.astype(np.float32)
    length = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(length > 0, length, 1)


def distances(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """(n, d) features, (m, d) references -> (n,) cosine distance of the nearest reference, 0 to 2."""
    references = unit(references)  # float16 has rounded their length by more than the distance of a near image
    nearest = [
        (unit(features[start : start + CHUNK]) @ references.T).max(1) for start in range(0, len(features), CHUNK)
    ]
    return np.maximum(1 - np.concatenate(nearest), 0) if nearest else np.zeros(0, np.float32)


def auroc(
    known: np.ndarray,
    unknown: np.ndarray,
    known_groups: np.ndarray | None = None,
    unknown_groups: np.ndarray | None = None,
) -> tuple[float, tuple[float, float]]:
    """The probability that an unknown image has a larger score than a known one, and its 95 % interval.

    Equal scores count as half. Images of each kind may come in groups, (n,) int64.
    """
    unlike = np.r_[np.zeros(len(known), bool), np.ones(len(unknown), bool)]
    area, influences = auc_influences(np.r_[known, unknown], unlike)
    groups = None
    if known_groups is not None or unknown_groups is not None:
        parts = (known, known_groups), (unknown, unknown_groups)
        numbers = [np.arange(len(scores)) if of is None else of for scores, of in parts]
        groups = np.unique(np.c_[unlike, np.concatenate(numbers)], axis=0, return_inverse=True)[1].ravel()
    return area, area_interval(area, influences, [smaller_kind(unlike, groups)], groups)


def passes_as_known(known: np.ndarray, unknown: np.ndarray) -> np.ndarray:
    """(n,) bool: the unknown images whose score is not above the quantile that accepts a share `ACCEPTED` of the known.

    Their share is the false positive rate at 95 % true positives.
    """
    threshold = np.sort(known)[min(math.ceil(ACCEPTED * len(known) - 1e-9), len(known)) - 1]
    return unknown <= threshold
