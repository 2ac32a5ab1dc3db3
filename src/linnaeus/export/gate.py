"""The gate: how far predictions of an export may differ from the original, and why an export is rejected.

Works on predictions only; `reference_model.py` runs the two models on the same images to get them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from linnaeus.metrics.mcnemar import SIGNIFICANT, McNemar
from linnaeus.metrics.outputs import Outputs
from linnaeus.text import percent

SAME_PIXELS = 1e-4  # largest allowed difference of a probability on the same pixels, for a float export

RAW_PIXELS = 1e-2  # largest allowed difference of a probability where the graph also resizes, for a float export


@dataclass(frozen=True)
class Comparison:
    """Predictions of an export compared with those of the original model, on the same images."""

    n: int
    differing: int  # number of images whose predicted class differs, or with several labels any of them
    # Number of those for which the original's two largest probabilities are RAW_PIXELS or more apart; with several
    # labels, the probability of a label that differs and its threshold.
    clearly: int
    largest: float  # largest difference of a probability
    mean: float  # mean over the images of their largest difference
    accuracy: float
    original_accuracy: float
    paired: McNemar
    unsure: int | None = None  # number of images for which only one of the two is unsure; None with several labels

    @classmethod
    def of(
        cls, original: Outputs, export: Outputs, thresholds: np.ndarray | None = None, threshold: float = 0.0
    ) -> Comparison:
        """Compare two sets of calibrated outputs for the same images.

        `thresholds` (labels,): of several labels. `threshold`: the probability below which the model is unsure.
        """
        p, q = original.probabilities, export.probabilities
        answers, others = answers_of(original, thresholds), answers_of(export, thresholds)
        changed = answers != others
        differs = changed.any(1)
        if thresholds is None:
            top = np.sort(p, axis=1)
            # How clear the decision of the original was; near a tie a changed answer means little.
            margin = top[:, -1] - top[:, -2] if p.shape[1] > 1 else np.ones(len(p))
        else:
            margin = np.where(changed, np.abs(p - thresholds), 0).max(1)
        labels = original.labels if original.several else original.labels[:, None]
        unsure = None if thresholds is not None else int(((p.max(1) < threshold) != (q.max(1) < threshold)).sum())
        original_correct, export_correct = (answers == labels).all(1), (others == labels).all(1)
        return cls(
            n=len(p),
            differing=int(differs.sum()),
            # Only changes of clear decisions count against raw pixels.
            clearly=int((differs & (margin >= RAW_PIXELS)).sum()),
            largest=float(np.abs(p - q).max()),
            mean=float(np.abs(p - q).max(1).mean()),
            accuracy=float(export_correct.mean()),
            original_accuracy=float(original_correct.mean()),
            paired=McNemar.of(original_correct, export_correct),
            unsure=unsure,
        )

    @property
    def agreement(self) -> float:
        return 1 - self.differing / self.n

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"agreement": self.agreement, "paired": self.paired.to_dict()}


def answers_of(outputs: Outputs, thresholds: np.ndarray | None) -> np.ndarray:
    """The predicted class of each image, (n, 1); or with `thresholds` its labels, (n, labels) bool."""
    return outputs.predicted[:, None] if thresholds is None else outputs.probabilities >= thresholds


def why_not_float(prepared: Comparison, raw: Comparison) -> str | None:
    """Reason to reject a float export; None if it passes."""
    if prepared.differing:
        return f"{prepared.differing} of {prepared.n} images get another class on the same pixels; none is allowed"
    # "not <=" instead of ">": a NaN must not pass.
    if not prepared.largest <= SAME_PIXELS:
        return f"a probability differs by {prepared.largest:.2g} on the same pixels; {SAME_PIXELS:g} is allowed"
    if not raw.largest <= RAW_PIXELS:
        return f"a probability differs by {raw.largest:.2g} at full size; {RAW_PIXELS:g} is allowed"
    if raw.clearly:
        return f"{raw.clearly} of {raw.n} images clearly get another class at full size; none is allowed"
    return None


def why_not_int8(comparison: Comparison, agree: float) -> str | None:
    """Reason to reject an int8 export after a comparison on prepared or raw images; None if it passes."""
    if comparison.agreement < agree:
        required = percent(agree, exact=True)
        return f"agrees on {percent(comparison.agreement)} of {comparison.n} images; {required} is required"
    if comparison.paired.difference < 0 and comparison.paired.p < SIGNIFICANT:
        before, after, p = comparison.original_accuracy, comparison.accuracy, comparison.paired.p
        return f"is less accurate ({percent(after)} instead of {percent(before)}, p = {p:.2g})"
    return None
