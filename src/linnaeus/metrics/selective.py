"""Selective prediction: answer only above a confidence threshold, chosen so that few of the answers are wrong.

The model answers an image where the probability of its predicted class reaches a threshold, and abstains otherwise.
The share of images it answers is the coverage, the share of errors among the answers the risk (El-Yaniv and Wiener
2010; Geifman and El-Yaniv 2017, arXiv:1705.08500). For a target risk these thresholds are chosen on a labelled sample:

estimated    The largest coverage whose risk on the sample, with one more image that is wrong as often as all of
             them, is at most the target. On new images the risk exceeds the target about as often as not.
tested       The largest coverage that passes a test: a model whose true risk equals the target passes, at whichever
             coverage, in at most 5 % of samples. This needs many images; for a target of 2 % at least 149, without
             any error. It is a statement about all samples, not about those that pass: of a model that seldom
             passes, a larger share of the passes is by luck.
uncorrected  Where none is tested because the sample also chose the model: the largest coverage that would pass if
             the model had been fixed before, without the correction for several candidates. Nothing is guaranteed,
             but its risk exceeds the target less often than that of the estimated one.

Where none exists the model answers no image: its threshold is abstention.NO_ANSWER.

candidates   The test holds for a model that was fixed before the sample was drawn. Where the sample also chose the
             model, as validation chooses the best of k epochs, each epoch is tested at the level 5 % / k: by the
             union bound, at most 5 % of samples then contain an epoch that passes in spite of a risk above the
             target, whichever is chosen. Where k is unknown there is no test. Of 3,000 simulated samples of 400
             images, in which each of 20 epochs had just more than the target risk of 2 % and their errors overlapped
             by 86 %, 13.6 % passed at the level 5 %, and 0.8 % at this one; 19.7 % and 1.6 % at an overlap of 70 %,
             26.4 % and 1.7 % with 60 epochs.

Checked by simulation on 1,000 samples from a known population with a target of 5 %. With 300 images 551 of the
estimated thresholds exceeded the target, and 11 of 139 tested ones; with 2,000 images 521, and 4 of 987.

The test assumes that new images come from the distribution of the sample, and that a more confident answer is not
more often wrong. Epochs of a later phase start from the best of the earlier ones; that there could have been another
start is not counted, nor are settings that somebody chose by looking at validation. Quote the risk on a test set where
there is one.
There is no test for images in groups: errors within a group are correlated, and the binomial test assumes
independent images.

Images that the model calls unknown get no answer whatever their probability, so they choose no threshold: an error
among them is none that a threshold has to prevent. The counts are those of the whole procedure, unknown images first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnaeus.metrics.abstention import AbstentionRule, OperatingPoint
from linnaeus.metrics.risk_test import CONFIDENCE, adjusted, allowed_errors, required_samples

TARGET_RISK = 0.02
COVERAGES = 100  # coverages that are tested, in equal steps


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Number of answers, and of errors among them, at falling thresholds.

    Row by row 1 %, 2 % … 100 % of the images are answered, rounded up, and more where confidences are equal. The last
    threshold is 0.
    """

    n: int
    thresholds: np.ndarray  # (k,) float64, falling
    answered: np.ndarray  # (k,) int64
    wrong: np.ndarray  # (k,) int64
    grouped: bool = False  # whether the images come in groups, which rules out the test
    # Number of models from which these images chose this one; None: unknown, which rules out the test too.
    candidates: int | None = 1
    unknown: int = 0  # number of images beside the n that the model calls unknown, and so does not answer


def is_unsure(probability: float, threshold: float) -> bool:
    """Whether a model abstains from an answer of this probability. NaN counts as unsure."""
    return not probability >= threshold


def candidate_counts(n: int) -> np.ndarray:
    """Numbers of answered images that are candidates, rising to n.

    They depend on n alone: counts chosen after looking at the answers would invalidate the test.
    """
    return np.unique(np.ceil(n * np.arange(1, COVERAGES + 1) / COVERAGES - 1e-9).astype(np.int64))


def risk_coverage_curve(
    confidence: np.ndarray, correct: np.ndarray, grouped: bool = False, candidates: int | None = 1, unknown: int = 0
) -> RiskCoverageCurve:
    """The curve of n images from the probability of the predicted class, (n,), and whether it is right, (n,) bool.

    `unknown`: number of images beside them that the model calls unknown.
    """
    order = np.argsort(-confidence, kind="stable")
    confidence, errors = confidence[order], np.cumsum(~correct[order])
    n = len(confidence)
    # Images with the same confidence are answered together, so a count grows to the last image of equal confidence.
    answered = np.unique(np.searchsorted(-confidence, -confidence[candidate_counts(n) - 1], side="right"))
    # A threshold lies halfway to the next confidence: the same image, computed in another batch, differs by rounding
    # and must not fall on the other side.
    following = np.append(confidence, -confidence[-1])[answered]
    thresholds = (confidence[answered - 1] + following) / 2
    wrong = errors[answered - 1].astype(np.int64)
    return RiskCoverageCurve(n, thresholds, answered.astype(np.int64), wrong, grouped, candidates, unknown)


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
    """The thresholds of largest coverage that keep the risk at `target_risk`."""
    # One image right by chance is no evidence. The pseudo-image makes a model that is often wrong need more of them.
    overall = curve.wrong[-1] / curve.answered[-1]
    # One more wrong answer than seen, as in conformal risk control.
    estimated = np.flatnonzero(curve.wrong + overall <= target_risk * (curve.answered + 1) + 1e-9)
    tested = uncorrected = np.array([], np.int64)
    if not curve.grouped and curve.candidates is not None:
        tested = _passing(curve, target_risk, adjusted(confidence, curve.candidates))
    if not curve.grouped and curve.candidates != 1 and not len(tested):
        uncorrected = _passing(curve, target_risk, confidence)

    # The last row of rising coverage answers most.
    def last(rows: np.ndarray) -> OperatingPoint | None:
        if not len(rows):
            return None
        row = rows[-1]
        return OperatingPoint(float(curve.thresholds[row]), int(curve.answered[row]), int(curve.wrong[row]))

    return AbstentionRule(
        target_risk,
        curve.n,
        last(estimated),
        last(tested),
        curve.grouped,
        curve.candidates,
        last(uncorrected),
        curve.unknown,
    )


def _passing(curve: RiskCoverageCurve, target_risk: float, confidence: float) -> np.ndarray:
    """The rows of the curve that pass the test at this confidence, rising."""
    counts = candidate_counts(curve.n)
    counts = counts[counts >= required_samples(target_risk, confidence)]
    if not len(counts):
        return counts
    limits = allowed_errors(tuple(counts.tolist()), target_risk, 1 - confidence)
    limit_at = dict(zip(counts.tolist(), limits.tolist(), strict=True))
    # With equal confidences more images are answered than the tested count, and there is no limit for that number.
    allowed = np.array([limit_at.get(count, -1) for count in curve.answered.tolist()])
    return np.flatnonzero(curve.wrong <= allowed)
