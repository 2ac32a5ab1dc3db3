"""All measurements of a model on one split: metrics, calibration, abstention and test-time augmentation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linnaeus.metrics.abstention import AbstentionRule, OperatingPoint
from linnaeus.metrics.bootstrap import ece_by_chance
from linnaeus.metrics.calibration import Calibration, reliability_diagram
from linnaeus.metrics.classification import Metrics, class_dicts, compute_metrics, point_estimates
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.mcnemar import McNemar
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import aurc, choose_thresholds, risk_coverage_curve
from linnaeus.metrics.temperature import cross_fit, fit_temperature


@dataclass(frozen=True)
class CalibrationEffect:
    """Probabilities before and after dividing the logits by a temperature that was fitted on other images."""

    temperature: float
    stored: bool  # whether the temperature is the model's own; otherwise it was fitted on these images
    cross_fitted: bool  # whether `after` comes from cross-fitting on these images, because they fitted the temperature
    before: dict[str, float]
    after: dict[str, float]  # loss, brier, ece and ece_equal_mass
    reliability: dict[str, list[dict[str, Any]]]  # rows of a reliability diagram, `before` and `after`
    n: int  # number of images
    # Mean and 95th percentile of the calibration error of a perfectly calibrated model on as many images.
    ece_by_chance: tuple[float, float]

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without the diagram."""
        return {
            "n": self.n,
            "temperature": self.temperature,
            "stored": self.stored,
            "cross_fitted": self.cross_fitted,
            "before": self.before,
            "after": self.after,
            "ece_by_chance": dict(zip(("mean", "p95"), self.ece_by_chance, strict=True)),
        }


@dataclass(frozen=True)
class MeasuredPoint(OperatingPoint):
    """An operating point measured on images that did not choose it, with the interval of its risk."""

    risk_ci95: tuple[float, float]  # 95 % interval of the share of errors among the answers, in 0..1

    def to_dict(self, n: int) -> dict[str, Any]:
        """For JSON: coverage of n images, and risk with its interval."""
        return {
            "threshold": self.threshold,
            "answered": self.answered,
            "wrong": self.wrong,
            "coverage": self.answered / n,
            "risk": self.wrong / self.answered if self.answered else None,
            "risk_ci95": list(self.risk_ci95),
        }


@dataclass(frozen=True)
class Abstention:
    """The effect of the abstention thresholds on these images."""

    rule: AbstentionRule
    chosen_on: str  # the training split that chose the thresholds; empty where these images did
    estimated: MeasuredPoint | None
    uncorrected: MeasuredPoint | None
    tested: MeasuredPoint | None  # the thresholds of the rule, measured on these images
    aurc: float
    excess_aurc: float
    curve: list[dict[str, Any]]  # rows of the risk-coverage curve
    n: int  # number of images
    unknown: int = 0  # number of these images that the model calls unknown, and so does not answer

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON, without the curve."""
        points = {"estimated": self.estimated, "uncorrected": self.uncorrected, "tested": self.tested}
        return {
            "n": self.n,
            "rule": self.rule.to_dict(),
            "chosen_on": self.chosen_on or None,
            "unknown": self.unknown,
            "measured": {name: None if point is None else point.to_dict(self.n) for name, point in points.items()},
            "aurc": self.aurc,
            "excess_aurc": self.excess_aurc,
        }


@dataclass(frozen=True)
class ViewsEffect:
    """Test-time augmentation: the mean probability of several views, compared with the plain prediction."""

    metrics: dict[str, float]  # accuracy, loss, brier and ece
    comparison: McNemar  # the plain prediction is the first classifier

    def to_dict(self) -> dict[str, Any]:
        return {**self.metrics, "against_plain": self.comparison.to_dict()}


@dataclass(frozen=True, eq=False)
class Assessment:
    """All results for one split. `metrics` are of the probabilities that the model gives, after its temperature.

    Calibration and abstention are of the images without a copy in an earlier split, on which a model is surer.
    """

    metrics: Metrics
    calibration: CalibrationEffect
    abstention: Abstention
    views: dict[str, ViewsEffect] = field(default_factory=dict)
    """By the name of the views; empty without test-time augmentation."""

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON, without classes, confusion matrix, diagrams and curves."""
        summary = self.metrics.to_dict() | {
            "calibration": self.calibration.to_dict(),
            "abstention": self.abstention.to_dict(),
        }
        views = {name: effect.to_dict() for name, effect in self.views.items()}
        return summary | ({"tta": views} if views else {})

    def long_dict(self, classes: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
        return self.to_dict() | {
            "classes": class_dicts(self.metrics.classes, classes, names),
            "confusion": self.metrics.confusion.tolist(),
            "reliability": self.calibration.reliability,
            "risk_coverage": self.abstention.curve,
        }


def assess(
    outputs: Outputs,
    calibration: Calibration | None,
    *,
    cross_fitted: bool = False,
    unseen: np.ndarray | None = None,
    target_risk: float | None = None,
    views: dict[str, Outputs] | None = None,
    limits: Thresholds | None = None,
) -> Assessment:
    """Assess a model by its uncalibrated outputs on a split.

    `calibration` is the model's, if it has one. `cross_fitted`: these images fitted that calibration, so its effect is
    measured by cross-fitting. `unseen`, (n,) bool, are the images without a copy in an earlier split, if others have
    one: only they fit and measure calibration and abstention. `target_risk` of the abstention thresholds; by default
    that of the model. `views` are the calibrated outputs of test-time augmentation, by name. `limits`: those of the
    model beyond which it calls an image unknown, which is then not answered.
    """
    calibrated = outputs if calibration is None else outputs.at(calibration.temperature)
    effects = {
        name: ViewsEffect(point_estimates(other), McNemar.of(calibrated.correct, other.correct, outputs.groups))
        for name, other in (views or {}).items()
    }
    metrics = compute_metrics(calibrated)
    if unseen is not None:
        outputs, calibrated = outputs.take(unseen), calibrated.take(unseen)
    return Assessment(
        metrics,
        _calibration_effect(outputs, calibrated, calibration, cross_fitted),
        _abstention(calibrated, calibration, target_risk, None if cross_fitted else 1, limits),
        effects,
    )


def _calibration_effect(
    outputs: Outputs, calibrated: Outputs, calibration: Calibration | None, cross_fitted: bool
) -> CalibrationEffect:
    """Metrics before and after calibration; without a stored one, of the temperature that these images would fit."""
    cross_fitted = calibration is None or cross_fitted
    temperature = fit_temperature(outputs) if calibration is None else calibration.temperature
    after = cross_fit(outputs) if cross_fitted else calibrated
    metrics, diagrams = {}, {}
    for name, stage in (("before", outputs), ("after", after)):
        metrics[name] = point_estimates(stage)
        del metrics[name]["accuracy"]  # a temperature does not change it
        diagrams[name] = reliability_diagram(stage.confidence, stage.correct, stage.groups)
    return CalibrationEffect(
        temperature,
        calibration is not None,
        cross_fitted,
        metrics["before"],
        metrics["after"],
        diagrams,
        n=len(outputs.labels),
        ece_by_chance=ece_by_chance(calibrated.confidence),
    )


def _abstention(
    outputs: Outputs,
    calibration: Calibration | None,
    target_risk: float | None,
    candidates: int | None,
    limits: Thresholds | None,
) -> Abstention:
    """Effect of the thresholds on calibrated outputs; without a calibration, of thresholds chosen on these outputs.

    `candidates` is the number of models from which these outputs chose this one, None if it is unknown.
    """
    confidence, correct, groups = outputs.confidence, outputs.correct, outputs.groups
    curve = risk_coverage_curve(confidence, correct, groups is not None, candidates)
    if calibration is None:
        rule = choose_thresholds(curve) if target_risk is None else choose_thresholds(curve, target_risk)
    elif target_risk in (None, calibration.rule.target_risk):
        # The stored rule also knows how it was chosen; another risk needs another choice.
        rule = calibration.rule
    else:
        rule = choose_thresholds(calibration.curve, target_risk)

    def measure(point: OperatingPoint | None) -> MeasuredPoint | None:
        return None if point is None else measure_at(point.threshold)

    known = np.ones(len(correct), bool) if limits is None else ~limits.unknown(outputs.distances, confidence)

    def measure_at(threshold: float) -> MeasuredPoint:
        answered = known & (confidence >= threshold)
        wrong = ~correct[answered]
        interval = proportion_interval(wrong, None if groups is None else groups[answered])
        return MeasuredPoint(threshold, int(answered.sum()), int(wrong.sum()), interval)

    area, excess = aurc(confidence, correct)
    return Abstention(
        rule,
        chosen_on="" if calibration is None else calibration.split,
        estimated=measure(rule.estimated),
        uncorrected=measure(rule.uncorrected),
        tested=measure(rule.tested),
        aurc=area,
        excess_aurc=excess,
        n=curve.n,
        unknown=int((~known).sum()),
        curve=[measure_at(threshold).to_dict(curve.n) for threshold in curve.thresholds.tolist()],
    )
