"""Every figure of a set of answers, each with its count and its 95 % interval.

Definitions, which are scikit-learn's where it has one:

precision, recall, F1   of a class: None where undefined, which is where a class is never predicted, does not occur, or
                        neither. Macro averages are over the classes that occur; a precision that is undefined
                        counts 0 in them (`labels=` those that occur, `zero_division=0`). The macro recall is the
                        balanced accuracy.
loss                    mean cross-entropy in nats, of the exact log-probability
Brier score             mean of the squared distance between probabilities and truth, summed over classes (Brier 1950):
                        0..2; with two classes half of that, as is usual
ROC AUC, AP             each class against the rest; None where a class does not occur (or nothing else does)
ECE                     expected calibration error, see `calibrate.calibration_error`

A proportion of counts has Wilson's interval, everything else a bootstrap's; both are wider where images come in
groups. numpy computes them: the bootstrap needs each figure for a thousand weightings of the images at once, which no
library offers, and with all weights 1 the same code gives the figure itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.metrics.bootstrap import Interval, Sample, intervals
from linnaeus.metrics.intervals import interval
from linnaeus.metrics.outputs import Outputs, confusion_matrix


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; None where undefined, or not to be told from these images."""

    value: float | None
    ci95: Interval = None

    @classmethod
    def share(cls, hits: np.ndarray, groups: np.ndarray | None) -> Estimate:
        """The share of hits, (n,) bool, in images of these groups, (n,) int64."""
        return cls(float(hits.mean()), interval(hits, groups)) if len(hits) else cls(None)


@dataclass(frozen=True)
class ClassMeasures:
    """How one class fares."""

    index: int
    support: int
    """Images of the class."""
    predicted: int
    """Images that were taken for it."""
    correct: int
    precision: Estimate
    recall: Estimate
    f1: Estimate
    roc_auc: Estimate
    average_precision: Estimate


CLASS_FIGURES = ("precision", "recall", "f1", "roc_auc", "average_precision")


@dataclass(frozen=True, eq=False)
class Measures:
    """All figures. `whole` holds those of all images by name, in the order in which they are shown."""

    n: int
    correct: int
    whole: dict[str, Estimate]
    classes: tuple[ClassMeasures, ...]
    confusion: np.ndarray
    """(classes, classes) int64 counts: rows true, columns predicted."""
    ece_by_chance: tuple[float, float]
    """Mean and 95th percentile of the calibration error of a perfect model with as many images."""
    resamples: int
    ranking_resamples: int
    groups: int | None = None
    """How many groups the images come in; None where each stands alone."""

    def __getitem__(self, name: str) -> Estimate:
        return self.whole[name]

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON: `name` and `name_ci95` for each figure, with the counts."""
        found: dict[str, Any] = {"n": self.n, "correct": self.correct}
        found |= {} if self.groups is None else {"groups": self.groups}
        for name, estimate in self.whole.items():
            found |= _entries(name, estimate)
        return found | {
            "ece_by_chance": dict(zip(("mean", "p95"), self.ece_by_chance, strict=True)),
            "bootstrap": {"resamples": self.resamples, "ranking_resamples": self.ranking_resamples},
        }

    def class_dicts(self, classes: tuple[str, ...], names: tuple[str, ...]) -> list[dict[str, Any]]:
        """For JSON: the figures of every class, in index order."""
        rows = []
        for each in self.classes:
            row: dict[str, Any] = {"class": classes[each.index], "name": names[each.index]}
            row |= {"support": each.support, "predicted": each.predicted, "correct": each.correct}
            for name in CLASS_FIGURES:
                row |= _entries(name, getattr(each, name))
            rows.append(row)
        return rows

    def confused(self, most: int = 10) -> list[tuple[int, int, int]]:
        """(true, predicted, count) of the pairs most often confused, at least one image each."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        flat = np.argsort(-wrong, axis=None, kind="stable")[:most]
        pairs = [tuple(map(int, np.unravel_index(i, wrong.shape))) for i in flat]
        return [(true, predicted, int(wrong[true, predicted])) for true, predicted in pairs if wrong[true, predicted]]


def measure(outputs: Outputs, seed: int = 0) -> Measures:
    """Every figure of a set of answers; at least one. Costs the bootstrap: not for every epoch of a training."""
    n, k = outputs.logits.shape
    sample, ones = Sample(outputs), np.ones((n, 1), np.float32)
    once = sample.figures(ones) | sample.ranking(ones)
    spread = intervals(outputs, seed)

    def figure(name: str) -> Estimate:
        return _estimate(once[name][0], spread.whole.get(name))

    matrix = confusion_matrix(outputs.labels, outputs.predicted, k)
    support, predicted, correct = matrix.sum(1).tolist(), matrix.sum(0).tolist(), np.diag(matrix).tolist()
    hits, groups, first = outputs.predicted == outputs.labels, outputs.groups, outputs.predicted
    whole = {
        "accuracy": Estimate.share(hits, groups),
        "top5": Estimate.share(outputs.in_top(5), groups) if k > 5 else Estimate(None),
        "balanced_accuracy": figure("balanced_accuracy"),
        "macro_precision": figure("macro_precision"),
        "macro_recall": figure("balanced_accuracy"),
        "macro_f1": figure("macro_f1"),
        "macro_roc_auc": figure("macro_roc_auc"),
        "macro_average_precision": figure("macro_average_precision"),
        "loss": figure("loss"),
        "brier": figure("brier"),
        "ece": figure("ece"),
        "ece_equal_mass": figure("ece_equal_mass"),
    }

    def among(chosen: np.ndarray) -> Estimate:
        return Estimate.share(hits[chosen], None if groups is None else groups[chosen])

    def of_class(c: int) -> ClassMeasures:
        def found(name: str) -> Estimate:
            return _estimate(once[name][c, 0], spread.by_class[name][c] if name in spread.by_class else None)

        return ClassMeasures(
            c, support[c], predicted[c], correct[c],
            precision=among(first == c), recall=among(outputs.labels == c),
            f1=found("f1"), roc_auc=found("roc_auc"), average_precision=found("average_precision"),
        )  # fmt: skip

    return Measures(
        n, sum(correct), whole, tuple(map(of_class, range(k))), matrix,
        spread.ece_by_chance, spread.resamples, spread.ranking_resamples,
        outputs.group_count,
    )  # fmt: skip


def _estimate(value: float, interval: Interval) -> Estimate:
    return Estimate(float(value), interval) if np.isfinite(value) else Estimate(None)


def _entries(name: str, estimate: Estimate) -> dict[str, Any]:
    return {name: estimate.value, f"{name}_ci95": None if estimate.ci95 is None else list(estimate.ci95)}
