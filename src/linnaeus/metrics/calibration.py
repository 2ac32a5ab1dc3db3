"""Probabilities that mean what they say: temperature scaling, and how far confidence and accuracy are apart.

The network's logits are divided by one number, the temperature, fitted on validation images (Guo et al. 2017,
arXiv:1706.04599, section 4.2). It changes no answer, only how sure the model is of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnaeus.errors import UserError
from linnaeus.metrics.intervals import interval
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import ERROR, Curve, Point, Rule, choose, risk_curve

BINS = 15
COLDEST, HOTTEST = 0.05, 100.0
"""Temperatures that are found. Beyond them logits are broken, and no single number mends them."""
PSEUDO = 10.0
"""Images that the network is taken to have judged rightly before any was seen: what keeps a fit on few in bounds."""
FOLDS = 5
MOST = 10**8  # images that a file may claim to have been calibrated on


def at_a_bound(temperature: float) -> str:
    """What a temperature at the end of what is looked at means, in words; nothing for any other."""
    if COLDEST * 1.001 < temperature < HOTTEST / 1.001:
        return ""
    why = "answers are no better than chance, or sure of the wrong ones" if temperature > 1 else "logits are too small"
    return f"calibration failed, at the bound of {temperature:.3g}: {why}; probabilities mean nothing"


def fit_temperature(outputs: Outputs, pseudo: float = PSEUDO) -> float:
    """The temperature at which the log loss is smallest, drawn a little towards 1.

    In b = 1/T the loss is convex, so its slope has one zero at most, found by halving an interval of log T. To the n
    images `pseudo` others are added on which the network, as it is, is exactly right about its probabilities: their
    loss is the cross-entropy of its answers at T with its answers at 1, convex too and smallest at T = 1. Without them
    a sample without mistakes asks for T = 0, which is to be certain of everything. With 10 of them and n = 20, all
    right, the share of doubt shrinks to a third or so, about what the rule of succession says; with n = 1,000 they
    move log T by 1 %.
    """
    logits = outputs.logits.astype(np.float64)
    logits = logits - logits.max(1, keepdims=True)
    n = len(logits)
    true = logits[np.arange(n), outputs.labels].mean()

    def expected(temperature: float) -> float:
        """The mean logit that the network expects of the right class, at a temperature."""
        weights = np.exp(logits / temperature)
        return float(((weights * logits).sum(1) / weights.sum(1)).mean())

    usual = expected(1.0)

    def slope(log_t: float) -> float:
        """The derivative of the loss by 1/T: what is expected, less what is."""
        found = expected(math.exp(log_t))
        return float(n * (found - true) + pseudo * (found - usual))

    if abs(slope(0.0)) <= 1e-12 * n:
        return 1.0  # nothing to be learned: as it is already, or so certain that no slope is left
    low, high = math.log(COLDEST), math.log(HOTTEST)
    while high - low > 1e-6:
        middle = (low + high) / 2
        if slope(middle) > 0:  # a larger 1/T is worse: the temperature lies above
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)


def cross_fitted(outputs: Outputs, folds: int = FOLDS, seed: int = 0) -> Outputs:
    """Each image at a temperature fitted on others: of `folds` parts, drawn at random, on all but its own.

    A group lies in one part, whole.
    """
    n = len(outputs.labels)
    groups = np.arange(n) if outputs.groups is None else np.unique(outputs.groups, return_inverse=True)[1]
    units = int(groups.max()) + 1
    fold = (np.random.default_rng(seed).permutation(units) % min(folds, units))[groups]
    scaled = outputs.logits.astype(np.float64)
    for part in range(min(folds, units)):
        own = fold == part
        if not own.all():
            scaled[own] /= fit_temperature(outputs.take(~own))
    return replace(outputs, logits=scaled)


def bins_of(confidence: np.ndarray, bins: int = BINS, *, equal_mass: bool = False) -> np.ndarray:
    """(n,) probabilities of the first class -> (n,) int64, the bin of each in 0..bins - 1.

    Of equal width, ((b - 1)/bins, b/bins] as in Guo et al. 2017; or of equal mass, the same number of images in each
    up to one (Nixon et al. 2019, arXiv:1904.01685), where equal probabilities may lie on both sides of an edge.
    """
    if not equal_mass:
        return np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    place = np.empty(len(confidence), np.int64)
    place[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
    return place * bins // len(confidence)


def calibration_error(confidence: np.ndarray, right: np.ndarray, *, equal_mass: bool = False) -> float:
    """Expected calibration error of the first class, in 0..1 (Naeini et al. 2015; Guo et al. 2017, eq. 3).

    The distance between mean confidence and accuracy in each of 15 bins, weighted by the share of images in it. It
    is above 0 for a perfect model too, by chance; the fewer the images, the more.
    """
    gaps = np.bincount(bins_of(confidence, equal_mass=equal_mass), weights=right - confidence)
    return float(np.abs(gaps).sum() / len(right))


def reliability(confidence: np.ndarray, right: np.ndarray, groups: np.ndarray | None = None) -> list[dict[str, Any]]:
    """A row for each of the 15 bins of equal width that holds images: what a reliability diagram shows."""
    bins = bins_of(confidence)
    rows = []
    for b in np.unique(bins).tolist():
        inside = bins == b
        n, correct = int(inside.sum()), int(right[inside].sum())
        rows.append(
            {
                "from": b / BINS,
                "to": (b + 1) / BINS,
                "n": n,
                "correct": correct,
                "confidence": float(confidence[inside].mean()),
                "accuracy": correct / n,
                "accuracy_ci95": list(interval(right[inside], None if groups is None else groups[inside])),
            }
        )
    return rows


@dataclass(frozen=True)
class Calibration:
    """What a model file holds under `calibration`: fitted on validation images, applied to every prediction."""

    temperature: float
    split: str
    curve: Curve
    """At the temperature; the threshold for another error is chosen from it again."""
    rule: Rule

    @classmethod
    def fit(cls, outputs: Outputs, split: str, error: float = ERROR) -> Calibration:
        """Temperature and threshold from what the network answers to the images of a split."""
        temperature = fit_temperature(outputs)
        scaled = outputs.at(temperature)
        curve = risk_curve(scaled.probabilities.max(1), scaled.predicted == scaled.labels, scaled.groups is not None)
        return cls(temperature, split, curve, choose(curve, error))

    def to_dict(self) -> dict[str, Any]:
        rows = zip(self.curve.thresholds.tolist(), self.curve.answered.tolist(), self.curve.wrong.tolist(), strict=True)
        return {
            "temperature": self.temperature,
            "split": self.split,
            "abstention": self.rule.to_dict(),
            "curve": [list(row) for row in rows],
        }

    @classmethod
    def from_dict(cls, values: Any, origin: str) -> Calibration:
        """The inverse of `to_dict`. Raises UserError, naming `origin`, where something is missing or cannot be."""
        try:
            temperature, abstention = float(values["temperature"]), values["abstention"]
            rows = np.array(values["curve"], np.float64).reshape(-1, 3)
            n, error = int(abstention["n"]), float(abstention["error"])
            grouped = bool(abstention.get("grouped", False))
            curve = Curve(n, rows[:, 0], rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64), grouped)
            estimated, promised = (_point(abstention[name], n) for name in ("estimated", "promised"))
            split = str(values["split"])
        except (KeyError, TypeError, ValueError, OverflowError) as problem:
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:120]
            raise UserError(f"{origin}: its calibration is not whole ({reason}); get a fresh copy") from None
        whole = np.isfinite(rows).all() and (rows >= 0).all() and (curve.answered <= n).all() and 1 <= n <= MOST
        if not (whole and 0 < temperature < math.inf and 0 < error < 1):
            raise UserError(f"{origin}: its calibration holds what cannot be, such as temperature {temperature}")
        return cls(temperature, split, curve, Rule(error, n, estimated, promised, grouped))


def _point(values: Any, n: int) -> Point | None:
    """A stored threshold. Raises ValueError where it is none."""
    if values is None:
        return None
    point = Point(float(values["threshold"]), int(values["answered"]), int(values["wrong"]))
    if not (0 <= point.threshold <= 1 and 0 <= point.wrong <= point.answered <= n):
        raise ValueError(f"threshold {point.threshold}")
    return point
