"""Classification metrics, each with the number of images and a 95 % confidence interval.

Definitions, which are scikit-learn's where it has one:

accuracy                share of images whose predicted class is the label
top-5                   share of images whose label is among the five most likely classes; None with ten classes or
                        fewer, of which five are half or more
precision, recall, F1   of a class; None where undefined: without predictions of the class (precision), without images
                        of it (recall), or without either (F1). Macro averages are over the classes that occur; an
                        undefined precision counts as 0 (scikit-learn: `labels=` the occurring classes,
                        `zero_division=0`)
balanced accuracy       the macro-averaged recall
log loss                mean cross-entropy in nats, from exact log-probabilities
Brier score             mean squared distance of the probabilities from the one-hot label: 0..2, and 0..1 with two
                        classes (`Outputs.brier_scores`)
ROC AUC, AP             area under the ROC curve and average precision of a class against the rest; None where the
                        class does not occur, and the area where nothing else does
ECE                     expected calibration error (`calibration.calibration_error`)

Proportions of images, and F1, have Wilson's interval (intervals.py), all other metrics a bootstrap interval
(bootstrap.py), that of means over classes widened where a class has few images; all account for images in groups.

Where a new metric goes: a term that is averaged over the images becomes a property of `Outputs`. Its weighted mean, or
any other statistic of weighted images, goes into `WeightedSample.metrics` (bootstrap.py), which gives it an interval.
Then name it in `compute_metrics` below, and in the table of `report/evaluation_text.py`. `figures` and
`point_estimates` are unweighted means of the same terms, without a bootstrap, for use in every epoch; they sum in
another order, so the last digit may differ.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from linnaeus.metrics.bootstrap import Resampled, WeightedSample, resample
from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.intervals import Estimate, proportion_interval, rank_cost
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.roc import roc_estimates
from linnaeus.text import percent, percent_range

FEW_CLASSES = 10
"""Up to this many classes, the top-5 accuracy is left out: it says little where five classes are half of all."""

OPTIONAL = ("groups", "most_frequent")  # figures that do not always exist
CLASS_METRICS = ("precision", "recall", "f1", "roc_auc", "average_precision")


@dataclass(frozen=True)
class Figures:
    """The headline metrics of a set of images, without a bootstrap: cheap enough for every epoch. Shares in 0..1."""

    n: int
    correct: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    top5: float | None
    balanced_accuracy: float
    loss: float
    groups: int | None = None  # number of groups; None where the images come in none
    # Images of the most frequent class, which is what a model that always answers it gets right.
    most_frequent: int | None = None

    def to_dict(self) -> dict[str, Any]:
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {key: value for key, value in values.items() if value is not None or key not in OPTIONAL}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Figures:
        """The inverse of `to_dict`; further keys are ignored."""
        known: dict[str, Any] = {f.name: values.get(f.name) for f in fields(cls) if f.name in OPTIONAL}
        known |= {f.name: values[f.name] for f in fields(cls) if f.name not in OPTIONAL}
        return cls(**{**known, "accuracy_ci95": tuple(known["accuracy_ci95"])})

    def __str__(self) -> str:
        n = f"{self.n}" if self.groups is None else f"{self.n} in {self.groups} groups"
        text = f"{percent(self.accuracy, 2)} ({self.correct} of {n}, 95 % interval {percent_range(self.accuracy_ci95)})"
        no_better = no_better_than_one_class(self.to_dict())
        return f"{text}, {no_better}" if no_better else text


def no_better_than_one_class(values: Mapping[str, Any]) -> str:
    """What to know of an accuracy that a model without any knowledge of the images has too; empty for others.

    `values`: accuracy_ci95, most_frequent and n, as in metrics.json; files of earlier versions lack some.
    """
    n, count, interval = (values.get(name) for name in ("n", "most_frequent", "accuracy_ci95"))
    # Where all images are of one class, no other answer could be better.
    if not count or not interval or count == n or count / n < interval[0]:
        return ""
    return f"not significantly better than always answering the most frequent class: {percent(count / n, 2)}"


def figures(outputs: Outputs) -> Figures:
    """The headline metrics of the outputs of at least one image."""
    correct = outputs.correct
    n, classes = outputs.logits.shape
    return Figures(
        n=n,
        correct=int(correct.sum()),
        accuracy=float(correct.mean()),
        accuracy_ci95=proportion_interval(correct, outputs.groups),
        top5=float(outputs.in_top(5).mean()) if classes > FEW_CLASSES else None,
        balanced_accuracy=balanced_accuracy(confusion_matrix(outputs.labels, outputs.predicted, classes)),
        loss=float(outputs.losses.mean()),
        groups=outputs.group_count,
        most_frequent=int(np.bincount(outputs.labels).max()),
    )


def point_estimates(outputs: Outputs) -> dict[str, float]:
    """Accuracy, log loss, Brier score and calibration errors, without intervals."""
    correct, confidence = outputs.correct, outputs.confidence
    return {
        "accuracy": float(correct.mean()),
        "loss": float(outputs.losses.mean()),
        "brier": float(outputs.brier_scores.mean()),
        "ece": calibration_error(confidence, correct),
        "ece_equal_mass": calibration_error(confidence, correct, equal_mass=True),
    }


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64 counts: rows are labels, columns predictions."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def balanced_accuracy(confusion: np.ndarray) -> float:
    """Mean recall over the classes that occur."""
    support = confusion.sum(1)
    occurs = support > 0
    return float((np.diag(confusion)[occurs] / support[occurs]).mean())


def most_confused(confusion: np.ndarray, count: int = 10) -> list[tuple[int, int, int]]:
    """(label, predicted, images) of at most `count` pairs of different classes with at least one image.

    Sorted by the number of images, then by their share of the class, then by class.
    """
    label, predicted = np.nonzero(confusion * (1 - np.eye(len(confusion), dtype=confusion.dtype)))
    images = confusion[label, predicted]
    share = images / confusion.sum(1)[label]
    order = np.lexsort((predicted, label, -share, -images))[:count]
    return [(int(label[i]), int(predicted[i]), int(images[i])) for i in order]


def estimate_entries(estimates: Mapping[str, Estimate]) -> dict[str, Any]:
    """`name` and `name_ci95` of each estimate for JSON."""
    entries: dict[str, Any] = {}
    for name, estimate in estimates.items():
        entries[name] = estimate.value
        entries[f"{name}_ci95"] = None if estimate.ci95 is None else list(estimate.ci95)
    return entries


@dataclass(frozen=True)
class ClassMetrics:
    """The metrics of one class, or of one label where images may have several."""

    index: int
    support: int  # images with this label
    predicted: int  # images predicted as this class, or that are given this label
    correct: int
    estimates: dict[str, Estimate]  # by the names of CLASS_METRICS

    def __getitem__(self, name: str) -> Estimate:
        return self.estimates[name]


def class_metrics(
    index: int,
    labels: np.ndarray,
    decisions: np.ndarray,
    groups: np.ndarray | None,
    drawn: Resampled,
    area: Estimate,
) -> ClassMetrics:
    """The metrics of a class: `labels` and `decisions` (n,) bool, whether an image is of it and is predicted as it.

    `area` is that under its ROC curve.
    """

    def share(hits: np.ndarray, of: np.ndarray) -> Estimate:
        """Of the images `of` those that are `hits`, both (n,) bool: a proportion needs no bootstrap."""
        return Estimate.proportion(hits[of], None if groups is None else groups[of])

    estimates = {"precision": share(labels, decisions), "recall": share(decisions, labels)}
    estimates["f1"] = Estimate.f1(labels, decisions, groups)
    ranking = drawn.estimate("average_precision", index)
    if not labels.all():  # else it is 1 in any order, which is no measurement
        ranking = ranking.where_all_right([labels], groups, rank_cost(int(labels.sum())))
    estimates |= {"roc_auc": area, "average_precision": ranking}
    hits = int((labels & decisions).sum())
    return ClassMetrics(index, int(labels.sum()), int(decisions.sum()), hits, estimates)


def class_dicts(
    rows: Sequence[ClassMetrics], classes: tuple[str, ...], names: tuple[str, ...], **more: int
) -> list[dict[str, Any]]:
    """The metrics of each class for JSON, each with the entries of `more`."""
    return [
        {
            "class": classes[row.index],
            "name": names[row.index],
            **more,
            "support": row.support,
            "predicted": row.predicted,
            "correct": row.correct,
            **estimate_entries(row.estimates),
        }
        for row in rows
    ]


@dataclass(frozen=True, eq=False)
class Metrics:
    """All metrics of a set of images, overall and by class."""

    n: int
    correct: int
    overall: dict[str, Estimate]  # by name, in the order in which they are shown
    classes: tuple[ClassMetrics, ...]
    confusion: np.ndarray  # (classes, classes) int64 counts: rows are labels, columns predictions
    resamples: int
    ranking_resamples: int
    groups: int | None = None  # number of groups; None where the images come in none

    def __getitem__(self, name: str) -> Estimate:
        return self.overall[name]

    def to_dict(self) -> dict[str, Any]:
        """The overall metrics for JSON: `name` and `name_ci95` of each, with the counts."""
        most_frequent = max(row.support for row in self.classes)
        values: dict[str, Any] = {"n": self.n, "correct": self.correct, "most_frequent": most_frequent}
        values |= {} if self.groups is None else {"groups": self.groups}
        return values | {
            **estimate_entries(self.overall),
            "bootstrap": {"resamples": self.resamples, "ranking_resamples": self.ranking_resamples},
        }


def compute_metrics(outputs: Outputs, seed: int = 0) -> Metrics:
    """All metrics of the outputs of at least one image. Runs the bootstrap; too slow to call in every epoch."""
    classes = outputs.logits.shape[1]
    sample = WeightedSample(outputs)
    drawn = resample(sample, seed)
    correct, predicted, groups = outputs.correct, outputs.predicted, outputs.groups
    occurring = np.unique(outputs.labels).tolist()
    overall = {
        "accuracy": Estimate.proportion(correct, groups),
        "top5": Estimate.proportion(outputs.in_top(5), groups) if classes > FEW_CLASSES else Estimate(None),
    }
    probabilities = outputs.probabilities
    areas, mean_area = roc_estimates(
        ((probabilities[:, c], outputs.labels == c) for c in range(classes)), outputs.groups
    )
    rows = tuple(
        class_metrics(c, outputs.labels == c, predicted == c, groups, drawn, area) for c, area in enumerate(areas)
    )

    def mean(name: str, part: str, of: np.ndarray) -> Estimate:
        """A metric that is a mean of `part` over the classes; those of the images are `of`, (n,)."""
        estimate = drawn.estimate(name).where_all_right((of == c for c in occurring), groups)
        return estimate.at_least([rows[c][part] for c in occurring])

    recall = mean("balanced_accuracy", "recall", outputs.labels)
    overall |= {"balanced_accuracy": recall, "macro_precision": mean("macro_precision", "precision", predicted)}
    overall |= {"macro_recall": recall, "macro_f1": mean("macro_f1", "f1", outputs.labels)}
    ranking = drawn.estimate("macro_average_precision")
    if len(occurring) > 1:  # else it is 1 in any order
        most = rank_cost(int(np.bincount(outputs.labels).max()))
        ranking = ranking.where_all_right((outputs.labels == c for c in occurring), groups, most)
    # Where all answers are right, or all wrong, no resample has one of the other kind, whose loss would be far off.
    seen = 0 < correct.sum() < len(correct)
    losses = {name: drawn.estimate(name) for name in ("loss", "brier", "ece", "ece_equal_mass")}
    losses = {name: estimate if seen else Estimate(estimate.value) for name, estimate in losses.items()}
    return Metrics(
        n=len(correct),
        correct=int(correct.sum()),
        overall=overall | {"macro_average_precision": ranking, "macro_roc_auc": mean_area} | losses,
        classes=rows,
        confusion=confusion_matrix(outputs.labels, predicted, classes),
        resamples=drawn.resamples,
        ranking_resamples=drawn.ranking_resamples,
        groups=outputs.group_count,
    )
