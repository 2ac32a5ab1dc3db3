"""The headline figures of a set of outputs: accuracy, balanced accuracy, loss, each with its count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from linnaeus.metrics.intervals import interval
from linnaeus.metrics.outputs import Outputs


@dataclass(frozen=True)
class Figures:
    """How good the answers are. Shares are in 0..1."""

    n: int
    correct: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    """Wilson's interval; with groups, of as many images as these are worth (`shares.interval`)."""
    top5: float | None
    """Share with the right class among the five most likely; None with five classes or fewer."""
    balanced_accuracy: float
    """Mean recall over the classes that occur."""
    loss: float
    """Mean cross-entropy in nats."""
    groups: int | None = None
    """How many groups the images come in; None where each stands alone."""

    def to_dict(self) -> dict[str, Any]:
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.groups is None:
            del found["groups"]
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Figures:
        """What `to_dict` gave, perhaps among others, as JSON gives it back."""
        values = {field.name: found[field.name] for field in fields(cls) if field.name != "groups"}
        return cls(**{**values, "accuracy_ci95": tuple(values["accuracy_ci95"]), "groups": found.get("groups")})

    def __str__(self) -> str:
        low, high = self.accuracy_ci95
        of = f"{self.n}" if self.groups is None else f"{self.n} in {self.groups} groups"
        return f"{self.accuracy:.2%} ({self.correct} of {of}, 95 % interval {low:.1%} to {high:.1%})"


def figures(outputs: Outputs) -> Figures:
    """The figures of a set of answers; at least one."""
    labels = outputs.labels
    n, k = outputs.logits.shape
    right = outputs.predicted == labels
    top5 = float(outputs.in_top(5).mean()) if k > 5 else None
    support = np.bincount(labels, minlength=k)
    recall = np.bincount(labels[right], minlength=k)[support > 0] / support[support > 0]
    correct = int(right.sum())
    within, loss = interval(right, outputs.groups), float(outputs.losses.mean())
    return Figures(n, correct, correct / n, within, top5, float(recall.mean()), loss, outputs.group_count)
