"""All measurements of a multi-label model on one split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.metrics.bootstrap import ece_by_chance
from linnaeus.metrics.calibration import calibration_error, reliability_diagram
from linnaeus.metrics.classification import class_dicts
from linnaeus.metrics.label_calibration import NEVER, LabelCalibration, cross_fit_labels
from linnaeus.metrics.multilabel import (
    LabelFigures,
    MultiLabelMetrics,
    compute_label_metrics,
    label_figures,
    map_by_chance,
)
from linnaeus.metrics.outputs import Outputs


@dataclass(frozen=True, eq=False)
class LabelAssessment:
    """All results for one split. `metrics` are of calibrated probabilities and of the decisions at the thresholds."""

    metrics: MultiLabelMetrics
    figures: LabelFigures
    # (n, labels) bool: which labels each image is given; by what other images fitted where `cross_fitted`.
    decisions: np.ndarray
    calibration: LabelCalibration
    # Whether the decisions, and the figures `after`, come from what other images fitted, because these images fitted
    # the model's.
    cross_fitted: bool
    before: dict[str, float]
    after: dict[str, float]  # loss and ece, without and with calibration
    label_ece: dict[str, np.ndarray]  # (labels,) `before` and `after`: the calibration error of each label
    # Rows of a reliability diagram of all pairs of an image and a label, `before` and `after`.
    reliability: dict[str, list[dict[str, Any]]]
    chance: float  # mean average precision that a random order of the images has on average
    n: int  # number of images that `before`, `after`, `label_ece` and `reliability` are measured on
    # Mean and 95th percentile of the calibration error of a perfectly calibrated model on as many images.
    ece_by_chance: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON, without the labels and their co-occurrence."""
        return self.metrics.to_dict() | {
            "map_by_chance": self.chance,
            "calibration": {
                "n": self.n,
                "cross_fitted": self.cross_fitted,
                "before": self.before,
                "after": self.after,
                "ece_by_chance": dict(zip(("mean", "p95"), self.ece_by_chance, strict=True)),
            },
        }

    def long_dict(self, classes: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
        rows = class_dicts(self.metrics.labels, classes, names, n=self.metrics.n)
        for k, row in enumerate(rows):
            threshold = float(self.calibration.thresholds[k])
            row["threshold"] = threshold if threshold < NEVER else None
            row["scale"], row["offset"] = float(self.calibration.scale[k]), float(self.calibration.offset[k])
            row["ece"] = {stage: float(errors[k]) for stage, errors in self.label_ece.items()}
        return self.to_dict() | {
            "task": "multi-label",
            "classes": rows,
            "together": self.metrics.together.tolist(),
            "reliability": self.reliability,
        }


def assess_labels(
    outputs: Outputs,
    calibration: LabelCalibration | None,
    *,
    cross_fitted: bool = False,
    unseen: np.ndarray | None = None,
) -> LabelAssessment:
    """Assess a model by its uncalibrated outputs on a split.

    `calibration` is the model's; without one, that which these images fit is measured by cross-fitting, as with
    `cross_fitted`: these images fitted the model's. `unseen`, (n,) bool, are the images without a copy in an earlier
    split, if others have one: only they fit and measure a calibration.
    """
    # Figures on the images that fitted the calibration would be too good.
    cross_fitted = cross_fitted or calibration is None
    if calibration is None:
        calibration = LabelCalibration.fit(outputs, "these")
    calibrated = calibration.apply(outputs)
    honest, decisions = decided(outputs, calibration, cross_fitted, unseen)
    stages = {"before": outputs, "after": honest}
    if unseen is not None:
        stages = {name: stage.take(unseen) for name, stage in stages.items()}
    return LabelAssessment(
        compute_label_metrics(calibrated, decisions),
        label_figures(calibrated, decisions),
        decisions,
        calibration,
        cross_fitted,
        _quality(stages["before"]),
        _quality(stages["after"]),
        {name: _errors_of_labels(stage) for name, stage in stages.items()},
        {name: _reliability(stage) for name, stage in stages.items()},
        map_by_chance(outputs.labels),
        len(stages["before"].labels),
        ece_by_chance(stages["after"].probabilities.ravel()),
    )


def decided(
    outputs: Outputs, calibration: LabelCalibration, cross_fitted: bool, fitting: np.ndarray | None = None
) -> tuple[Outputs, np.ndarray]:
    """Calibrated outputs, and decisions (n, labels) bool; where these images fitted the `calibration`, by what others
    fit. With `fitting`, (n,) bool, only these fit.

    Ranks need `calibration` itself: those of images from different folds cannot be compared.
    """
    if cross_fitted:
        return cross_fit_labels(outputs, calibration.precision, fitting)
    calibrated = calibration.apply(outputs)
    return calibrated, calibration.decide(calibrated.probabilities)


def _quality(outputs: Outputs) -> dict[str, float]:
    ece = calibration_error(outputs.probabilities.ravel(), outputs.labels.ravel())
    return {"loss": float(outputs.losses.mean()), "ece": ece}


def _errors_of_labels(outputs: Outputs) -> np.ndarray:
    """(labels,) the calibration error of each label."""
    pairs = zip(outputs.probabilities.T, outputs.labels.T, strict=True)
    return np.array([calibration_error(probabilities, labels) for probabilities, labels in pairs])


def _reliability(outputs: Outputs) -> list[dict[str, Any]]:
    """The pairs of one image are correlated, so an image is a group where there are no others."""
    n, count = outputs.labels.shape
    groups = np.arange(n) if outputs.groups is None else outputs.groups
    return reliability_diagram(outputs.probabilities.ravel(), outputs.labels.ravel(), np.repeat(groups, count))
