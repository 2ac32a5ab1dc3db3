"""Metrics of images with several labels, each with the number of images and a 95 % confidence interval.

Definitions are scikit-learn's, with `labels` (n, labels) and decisions (n, labels), both bool:

average precision       of a label: average_precision_score; None without an image that has it
mAP                     the mean of it over the labels that occur
micro AP                average precision over all pairs of an image and a label
ROC AUC                 of a label; None unless images with and without it occur. Macro: the mean where defined
precision, recall, F1   of a label's decisions; None where undefined. Macro averages are over the labels that occur, an
                        undefined precision counting as 0; micro averages are over all pairs
subset accuracy         share of the images of which every decision is right
Hamming loss            share of the pairs of which the decision is wrong
loss                    binary cross-entropy in nats, summed over the labels and averaged over the images
ECE                     of the pairs: mean over 15 bins of |share that has the label - mean probability|

Proportions of images or of pairs, and F1, have Wilson's interval, where the pairs of an image form a group; all other
metrics have a bootstrap interval, that of means over labels widened where a label has few images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from linnaeus.metrics.bootstrap import Resampled, average_precision, mean_where, resample, sample_values
from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.classification import ClassMetrics, Figures, class_metrics, estimate_entries, figures
from linnaeus.metrics.intervals import Estimate, rank_cost
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.roc import roc_estimates
from linnaeus.text import percent

UNCHOSEN = 0.5  # the threshold of every label before one is chosen on validation


@dataclass(frozen=True)
class LabelFigures:
    """The headline metrics of a set of images, without a bootstrap: cheap enough for every epoch. Shares in 0..1."""

    n: int
    labels: int  # number of labels that occur, over which `map` is averaged
    map: float  # mean average precision; 0 if no label occurs
    subset_accuracy: float
    hamming_loss: float
    macro_f1: float
    loss: float
    groups: int | None = None

    @property
    def accuracy(self) -> float:
        """The subset accuracy, as scikit-learn's accuracy_score has it."""
        return self.subset_accuracy

    @property
    def correct(self) -> int:
        """Images of which every decision is right."""
        return round(self.subset_accuracy * self.n)

    def to_dict(self) -> dict[str, Any]:
        values = asdict(self)
        if self.groups is None:
            del values["groups"]
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabelFigures:
        """The inverse of `to_dict`; further keys are ignored."""
        known = {field.name: values[field.name] for field in fields(cls) if field.name != "groups"}
        return cls(**known, groups=values.get("groups"))

    def __str__(self) -> str:
        n = f"{self.n} images" if self.groups is None else f"{self.n} images in {self.groups} groups"
        return (
            f"mAP {percent(self.map, 2)} over {self.labels} labels, macro F1 {percent(self.macro_f1, 2)}, all labels "
            f"right {percent(self.subset_accuracy, 2)} ({n})"
        )


def label_figures(outputs: Outputs, decisions: np.ndarray | None = None) -> LabelFigures:
    """The headline metrics; `decisions` (n, labels) bool, by default at probability 0.5."""
    decisions = outputs.probabilities >= UNCHOSEN if decisions is None else decisions
    values = sample_values(WeightedLabels(outputs, decisions))
    return LabelFigures(
        n=len(outputs.labels),
        labels=int(outputs.labels.any(0).sum()),
        map=float(np.nan_to_num(values["map"])),
        subset_accuracy=float((decisions == outputs.labels).all(1).mean()),
        hamming_loss=float((decisions != outputs.labels).mean()),
        macro_f1=float(np.nan_to_num(values["macro_f1"])),
        loss=float(outputs.losses.mean()),
        groups=outputs.group_count,
    )


def map_by_chance(labels: np.ndarray) -> float:
    """The mean average precision that a random order of the images has on average; `labels` (n, labels) bool.

    More than the mean share of images that have a label, because an early hit counts more than a late one costs
    (Bestgen 2015, Exact expected average precision of the random baseline): 0.12 with 6 of 80 images.
    """
    n, positives = len(labels), labels.sum(0)[labels.any(0)]
    if not len(positives):
        return 0.0
    first = float((1 / np.arange(1, n + 1)).mean())
    return float((first + (1 - first) * (positives - 1) / max(n - 1, 1)).mean())


Headline = Figures | LabelFigures


def headline(outputs: Outputs) -> Headline:
    """The headline metrics of outputs with one label per image, or with several."""
    return label_figures(outputs) if outputs.several else figures(outputs)


def brief(figures: Headline) -> str:
    """`accuracy 93.12 %`, or with several labels `mAP 93.12 %`, of a fixed width."""
    if isinstance(figures, LabelFigures):
        return f"mAP {percent(figures.map, 2):>8}"
    return f"accuracy {percent(figures.accuracy, 2):>8}"


def read_headline(values: Mapping[str, Any]) -> Headline:
    """Headline metrics as a model file or metrics.json has them."""
    return LabelFigures.from_dict(values) if "map" in values else Figures.from_dict(values)


@dataclass(frozen=True, eq=False)
class MultiLabelMetrics:
    """All metrics of a set of images, overall and by label."""

    n: int
    correct: int  # images of which every decision is right
    overall: dict[str, Estimate]  # by name, in the order in which they are shown
    labels: tuple[ClassMetrics, ...]
    together: np.ndarray  # as `co_occurrence` counts them
    resamples: int
    ranking_resamples: int
    groups: int | None = None

    def __getitem__(self, name: str) -> Estimate:
        return self.overall[name]

    def to_dict(self) -> dict[str, Any]:
        """The overall metrics for JSON: `name` and `name_ci95` of each, with the counts."""
        values: dict[str, Any] = {"n": self.n, "correct": self.correct}
        values |= {} if self.groups is None else {"groups": self.groups}
        values["labels"] = sum(label.support > 0 for label in self.labels)
        values |= estimate_entries(self.overall)
        return values | {"bootstrap": {"resamples": self.resamples, "ranking_resamples": self.ranking_resamples}}


def compute_label_metrics(outputs: Outputs, decisions: np.ndarray) -> MultiLabelMetrics:
    """All metrics of outputs and decisions (n, labels) bool of at least one image. Runs the bootstrap."""
    sample = WeightedLabels(outputs, decisions)
    drawn = resample(sample)
    right = (decisions == outputs.labels).all(1)
    probabilities = outputs.probabilities
    areas, mean_area = roc_estimates(
        ((probabilities[:, c], outputs.labels[:, c]) for c in range(sample.count)), outputs.groups
    )
    rows = tuple(
        class_metrics(c, outputs.labels[:, c], decisions[:, c], outputs.groups, drawn, area)
        for c, area in enumerate(areas)
    )
    overall = _rankings(outputs, drawn)
    occurring = np.flatnonzero(outputs.labels.any(0)).tolist()
    for part in ("precision", "recall", "f1"):
        columns = (decisions if part == "precision" else outputs.labels)[:, occurring].T
        estimate = drawn.estimate(f"macro_{part}").where_all_right(columns, outputs.groups)
        overall[f"macro_{part}"] = estimate.at_least([rows[c][part] for c in occurring])
    overall |= _micro_averages(outputs, decisions)
    overall["macro_roc_auc"] = mean_area
    overall["subset_accuracy"] = Estimate.proportion(right, outputs.groups)
    overall |= {name: drawn.estimate(name) for name in ("hamming_loss", "loss")}
    overall["ece"] = Estimate(calibration_error(outputs.probabilities.ravel(), outputs.labels.ravel()))
    return MultiLabelMetrics(
        n=sample.n,
        correct=int(right.sum()),
        overall=overall,
        labels=rows,
        together=co_occurrence(outputs.labels),
        resamples=drawn.resamples,
        ranking_resamples=drawn.ranking_resamples,
        groups=outputs.group_count,
    )


def _rankings(outputs: Outputs, drawn: Resampled) -> dict[str, Estimate]:
    """The average precisions over all labels."""
    overall = {name: drawn.estimate(name) for name in ("map", "micro_average_precision")}
    labels, (_, pair_images) = outputs.labels, _pairs(outputs)
    ranked = labels[:, labels.any(0) & ~labels.all(0)]  # of other labels, any order is perfect
    if ranked.size:
        most = rank_cost(int(ranked.sum(0).max()))
        overall["map"] = overall["map"].where_all_right(ranked.T, outputs.groups, most)
    if labels.any() and not labels.all():
        cost = rank_cost(int(labels.sum()))
        micro = overall["micro_average_precision"]
        overall["micro_average_precision"] = micro.where_all_right([labels.ravel()], pair_images, cost)
    return overall


def _micro_averages(outputs: Outputs, decisions: np.ndarray) -> dict[str, Estimate]:
    """Precision, recall and F1 of all pairs of an image and a label."""
    labels, groups = _pairs(outputs)
    given = decisions.ravel()
    return {
        "micro_precision": Estimate.proportion(labels[given], groups[given]),
        "micro_recall": Estimate.proportion(given[labels], groups[labels]),
        "micro_f1": Estimate.f1(labels, given, groups),
    }


def _pairs(outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    """(n * labels,) bool and int64: whether an image has a label, and its group, or the image where there are none."""
    n, count = outputs.labels.shape
    return outputs.labels.ravel(), np.repeat(np.arange(n) if outputs.groups is None else outputs.groups, count)


def co_occurrence(labels: np.ndarray) -> np.ndarray:
    """(labels, labels) int64: number of images that have both labels; `labels` is (n, labels) bool."""
    counts: np.ndarray = labels.astype(np.int64).T @ labels.astype(np.int64)
    return counts


class WeightedLabels:
    """Metrics of weighted images. Every method takes weights (n, m); results are (m,) or (labels, m)."""

    def __init__(self, outputs: Outputs, decisions: np.ndarray):
        self.labels, self.decisions = outputs.labels, decisions
        self.probabilities, self.losses = outputs.probabilities, outputs.losses
        self.n, self.count = outputs.labels.shape
        self.group = None if outputs.groups is None else np.unique(outputs.groups, return_inverse=True)[1]
        self.rankings = 2 * self.count  # those of the labels, and the micro average sorts all pairs once more

    def metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Loss and what follows from the decisions."""
        weights = weights.astype(np.float64)
        total = weights.sum(0)
        tp = (self.labels & self.decisions).T.astype(np.float64) @ weights
        support, predicted = (part.T.astype(np.float64) @ weights for part in (self.labels, self.decisions))
        occurs = support > 0
        # Labels without images or answers divide by zero; their values are left out of the means.
        with np.errstate(invalid="ignore", divide="ignore"):
            values = {
                "precision": tp / predicted,
                "recall": tp / support,
                "f1": 2 * tp / (support + predicted),
            }
            values = {f"macro_{name}": mean_where(np.nan_to_num(of), occurs) for name, of in values.items()}
        wrong = (self.labels != self.decisions).sum(1).astype(np.float64)
        return values | {"loss": self.losses @ weights / total, "hamming_loss": wrong @ weights / total / self.count}

    def ranking_metrics(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Average precision of each label, its mean, and the average precision of all pairs."""
        precision = np.full((self.count, weights.shape[1]), np.nan)
        # Without a positive image a ranking has no precision.
        for k in np.flatnonzero(self.labels.any(0)).tolist():
            precision[k] = average_precision(self.probabilities[:, k], self.labels[:, k], weights)
        micro = np.full(weights.shape[1], np.nan)
        if self.labels.any():
            pairs = np.repeat(weights, self.count, axis=0)
            micro = average_precision(self.probabilities.ravel(), self.labels.ravel(), pairs)
        return {
            "average_precision": precision,
            "map": mean_where(precision, np.isfinite(precision)),
            "micro_average_precision": micro,
        }
