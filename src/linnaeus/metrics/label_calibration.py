"""Calibration and threshold of each label of a model that gives images several labels, fitted on validation.

The logit z of a label becomes scale * z + offset, fitted by logistic regression on the logits (Platt 1999); where no
rank changes, as the scale is positive, neither do ROC AUC and average precision of the label. A prior of pseudo-images
that agree with the uncalibrated probabilities keeps small samples from asking for certainty, as in `fit_temperature`.

The threshold of a label is that with the largest F1 on validation, or the lowest that reaches a stated precision.

J. Platt, Probabilistic outputs for support vector machines, Advances in Large Margin Classifiers, 61-74, 1999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnaeus.errors import UserError
from linnaeus.metrics.calibration import MAX_SAMPLES
from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.multilabel import UNCHOSEN
from linnaeus.metrics.outputs import Outputs, sigmoid
from linnaeus.metrics.stratification import stratified_label_folds
from linnaeus.metrics.temperature import FOLDS, MAX_TEMPERATURE, MIN_TEMPERATURE, PRIOR_SAMPLES
from linnaeus.text import first_few, percent, percent_range

NEVER = 2.0  # a threshold above every probability: the label is never given
MAX_OFFSET = 1000.0  # beyond what logits from -50 to 50 ask for at MAX_SCALE
MIN_SCALE, MAX_SCALE = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE


@dataclass(frozen=True, eq=False)
class LabelCalibration:
    """What was fitted for each label."""

    split: str  # the split on which it was fitted
    n: int
    scale: np.ndarray  # (labels,) float64
    offset: np.ndarray  # (labels,) float64
    # (labels,) float64: the label is given from this calibrated probability on; NEVER where no threshold does.
    thresholds: np.ndarray
    precision: float | None = None  # the precision that the thresholds reach on validation; None: they maximize F1
    # (labels, 2) int64: how many validation images each threshold gives its label, and how many of these have it. None
    # where they maximize F1, and in files of an earlier version.
    given: np.ndarray | None = None

    @classmethod
    def fit(cls, outputs: Outputs, split: str, precision: float | None = None) -> LabelCalibration:
        """Fit on uncalibrated outputs."""
        n, count = outputs.logits.shape
        fitted = np.array([fit_label(outputs.logits[:, k], outputs.labels[:, k]) for k in range(count)])
        calibration = cls(split, n, fitted[:, 0], fitted[:, 1], np.full(count, UNCHOSEN), precision)
        probabilities = calibration.apply(outputs).probabilities
        chosen = [choose_threshold(probabilities[:, k], outputs.labels[:, k], precision) for k in range(count)]
        if precision is None:
            return replace(calibration, thresholds=np.array(chosen))
        decisions = probabilities >= np.array(chosen)
        given = np.stack([decisions.sum(0), (decisions & outputs.labels).sum(0)], 1)
        return replace(calibration, thresholds=np.array(chosen), given=given)

    @classmethod
    def none(cls, count: int) -> LabelCalibration:
        """The calibration of a model that was never calibrated: probabilities unchanged, thresholds 1/2."""
        return cls("", 0, np.ones(count), np.zeros(count), np.full(count, UNCHOSEN))

    def apply(self, outputs: Outputs) -> Outputs:
        """Calibrated outputs, in float64."""
        return replace(outputs, logits=outputs.logits.astype(np.float64) * self.scale + self.offset)

    def decide(self, probabilities: np.ndarray) -> np.ndarray:
        """(..., labels) calibrated probabilities -> bool: which labels are given."""
        return probabilities >= self.thresholds

    def lines(self, names: Sequence[str]) -> list[str]:
        """How the thresholds were chosen, for the terminal."""
        rule = "the largest F1" if self.precision is None else f"a precision of {percent(self.precision)}"
        ends = self.thresholds.min(), np.where(self.thresholds < NEVER, self.thresholds, 0).max()
        lines = [f"one for each label, by {rule} on {self.n} {self.split} images: {percent_range(ends, exact=True)}"]
        never = [name for name, threshold in zip(names, self.thresholds, strict=True) if threshold >= NEVER]
        if never:
            lines.append(f"never given, since no threshold reaches the precision: {', '.join(never)}")
        if self.precision is not None and self.given is not None:
            lines += self._uncertain(names, self.precision, self.given)
        return lines

    def _uncertain(self, names: Sequence[str], precision: float, given: np.ndarray) -> list[str]:
        """One line that names the labels whose precision may be lower on other images; none if there is none."""
        counts = [
            (n, f"{name} ({right} of {n} right)", wilson(right, n))
            for name, (n, right) in zip(names, given.tolist(), strict=True)
        ]
        found = sorted((n, text) for n, text, (low, _) in counts if n and low < precision)
        if not found:
            return []
        # Those with the fewest images first: there the luckiest of many thresholds is most likely to be taken.
        fewest = first_few([text for _, text in found])
        below = f"the 95 % interval on {self.split} includes less than {percent(precision)}"
        return [f"only an estimate where {below}: {fewest}"]

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.scale.tolist(), self.offset.tolist(), self.thresholds.tolist(), strict=True)
        labels = [{"scale": a, "offset": b, "threshold": t if t < NEVER else None} for a, b, t in rows]
        if self.given is not None:
            labels = [row | {"given": n, "right": k} for row, (n, k) in zip(labels, self.given.tolist(), strict=True)]
        return {"split": self.split, "n": self.n, "precision": self.precision, "labels": labels}

    @classmethod
    def from_dict(cls, values: dict[str, Any], origin: str, count: int) -> LabelCalibration:
        """The inverse of `to_dict`, for `count` labels. Raises UserError, naming the file `origin`."""
        try:
            rows = [(row["scale"], row["offset"], row["threshold"]) for row in values["labels"]]
            counts = [(row.get("given"), row.get("right")) for row in values["labels"]]
            given = None if (None, None) in counts else np.array(counts, np.int64).reshape(-1, 2)
            stored = np.array([(a, b, NEVER if t is None else t) for a, b, t in rows], np.float64).reshape(-1, 3)
            n, precision = int(values["n"]), values["precision"]
            split = str(values["split"])
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:120]
            raise UserError(f"{origin}: its calibration is incomplete ({reason}); get a fresh copy") from None
        scale, offset, thresholds = stored.T
        # Bounds with some slack, since float32 rounds what was clipped at them.
        valid = len(stored) == count and 1 <= n <= MAX_SAMPLES and np.isfinite(stored).all()
        valid = valid and (scale >= 0.99 * MIN_SCALE).all() and (scale <= 1.01 * MAX_SCALE).all()
        valid = valid and (np.abs(offset) <= 1.01 * MAX_OFFSET).all()
        valid = valid and (thresholds >= 0).all() and ((thresholds <= 1) | (thresholds == NEVER)).all()
        if given is not None:
            valid = valid and ((given[:, 1] >= 0) & (given[:, 1] <= given[:, 0])).all()
        if not valid or not (precision is None or 0 < float(precision) < 1):
            raise UserError(f"{origin}: its calibration has values out of range for {count} labels; get a fresh copy")
        return cls(split, n, scale, offset, thresholds, None if precision is None else float(precision), given)


def fit_label(logits: np.ndarray, labels: np.ndarray, prior: float = PRIOR_SAMPLES) -> tuple[float, float]:
    """(scale, offset) of one label: logits (n,), labels (n,) bool.

    Newton's method on the cross-entropy of the images and of `prior` pseudo-images, which are spread over the same
    logits and have the uncalibrated probabilities as labels. Without them a label that no image has, or that is told
    apart without error, would ask for infinite numbers.
    """
    # float64, because Newton's method needs differences of nearly equal losses.
    z = logits.astype(np.float64)
    weight = 1 + prior / len(z)
    target = (labels + prior / len(z) * sigmoid(z)) / weight
    # Around the mean, because logits that hardly vary would otherwise leave scale and offset nearly interchangeable.
    mean = z.mean()
    design = np.stack([z - mean, np.ones(len(z))], 1)
    # Starts at the identity: no calibration.
    scale, center = minimize_cross_entropy(design, target, np.array([1.0, mean]))
    bounded = float(np.clip(scale, MIN_SCALE, MAX_SCALE))
    if bounded != scale:
        # The level belongs to its scale. The loss is convex, so with the scale at its bound only the level is left.
        (center,) = minimize_cross_entropy(design[:, 1:], target, np.array([mean]), bounded * design[:, 0])
    return bounded, float(np.clip(center - bounded * mean, -MAX_OFFSET, MAX_OFFSET))


def minimize_cross_entropy(
    design: np.ndarray, target: np.ndarray, start: np.ndarray, base: np.ndarray | float = 0.0
) -> np.ndarray:
    """The coefficients (k,) of the logits `base + design @ coefficients` that fit targets (n,) in 0 to 1 best."""

    def loss(solution: np.ndarray) -> float:
        values = base + design @ solution
        return float((np.logaddexp(0, values) - target * values).sum())

    solution = start
    for _ in range(50):
        p = sigmoid(base + design @ solution)
        gradient = design.T @ (p - target)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(len(start))
        step, size = np.linalg.solve(hessian, gradient), 1.0
        # Halved until the loss falls: far from the optimum a full step may overshoot.
        while size > 1e-6 and loss(solution - size * step) > loss(solution):
            size /= 2
        solution = solution - size * step if size > 1e-6 else solution
        if size <= 1e-6 or np.abs(size * step).max() < 1e-9:
            break
    return solution


def choose_threshold(probabilities: np.ndarray, labels: np.ndarray, precision: float | None = None) -> float:
    """The threshold of one label: probabilities (n,), labels (n,) bool.

    Thresholds lie halfway between two neighboring probabilities. With the largest F1, or the lowest that reaches
    `precision`; NEVER where none does. UNCHOSEN where no image has the label.
    """
    if not labels.any():
        return UNCHOSEN
    order = np.argsort(-probabilities, kind="stable")
    scores, hits = probabilities[order], np.cumsum(labels[order])
    ends = np.flatnonzero(np.r_[scores[1:] < scores[:-1], True])  # equal probabilities are one threshold
    predicted, tp = ends + 1, hits[ends]
    below = np.r_[scores[ends[:-1] + 1], 0.0]
    cut = (scores[ends] + below) / 2
    cut[-1] = min(scores[-1], UNCHOSEN)
    if precision is None:
        return float(cut[np.argmax(2 * tp / (predicted + labels.sum()))])
    reached = np.flatnonzero(tp / predicted >= precision)
    return float(cut[reached[-1]]) if len(reached) else NEVER


def cross_fit_labels(
    outputs: Outputs, precision: float | None = None, fitting: np.ndarray | None = None
) -> tuple[Outputs, np.ndarray]:
    """Outputs and decisions of which each is calibrated and decided by what was fitted on the other folds.

    With `fitting`, (n,) bool, only these images of the other folds fit.
    Measures thresholds on the images that also chose them, without the optimism of choosing and measuring on the same.
    """
    n = len(outputs.labels)
    units = n if outputs.group_count is None else outputs.group_count
    fold = stratified_label_folds(outputs.labels, min(FOLDS, units), 0, outputs.groups)
    fitting = np.ones(n, bool) if fitting is None else fitting
    whole = LabelCalibration.fit(outputs.take(fitting), "", precision)
    logits = whole.apply(outputs).logits
    decisions = whole.decide(sigmoid(logits))
    for number in range(FOLDS):
        held_out = fold == number
        others = fitting & ~held_out
        if held_out.any() and others.any():
            fitted = LabelCalibration.fit(outputs.take(others), "", precision)
            logits[held_out] = fitted.apply(outputs.take(held_out)).logits
            decisions[held_out] = fitted.decide(sigmoid(logits[held_out]))
    assert math.isfinite(float(np.abs(logits).max()))
    return replace(outputs, logits=logits), decisions
