"""The test of whether the share of errors among the most confident answers is below a target, at many coverages.

Images are ordered by falling confidence, and errors are counted among the first n1 < n2 < … of them.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.special import bdtr, bdtrik

CONFIDENCE = 0.95
EXACT = 2e8  # n * n * target risk up to which the test is computed exactly, in about half a second


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


def adjusted(confidence: float, candidates: int | None) -> float:
    """The confidence of each test so that it holds for all candidates together (union bound)."""
    return 1 - (1 - confidence) / (candidates or 1)
