"""Probability calibration: how far confidence and accuracy differ, and what a model file holds of it.

References
----------
M. P. Naeini, G. F. Cooper and M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015.
C. Guo, G. Pleiss, Y. Sun and K. Q. Weinberger, On calibration of modern neural networks, ICML 2017, arXiv:1706.04599.
J. Nixon et al., Measuring calibration in deep learning, CVPR Workshops 2019, arXiv:1904.01685.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from linnaeus.errors import UserError
from linnaeus.metrics.abstention import AbstentionRule, OperatingPoint
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import (
    TARGET_RISK,
    RiskCoverageCurve,
    choose_thresholds,
    risk_coverage_curve,
)
from linnaeus.metrics.temperature import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature

BINS = 15
FEWEST_FITTING = 20  # fewer images without copies in training than these fit no calibration: then all do
MAX_SAMPLES = 10**8  # the largest number of calibration images that a model file may claim
MAX_CANDIDATES = 10**6  # the largest number of models to choose from that a model file may claim
FORMER_KEYS = {"error": "target_risk", "promised": "tested", "cautious": "uncorrected"}
"""Keys of the abstention rule in files of earlier versions -> their present names."""


def bin_indices(confidence: np.ndarray, *, equal_mass: bool = False) -> np.ndarray:
    """The bin of each image by the probability of its predicted class: (n,) -> (n,) int64 in 0..BINS - 1.

    Bins of equal width, ((b - 1)/BINS, b/BINS] (Guo et al. 2017), or of equal mass, whose numbers of images differ by
    at most one (Nixon et al. 2019); equal confidences may then lie in different bins.
    """
    if not equal_mass:
        return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    rank = np.empty(len(confidence), np.int64)
    rank[np.argsort(confidence, kind="stable")] = np.arange(len(confidence))
    return rank * BINS // len(confidence)


def calibration_error(confidence: np.ndarray, correct: np.ndarray, *, equal_mass: bool = False) -> float:
    """Expected calibration error (ECE) of the predicted class, in 0..1 (Naeini et al. 2015; Guo et al. 2017, eq. 3).

    The mean over the images of |accuracy - mean confidence| in the bin of the image, with 15 bins. It is biased
    upwards: even a perfectly calibrated model has an error above 0, and the more so the fewer the images.
    """
    gaps = np.bincount(bin_indices(confidence, equal_mass=equal_mass), weights=correct - confidence)
    return float(np.abs(gaps).sum() / len(correct))


def chance_words(mean: str, p95: str, *, skewed: bool) -> str:
    """`4.2 % on average, and up to 8.1 % in 95 of 100 samples`: what a perfectly calibrated model would show.

    `skewed`: the mean is not below the 95th percentile. That is no mistake: where almost all answers are certain,
    few samples have a wrong answer, but such a sample has a large error.
    """
    if skewed:
        return f"at most {p95} in 95 of 100 samples, and {mean} on average, because a rare wrong answer weighs much"
    return f"{mean} on average, and up to {p95} in 95 of 100 samples"


def reliability_diagram(
    confidence: np.ndarray, correct: np.ndarray, groups: np.ndarray | None = None
) -> list[dict[str, Any]]:
    """Rows of a reliability diagram: confidence and accuracy in each non-empty bin, of 15 bins of equal width."""
    bins = bin_indices(confidence)
    rows = []
    for b in np.unique(bins).tolist():
        inside = bins == b
        n, hits = int(inside.sum()), int(correct[inside].sum())
        interval = proportion_interval(correct[inside], None if groups is None else groups[inside])
        rows.append(
            {
                "from": b / BINS,
                "to": (b + 1) / BINS,
                "n": n,
                "correct": hits,
                "confidence": float(confidence[inside].mean()),
                "accuracy": hits / n,
                "accuracy_ci95": list(interval),
            }
        )
    return rows


@dataclass(frozen=True)
class Calibration:
    """Temperature and abstention rule of a model: fitted on validation, stored in the model file, always applied."""

    temperature: float
    split: str
    """The split on which they were fitted."""
    curve: RiskCoverageCurve
    """At this temperature; thresholds for another target risk are chosen from it without the images."""
    rule: AbstentionRule
    class_counts: tuple[int, ...] = ()
    """Images of each class that fitted the temperature; empty in files of earlier versions."""

    @classmethod
    def fit(cls, outputs: Outputs, split: str, candidates: int | None, target_risk: float = TARGET_RISK) -> Calibration:
        """Fit the temperature and the thresholds to the uncalibrated outputs of a split.

        `candidates` is the number of models, such as epochs, from which these images chose the best; 1 if they chose
        nothing, None if it is unknown.
        """
        temperature = fit_temperature(outputs)
        counts = np.bincount(outputs.labels, minlength=outputs.logits.shape[1])
        found = cls._of(temperature, outputs.at(temperature), split, candidates, target_risk)
        return replace(found, class_counts=tuple(counts.tolist()))

    @classmethod
    def _of(
        cls,
        temperature: float,
        scaled: Outputs,
        split: str,
        candidates: int | None,
        target_risk: float,
        unknown: int = 0,
    ) -> Calibration:
        """The thresholds for outputs that are divided by the temperature; `unknown` images are not among them."""
        grouped = scaled.groups is not None
        curve = risk_coverage_curve(scaled.confidence, scaled.correct, grouped, candidates, unknown)
        return cls(temperature, split, curve, choose_thresholds(curve, target_risk))

    def among_known(self, outputs: Outputs, limits: Thresholds) -> Calibration:
        """The same temperature, with thresholds chosen on those of the uncalibrated outputs that are not unknown."""
        scaled = outputs.at(self.temperature)
        known = ~limits.unknown(scaled.distances, scaled.confidence)
        if not known.any():
            return self
        unknown = int((~known).sum())
        candidates, target_risk = self.rule.candidates, self.rule.target_risk
        found = self._of(self.temperature, scaled.take(known), self.split, candidates, target_risk, unknown)
        return replace(found, class_counts=self.class_counts)

    def to_dict(self) -> dict[str, Any]:
        """What a model file holds under `calibration`."""
        rows = zip(self.curve.thresholds.tolist(), self.curve.answered.tolist(), self.curve.wrong.tolist(), strict=True)
        return {
            "temperature": self.temperature,
            "split": self.split,
            "abstention": self.rule.to_dict(),
            "class_counts": list(self.class_counts),
            "curve": [list(row) for row in rows],
        }

    @classmethod
    def from_dict(cls, values: Any, origin: str) -> Calibration:
        """The inverse of `to_dict`. Raises UserError, naming the file `origin`, for missing or impossible values."""
        try:
            temperature = float(values["temperature"])
            abstention = {FORMER_KEYS.get(key, key): value for key, value in values["abstention"].items()}
            rows = np.array(values["curve"], np.float64).reshape(-1, 3)
            n, target_risk = int(abstention["n"]), float(abstention["target_risk"])
            grouped = bool(abstention.get("grouped", False))
            candidates = None if abstention.get("candidates") is None else int(abstention["candidates"])
            answered, wrong = rows[:, 1].astype(np.int64), rows[:, 2].astype(np.int64)
            unknown = int(abstention.get("unknown", 0))  # files of earlier versions counted unknown images in n
            curve = RiskCoverageCurve(n, rows[:, 0], answered, wrong, grouped, candidates, unknown)
            estimated, tested = (_operating_point(abstention[name], n) for name in ("estimated", "tested"))
            uncorrected = _operating_point(abstention.get("uncorrected"), n)
            if candidates is None:  # a file that does not say for how many epochs its test holds
                tested, uncorrected = None, tested or uncorrected
            split = str(values["split"])
            counts = tuple(int(count) for count in values.get("class_counts") or ())
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as problem:
            reason = " ".join(f"{type(problem).__name__}: {problem}".split())[:120]
            raise UserError(f"{origin}: its calibration is incomplete ({reason}); get a fresh copy") from None
        valid = (
            1 <= n <= MAX_SAMPLES and _is_curve(rows, n) and (candidates is None or 1 <= candidates <= MAX_CANDIDATES)
        )
        # A fit ends within its range; a temperature far outside makes every answer certain, or all equal.
        fitted = MIN_TEMPERATURE * 0.99 <= temperature <= MAX_TEMPERATURE * 1.01
        if not (valid and fitted and 0 < target_risk < 1 and 0 <= unknown <= MAX_SAMPLES and _are_counts(counts)):
            raise UserError(
                f"{origin}: its calibration has values out of range (temperature {temperature}, n {n}, target "
                f"risk {target_risk}); get a fresh copy"
            )
        rule = AbstentionRule(target_risk, n, estimated, tested, grouped, candidates, uncorrected, unknown)
        return cls(temperature, split, curve, rule, counts)


def _are_counts(counts: tuple[int, ...]) -> bool:
    return all(0 <= count <= MAX_SAMPLES for count in counts)


def _is_curve(rows: np.ndarray, n: int) -> bool:
    """Whether rows of threshold, answered, wrong are a curve of n images: thresholds fall, and the counts rise."""
    if not (np.isfinite(rows).all() and (rows >= 0).all() and len(rows)):
        return False
    thresholds, answered, wrong = rows.T
    falls, rise = (np.diff(thresholds) <= 0).all(), (np.diff(answered) > 0).all() and (np.diff(wrong) >= 0).all()
    return bool(falls and rise and thresholds[0] <= 1 and (wrong <= answered).all() and answered[-1] <= n)


def _operating_point(values: Any, n: int) -> OperatingPoint | None:
    """A stored threshold. Raises ValueError if a value is out of range."""
    if values is None:
        return None
    point = OperatingPoint(float(values["threshold"]), int(values["answered"]), int(values["wrong"]))
    if not (0 <= point.threshold <= 1 and 0 <= point.wrong <= point.answered <= n):
        raise ValueError(f"threshold {point.threshold}, {point.wrong} wrong of {point.answered}, n {n}")
    return point
