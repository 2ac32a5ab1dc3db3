"""What a model answers for labeled images, at its own thresholds: a class, "unsure" or "unknown"."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.outputs import Outputs
from linnaeus.text import align, percent, percent_range

TITLES = {"class": "a class", "unsure": "unsure", "unknown": "unknown: none of the classes"}


@dataclass(frozen=True, eq=False)
class Verdicts:
    """The images by what the model answers; each has one verdict."""

    masks: dict[str, np.ndarray]  # (n,) bool: the images with the verdict `class`, `unsure` or `unknown`
    correct: np.ndarray  # (n,) bool: whether the most likely class is right, whatever the verdict
    groups: np.ndarray | None  # (n,) int64: images of a group are correlated; None where each stands alone

    @classmethod
    def of(cls, answers: Outputs, threshold: float, limits: Thresholds) -> Verdicts:
        """The verdicts for calibrated outputs of a model that is unsure below `threshold`."""
        unknown = limits.unknown(answers.distances, answers.confidence)
        sure = answers.confidence >= threshold  # NaN is unsure
        masks = {"class": ~unknown & sure, "unsure": ~unknown & ~sure, "unknown": unknown}
        return cls(masks, answers.correct, answers.groups)

    def to_dict(self) -> dict[str, Any]:
        """Verdict -> number, number with the right class, share of all images and its 95 % interval."""
        return {
            name: {
                "n": int(mask.sum()),
                "correct": int(self.correct[mask].sum()),
                "share": float(mask.mean()),
                "share_ci95": list(proportion_interval(mask, self.groups)),
            }
            for name, mask in self.masks.items()
        }

    def lines(self) -> list[str]:
        """A table for the terminal."""
        rows = [("", "images", "share", "95 % interval", "most likely class")]
        for name, entry in self.to_dict().items():
            right = f"{entry['correct']:,} right, {entry['n'] - entry['correct']:,} wrong" if entry["n"] else ""
            interval = percent_range(entry["share_ci95"])
            rows.append((TITLES[name], f"{entry['n']:,}", percent(entry["share"]), interval, right))
        return ["what the model answers, at its own thresholds", *align(rows, "<>>><")]
