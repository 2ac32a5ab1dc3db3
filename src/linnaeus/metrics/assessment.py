"""All that is said of a model and the images of one split: figures, calibration, abstention, views."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linnaeus.metrics.calibration import Calibration, calibration_error, cross_fitted, fit_temperature, reliability
from linnaeus.metrics.classification import Measures, measure
from linnaeus.metrics.intervals import interval
from linnaeus.metrics.mcnemar import Paired
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import Point, Rule, aurc, choose, risk_curve


@dataclass(frozen=True)
class Calibrated:
    """Probabilities before and after a temperature, on images that did not choose it."""

    temperature: float
    stored: bool
    """Whether the model holds the temperature; else it is what these images ask for."""
    cross_fitted: bool
    """Whether `after` is by cross-fitting on these images; else the temperature was fitted on others."""
    before: dict[str, float]
    after: dict[str, float]
    """loss, brier, ece, ece_equal_mass."""
    reliability: dict[str, list[dict[str, Any]]]
    """`before` and `after`: rows of a reliability diagram."""


@dataclass(frozen=True)
class Doing(Point):
    """What a threshold does to some images."""

    risk_ci95: tuple[float, float]
    """The interval of the share wrong among the answered, in 0..1."""

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
    """What a model would answer here, and what not."""

    rule: Rule
    chosen_on: str
    """The split of the training that chose the thresholds; "" where these very images did."""
    found: dict[str, Doing | None]
    """What the thresholds `estimated` and `promised` do to these images."""
    aurc: float
    excess_aurc: float
    curve: list[dict[str, Any]]


@dataclass(frozen=True)
class Views:
    """Test-time augmentation beside the plain answers: what the mean of several views gets right."""

    measures: dict[str, float]
    """accuracy, loss, brier, ece."""
    paired: Paired
    """The plain answers first."""


@dataclass(frozen=True, eq=False)
class Assessment:
    """Everything of one split. `measures` are of the probabilities that the model gives, its temperature applied."""

    measures: Measures
    calibrated: Calibrated
    abstention: Abstention
    views: dict[str, Views] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The summary for JSON, without what is long: classes, confusion matrix, diagrams and curves."""
        found = self.calibrated
        views = {name: self._views(views) for name, views in self.views.items()}
        said = self.measures.to_dict() | {
            "calibration": {
                "temperature": found.temperature,
                "stored": found.stored,
                "cross_fitted": found.cross_fitted,
                "before": found.before,
                "after": found.after,
            },
            "abstention": self._abstention(),
        }
        return said | ({"tta": views} if views else {})

    def long_dict(self, classes: tuple[str, ...], names: tuple[str, ...]) -> dict[str, Any]:
        """Everything for JSON."""
        return self.to_dict() | {
            "classes": self.measures.class_dicts(classes, names),
            "confusion": self.measures.confusion.tolist(),
            "reliability": self.calibrated.reliability,
            "risk_coverage": self.abstention.curve,
        }

    def _abstention(self) -> dict[str, Any]:
        found = self.abstention
        return {
            "rule": found.rule.to_dict(),
            "chosen_on": found.chosen_on or None,
            "here": {
                name: None if doing is None else doing.to_dict(self.measures.n) for name, doing in found.found.items()
            },
            "aurc": found.aurc,
            "excess_aurc": found.excess_aurc,
        }

    def _views(self, views: Views) -> dict[str, Any]:
        return {**views.measures, "against_plain": views.paired.to_dict()}


def assess(
    outputs: Outputs,
    calibration: Calibration | None,
    *,
    own: bool = False,
    error: float | None = None,
    views: dict[str, Outputs] | None = None,
) -> Assessment:
    """Judge what a network answered, uncalibrated, to the images of a split; with the calibration of its model.

    `own`: the calibration was fitted on these very images, so what it improves is measured by cross-fitting.
    `error`: what the threshold keeps to; by default what the model's does. `views`: calibrated outputs of
    test-time augmentation, by name.
    """
    given = outputs if calibration is None else outputs.at(calibration.temperature)
    plain = given.predicted == given.labels
    judged = {
        name: Views(summary(other), Paired.of(plain, other.predicted == other.labels, outputs.groups))
        for name, other in (views or {}).items()
    }
    return Assessment(
        measure(given), calibrated(outputs, calibration, own), abstention(given, calibration, error), judged
    )


def calibrated(outputs: Outputs, calibration: Calibration | None, own: bool) -> Calibrated:
    """Before and after. Without a calibration, what a temperature would do; where it is `own`, by cross-fitting."""
    crossed = calibration is None or own
    temperature = fit_temperature(outputs) if calibration is None else calibration.temperature
    after = cross_fitted(outputs) if crossed else outputs.at(temperature)
    diagrams = {
        name: reliability(out.probabilities.max(1), out.predicted == out.labels, out.groups)
        for name, out in (("before", outputs), ("after", after))
    }
    before = {name: value for name, value in summary(outputs).items() if name != "accuracy"}
    judged = {name: value for name, value in summary(after).items() if name in before}
    return Calibrated(temperature, calibration is not None, crossed, before, judged, diagrams)


def summary(outputs: Outputs) -> dict[str, float]:
    """The figures that are quick to have, without intervals."""
    p = outputs.probabilities
    right, sure = outputs.predicted == outputs.labels, p.max(1)
    squares = (p**2).sum(1) - 2 * p[np.arange(len(p)), outputs.labels] + 1
    return {
        "accuracy": float(right.mean()),
        "loss": float(outputs.losses.mean()),
        "brier": float(squares.mean() / (2 if p.shape[1] == 2 else 1)),
        "ece": calibration_error(sure, right),
        "ece_equal_mass": calibration_error(sure, right, equal_mass=True),
    }


def abstention(outputs: Outputs, calibration: Calibration | None, error: float | None) -> Abstention:
    """What the thresholds do to these answers; without a calibration they are chosen on these very answers."""
    sure, right = outputs.probabilities.max(1), outputs.predicted == outputs.labels
    groups = outputs.groups
    here = risk_curve(sure, right, groups is not None)
    if calibration is None:
        rule = choose(here) if error is None else choose(here, error)
    else:
        rule = calibration.rule if error in (None, calibration.rule.error) else choose(calibration.curve, error)

    def at(threshold: float) -> Doing:
        answered = sure >= threshold
        wrong = ~right[answered]
        within = interval(wrong, None if groups is None else groups[answered])
        return Doing(threshold, int(answered.sum()), int(wrong.sum()), within)

    area, excess = aurc(sure, right)
    curve = [at(threshold).to_dict(here.n) for threshold in here.thresholds.tolist()]
    points = {"estimated": rule.estimated, "promised": rule.promised}
    found = {name: None if point is None else at(point.threshold) for name, point in points.items()}
    return Abstention(rule, "" if calibration is None else calibration.split, found, area, excess, curve)
