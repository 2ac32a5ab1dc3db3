"""Selective prediction: answer only above a confidence threshold, chosen so that few of the answers are wrong.

The model answers an image where the probability of its predicted class reaches a threshold, and abstains otherwise.
The share of images it answers is the coverage, the share of errors among the answers the risk (El-Yaniv and Wiener
2010; Geifman and El-Yaniv 2017, arXiv:1705.08500). For a target risk two thresholds are chosen on a labelled sample:

estimated    The largest coverage whose risk on the sample, with one more image that is wrong as often as all of
             them, is at most the target. On new images the risk exceeds the target about as often as not.
tested       The largest coverage that passes a test: a model whose true risk equals the target passes, at whichever
             coverage, in at most 5 % of samples. This needs many images; for a target of 2 % at least 149, without
             any error. It is a statement about all samples, not about those that pass: of a model that seldom
             passes, a larger share of the passes is by luck.

Where neither exists the model answers no image: its threshold is NO_ANSWER.

Checked by simulation on 1,000 samples from a known population with a target of 5 %. With 300 images 551 of the
estimated thresholds exceeded the target, and 11 of 139 tested ones; with 2,000 images 521, and 4 of 987.

The test assumes that new images come from the distribution of the sample, that a more confident answer is not
more often wrong, and that the model was fixed before the sample was drawn. A validation set that also chose the best
epoch violates the last assumption. Of 1,500 simulated samples of 400 images, in which every epoch had just more than
the target risk of 2 %, 13 % passed with the best of 20 epochs whose errors overlap by 86 %, 18 % at an overlap of
70 %, and 26 % with the best of 60. Quote the risk on a test set where there is one.
There is no test for images in groups: errors within a group are correlated, and the binomial test assumes
independent images.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import bdtr, bdtrik

from linnaeus.text import percent

TARGET_RISK = 0.02
CONFIDENCE = 0.95
COVERAGES = 100  # coverages that are tested, in equal steps
NO_ANSWER = 2.0
"""The threshold of a model that answers no image: above every probability, and a number that JSON can hold."""
EXACT = 2e8  # n * n * target risk up to which the test is computed exactly, in about half a second


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Number of answers, and of errors among them, at falling thresholds.

    Row by row 1 %, 2 % … 100 % of the images are answered, rounded up, and more where confidences are equal. The last
    threshold is 0.
    """

    n: int
    thresholds: np.ndarray
    """(k,) float64, falling."""
    answered: np.ndarray
    """(k,) int64."""
    wrong: np.ndarray
    """(k,) int64."""
    grouped: bool = False
    """Whether the images come in groups, which rules out the test."""


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and its effect on a set of images."""

    threshold: float
    answered: int
    wrong: int


@dataclass(frozen=True)
class AbstentionRule:
    """The two thresholds for one target risk; None where no threshold qualifies."""

    target_risk: float
    """The largest acceptable share of errors among the answers, in 0..1."""
    n: int
    """Number of images on which the thresholds were chosen."""
    estimated: OperatingPoint | None
    tested: OperatingPoint | None
    grouped: bool = False
    """Whether these images came in groups, for which there is no test."""

    @property
    def applied(self) -> OperatingPoint | None:
        """The threshold in use: the tested one, else the estimated one."""
        return self.tested or self.estimated

    @property
    def threshold(self) -> float:
        """The model abstains below this probability; NO_ANSWER where no threshold qualifies."""
        return NO_ANSWER if self.applied is None else self.applied.threshold

    @property
    def answers(self) -> str:
        """Which images the model answers: `all`, `some` or `none`."""
        if self.applied is None:
            return "none"
        return "some" if self.applied.threshold > 0 else "all"

    @property
    def notice(self) -> str:
        """What to say first of a model that answers no image; empty for the others."""
        if self.applied is not None:
            return ""
        share = percent(self.target_risk, 0, exact=True)
        return (
            f'at no threshold are at most {share} of the answers wrong, so this model answers "unsure" to every image'
        )

    def __str__(self) -> str:
        point, share = self.applied, percent(self.target_risk, 0, exact=True)
        if point is None:
            return f"always: even among the most confident of {self.n} answers more than {share} are wrong"
        if point.threshold == 0:
            text = f"never: {point.wrong} of {self.n} answers are wrong, and {share} are allowed; "
        else:
            text = f"below {percent(point.threshold, exact=True)}, so that at most {share} of the answers are wrong: "
            text += f"{point.answered} of {self.n} answered ({percent(point.answered / self.n)}), {point.wrong} wrong; "
        if self.tested is not None:
            return f"{text}tested: with more errors it would pass in at most {percent(1 - CONFIDENCE, 0)} of samples"
        return f"{text}an estimate, not tested: {self.why_not_tested}"

    @property
    def why_not_tested(self) -> str:
        """Why no threshold passed the test, in words."""
        if self.grouped:
            return "the images come in groups, whose errors are correlated"
        required = required_samples(self.target_risk)
        if self.n < required:
            return f"at least {required} images are needed"
        return "no threshold passes the test"

    def to_dict(self) -> dict[str, Any]:
        """The rule for JSON and for the model file."""
        return {
            "error": self.target_risk,
            "confidence": CONFIDENCE,
            "n": self.n,
            "smallest_n": required_samples(self.target_risk),
            "grouped": self.grouped,
            "estimated": None if self.estimated is None else asdict(self.estimated),
            "promised": None if self.tested is None else asdict(self.tested),
            "threshold": None if self.applied is None else self.threshold,
            "answers": self.answers,
        }


def candidate_counts(n: int, steps: int = COVERAGES) -> np.ndarray:
    """Numbers of answered images that are candidates, rising to n.

    They depend on n alone: counts chosen after looking at the answers would invalidate the test.
    """
    return np.unique(np.ceil(n * np.arange(1, steps + 1) / steps - 1e-9).astype(np.int64))


def risk_coverage_curve(confidence: np.ndarray, correct: np.ndarray, grouped: bool = False) -> RiskCoverageCurve:
    """The curve of n images from the probability of the predicted class, (n,), and whether it is right, (n,) bool."""
    order = np.argsort(-confidence, kind="stable")
    confidence, errors = confidence[order], np.cumsum(~correct[order])
    n = len(confidence)
    # Images with the same confidence are answered together, so a count grows to the last image of equal confidence.
    answered = np.unique(np.searchsorted(-confidence, -confidence[candidate_counts(n) - 1], side="right"))
    # A threshold lies halfway to the next confidence: the same image, computed in another batch, differs by rounding
    # and must not fall on the other side.
    following = np.append(confidence, -confidence[-1])[answered]
    thresholds = (confidence[answered - 1] + following) / 2
    return RiskCoverageCurve(n, thresholds, answered.astype(np.int64), errors[answered - 1].astype(np.int64), grouped)


def aurc(confidence: np.ndarray, correct: np.ndarray) -> tuple[float, float]:
    """Area under the risk-coverage curve, and its excess over that of a perfect ranking (Geifman et al. 2019).

    The area is the mean over i of the share of errors among the i most confident images, in 0..1, lower is better;
    images of equal confidence count as in random order. A perfect ranking puts all errors last.
    """
    _, tie, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    errors = np.bincount(tie, weights=~correct)
    order = np.sort(tie)
    expected_errors = errors[order] / sizes[order]  # spread evenly over images of equal confidence
    i = np.arange(1, len(correct) + 1)
    area = float((np.cumsum(expected_errors) / i).mean())
    best = float((np.maximum(0, i - correct.sum()) / i).mean())
    return area, area - best


def choose_thresholds(
    curve: RiskCoverageCurve, target_risk: float = TARGET_RISK, confidence: float = CONFIDENCE
) -> AbstentionRule:
    """The thresholds of largest coverage that keep the risk at `target_risk`, estimated and tested."""
    # One image right by chance is no evidence. The pseudo-image makes a model that is often wrong need more of them.
    overall = curve.wrong[-1] / curve.answered[-1]
    estimated = np.flatnonzero(curve.wrong + overall <= target_risk * (curve.answered + 1) + 1e-9)
    counts = candidate_counts(curve.n)
    counts = counts[(counts >= required_samples(target_risk, confidence)) & (not curve.grouped)]
    tested: np.ndarray = np.array([], np.int64)
    if len(counts):
        limits = allowed_errors(tuple(counts.tolist()), target_risk, 1 - confidence)
        limit_at = dict(zip(counts.tolist(), limits.tolist(), strict=True))
        # With equal confidences more images are answered than the tested count, and there is no limit for that number.
        allowed = np.array([limit_at.get(count, -1) for count in curve.answered.tolist()])
        tested = np.flatnonzero(curve.wrong <= allowed)

    def last(rows: np.ndarray) -> OperatingPoint | None:
        if not len(rows):
            return None
        row = rows[-1]
        return OperatingPoint(float(curve.thresholds[row]), int(curve.answered[row]), int(curve.wrong[row]))

    return AbstentionRule(target_risk, curve.n, last(estimated), last(tested), curve.grouped)


def required_samples(target_risk: float, confidence: float = CONFIDENCE) -> int:
    """The smallest number of images, all answered correctly, that passes the test of a risk: 149 for 2 %."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-target_risk) - 1e-9)


@functools.lru_cache(maxsize=64)
def allowed_errors(counts: tuple[int, ...], risk: float, delta: float) -> np.ndarray:
    """Largest number of errors among the first `counts` images that still passes the test, (k,) int64; -1: none passes.

    `counts` rise. All counts may be tested and the largest that passes be taken: with independent errors of
    probability `risk`, the probability that any count passes is at most `delta`. This is a minimum-p test (Westfall
    and Young 1993) as used by Learn then Test (Angelopoulos et al. 2021, arXiv:2110.01052). Every count is tested at
    the same level alpha, between delta / k (Bonferroni) and delta. The largest valid alpha is found by bisection; where
    that would take too long, alpha is delta / k, which is valid and loses little with so many images.
    """
    low, high = delta / len(counts), delta
    for _ in range(16 if counts[-1] ** 2 * risk <= EXACT else 0):
        middle = (low + high) / 2
        valid = false_pass_probability(counts, _binomial_limits(counts, risk, middle), risk) <= delta
        low, high = (middle, high) if valid else (low, middle)
    return _binomial_limits(counts, risk, low)


def _binomial_limits(counts: tuple[int, ...], risk: float, alpha: float) -> np.ndarray:
    """For each count n the largest k with P(Binomial(n, risk) <= k) <= alpha, (k,) int64; -1 where there is none."""
    n = np.array(counts)
    limits = np.floor(bdtrik(alpha, n, risk)).astype(np.int64)
    # The inverse is accurate to rounding only, and is 0 even where k = 0 is too likely: settle both by the function.
    limits += bdtr(limits + 1, n, risk) <= alpha
    limits -= bdtr(limits, n, risk) > alpha
    return limits


def false_pass_probability(counts: tuple[int, ...], allowed: np.ndarray, risk: float) -> float:
    """Probability that errors of probability `risk` stay within the `allowed` number at one count or more.

    Computed exactly: the distribution of the number of errors is carried from count to count, and the part that has
    passed is removed from it.
    """
    states = int(allowed.max(initial=-1)) + 1  # more errors than this can never pass
    if not states:
        return 0.0
    steps = {n: _binomial_pmf(n, risk, states) for n in set(np.diff(counts, prepend=0).tolist())}
    distribution, passed, before = np.eye(1, states)[0], 0.0, 0
    for count, limit in zip(counts, allowed.tolist(), strict=True):
        distribution = np.convolve(distribution, steps[count - before])[:states]
        passed += float(distribution[: limit + 1].sum())
        distribution[: limit + 1] = 0
        before = count
    return passed


def _binomial_pmf(n: int, p: float, size: int) -> np.ndarray:
    """Probabilities of 0, 1 … successes in n trials, (size or fewer,): the tail below 1e-30 is cut off."""
    most = min(n, size - 1, math.ceil(n * p + 12 * math.sqrt(n * p * (1 - p)) + 30))
    return np.diff(bdtr(np.arange(most + 1), n, p), prepend=0.0)
