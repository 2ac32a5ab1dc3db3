"""Everything measured of a model that gives images several labels, on one split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.label_calibration import NEVER, LabelCalibration, cross_fit_labels
from linnaeus.metrics.multilabel import (
    LabelFigures,
    MultiLabelMetrics,
    compute_label_metrics,
    label_figures,
)
from linnaeus.metrics.outputs import Outputs


@dataclass(frozen=True, eq=False)
class LabelAssessment:
    """All results for one split. `metrics` are of calibrated probabilities and of the decisions at the thresholds."""

    metrics: MultiLabelMetrics
    figures: LabelFigures
    calibration: LabelCalibration
    cross_fitted: bool
    """Whether the decisions, and the figures `after`, come from what other images fitted, because these images fitted
    the model's."""
    before: dict[str, float]
    after: dict[str, float]
    """loss and ece, without and with calibration."""
    chance: float
    """Mean average precision of a random ranking: the mean share of the images that have a label."""

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON, without the labels and their co-occurrence."""
        return self.metrics.to_dict() | {
            "map_by_chance": self.chance,
            "calibration": {"cross_fitted": self.cross_fitted, "before": self.before, "after": self.after},
        }

    def long_dict(self, classes: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
        """Everything for JSON."""
        rows = self.metrics.label_dicts(classes, names)
        for row, threshold in zip(rows, self.calibration.thresholds.tolist(), strict=True):
            row["threshold"] = threshold if threshold < NEVER else None
        return self.to_dict() | {
            "task": "multi-label",
            "classes": rows,
            "together": self.metrics.together.tolist(),
        }


def assess_labels(
    outputs: Outputs, calibration: LabelCalibration | None, *, cross_fitted: bool = False
) -> LabelAssessment:
    """Assess a model by its uncalibrated outputs on a split.

    `calibration` is the model's; without one, that which these images fit is measured by cross-fitting, as with
    `cross_fitted`: these images fitted the model's.
    """
    cross_fitted = cross_fitted or calibration is None
    if calibration is None:
        calibration = LabelCalibration.fit(outputs, "these")
    honest = calibrated = calibration.apply(outputs)
    decisions = calibration.decide(calibrated.probabilities)
    if cross_fitted:
        # Not for the ranks: those of images from different folds cannot be compared.
        honest, decisions = cross_fit_labels(outputs, calibration.precision)
    return LabelAssessment(
        compute_label_metrics(calibrated, decisions),
        label_figures(calibrated, decisions),
        calibration,
        cross_fitted,
        _quality(outputs),
        _quality(honest),
        float(outputs.labels[:, outputs.labels.any(0)].mean()) if outputs.labels.any() else 0.0,
    )


def _quality(outputs: Outputs) -> dict[str, float]:
    ece = calibration_error(outputs.probabilities.ravel(), outputs.labels.ravel())
    return {"loss": float(outputs.losses.mean()), "ece": ece}
