"""When to say "I don't know": risk and coverage, and the threshold that keeps the error among the answered.

An image is answered where the probability of its first class reaches a threshold. The share that is answered is the
coverage, the share of mistakes among them the risk (El-Yaniv and Wiener 2010; Geifman and El-Yaniv 2017,
arXiv:1705.08500).

Two thresholds are found. The *estimated* one answers most among those whose error on the sample is small enough;
beyond the sample that error is exceeded about as often as not. The *promised* one holds there too, with 95 %
confidence: a model that is wrong exactly as often as allowed would pass, at whichever coverage, in at most 5 % of
samples. That needs many images: 149 without a mistake for an error of 2 %.

Tried on 1,000 samples of 300 images from a known population, for an error of 5 %: 551 estimates were exceeded, and
11 of 139 promises. With 2,000 images: 521 estimates, and 4 of 987 promises.

What a promise rests on: the images to come are drawn like the sample; a more confident answer is not more often
wrong; and the model was fixed before. A sample that chose the best epoch and fitted a temperature bends the last one a
little, so the figure on images that chose nothing, where there are any, is the one to quote. Images in groups are
promised nothing: their mistakes come together, and who counts images counts one patient many times.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

ERROR = 0.02
CONFIDENCE = 0.95
STEPS = 100  # coverages that are tried, in equal steps
EXACT = 2e8  # n * n * error up to which a promise is computed exactly: half a second


@dataclass(frozen=True)
class Curve:
    """How many of n images are answered at falling thresholds, and how many of these wrongly.

    The rows answer 1 %, 2 % … 100 % of the images, rounded up, and more where probabilities are equal. The last
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
    """Whether images come in groups, where mistakes come together; counting them then promises nothing."""


@dataclass(frozen=True)
class Point:
    """A threshold, and what it did to the images that it was chosen on."""

    threshold: float
    answered: int
    wrong: int


@dataclass(frozen=True)
class Rule:
    """The thresholds for one error; None where there is none."""

    error: float
    """The largest share of mistakes among the answered, in 0..1."""
    n: int
    """Images that it was chosen on."""
    estimated: Point | None
    promised: Point | None
    grouped: bool = False
    """Whether the images came in groups, for which nothing is promised."""

    @property
    def applied(self) -> Point | None:
        """The threshold to use: the promised one, or else the estimated one."""
        return self.promised or self.estimated

    @property
    def threshold(self) -> float:
        """Below this an image is not answered; 0 where no threshold helps, so that everything is."""
        return 0.0 if self.applied is None else self.applied.threshold

    def __str__(self) -> str:
        point, share = self.applied, f"{100 * self.error:.3g} %"
        if point is None:
            return f"never: more than {share} of even the surest answers are wrong, so that no threshold helps"
        if point.threshold == 0:
            said = f"never: {point.wrong} of {self.n} wrong, and at most {share} are allowed; "
        else:
            said = f"below {point.threshold:.1%}, for at most {share} wrong among the answered: "
            said += f"{point.answered} of {self.n} answered ({point.answered / self.n:.1%}), {point.wrong} wrong; "
        if self.promised is not None:
            return f"{said}promised with {CONFIDENCE:.0%} confidence"
        return f"{said}an estimate, for {self.unpromised}"

    @property
    def unpromised(self) -> str:
        """Why nothing is promised."""
        if self.grouped:
            return "images in groups are promised nothing: their mistakes come together"
        needed = smallest(self.error)
        few = f"a promise takes {needed} images even without a mistake"
        return few if self.n < needed else "no threshold passes the test of a promise"

    def to_dict(self) -> dict[str, Any]:
        return {
            "error": self.error,
            "confidence": CONFIDENCE,
            "n": self.n,
            "smallest_n": smallest(self.error),
            "grouped": self.grouped,
            "estimated": None if self.estimated is None else asdict(self.estimated),
            "promised": None if self.promised is None else asdict(self.promised),
            "threshold": None if self.applied is None else self.threshold,
        }


def ranks(n: int, steps: int = STEPS) -> np.ndarray:
    """Numbers of answered images that are tried, rising to n. They depend on nothing but n, as a promise needs."""
    return np.unique(np.ceil(n * np.arange(1, steps + 1) / steps - 1e-9).astype(np.int64))


def risk_curve(confidence: np.ndarray, right: np.ndarray, grouped: bool = False) -> Curve:
    """The curve of images with these probabilities of the first class (n,), and whether it is the right one (n,)."""
    order = np.argsort(-confidence, kind="stable")
    confidence, mistakes = confidence[order], np.cumsum(~right[order])
    n = len(confidence)
    # (k,) answered, with all that are as likely as the last of them.
    last = np.unique(np.searchsorted(-confidence, -confidence[ranks(n) - 1], side="right"))
    # Halfway to the next: the same image, computed in another batch, must not fall on the other side.
    below = np.append(confidence, -confidence[-1])[last]
    thresholds, answered = (confidence[last - 1] + below) / 2, last.astype(np.int64)
    return Curve(n, thresholds, answered, mistakes[last - 1].astype(np.int64), grouped)


def aurc(confidence: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    """Area under the risk-coverage curve, and what of it a perfect order would save (Geifman et al. 2019).

    The mean over i of the share wrong among the i most confident; among equal probabilities, in random order.
    """
    _, group, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    mistakes = np.bincount(group, weights=~right)
    order = np.sort(group)
    each = mistakes[order] / sizes[order]  # mistakes spread evenly over images that cannot be told apart
    i = np.arange(1, len(right) + 1)
    area = float((np.cumsum(each) / i).mean())
    best = float((np.maximum(0, i - right.sum()) / i).mean())
    return area, area - best


def choose(curve: Curve, error: float = ERROR, confidence: float = CONFIDENCE) -> Rule:
    """The thresholds that keep the share of mistakes among the answered to `error`, with the most answers."""
    small = np.flatnonzero(curve.wrong <= error * curve.answered + 1e-9)
    tried = ranks(curve.n)
    tried = tried[(tried >= smallest(error, confidence)) & (not curve.grouped)]
    promised: np.ndarray = np.array([], np.int64)
    if len(tried):
        limits = boundary(tuple(tried.tolist()), error, 1 - confidence)
        allowed = dict(zip(tried.tolist(), limits.tolist(), strict=True))
        # Where probabilities are equal across a rank, more are answered than were to be tried: no rank to judge by.
        most = np.array([allowed.get(k, -1) for k in curve.answered.tolist()])
        promised = np.flatnonzero(curve.wrong <= most)

    def point(rows: np.ndarray) -> Point | None:
        if not len(rows):
            return None
        row = rows[-1]
        return Point(float(curve.thresholds[row]), int(curve.answered[row]), int(curve.wrong[row]))

    return Rule(error, curve.n, point(small), point(promised), curve.grouped)


def smallest(error: float, confidence: float = CONFIDENCE) -> int:
    """How many images, none of them wrong, it takes to promise an error: 149 for 2 %."""
    return math.ceil(math.log(1 - confidence) / math.log1p(-error) - 1e-9)


@functools.lru_cache(maxsize=64)
def boundary(tried: tuple[int, ...], error: float, delta: float) -> np.ndarray:
    """(k,) int64: the mistakes allowed among the first `tried` images, rising numbers; -1 where none passes.

    Each allowance is the largest whose binomial tail is at most alpha, and alpha is as large as it can be while answers
    that are wrong with probability `error`, independently, stay within any allowance with probability `delta` at most.
    All ranks may therefore be looked at and the best be taken: a minimum-p test (Westfall and Young 1993), as Learn
    then Test asks for (Angelopoulos et al. 2021, arXiv:2110.01052). Alpha is between delta / k and delta; the chance
    is computed exactly, by following the number of mistakes from rank to rank, or where that takes long alpha is
    delta / k, which is safe and costs little with so many images.
    """
    low, high = delta / len(tried), delta
    least = [_least(k, error) for k in tried]
    tails = [np.cumsum(binomial(k, error, math.ceil(k * error), first)) for k, first in zip(tried, least, strict=True)]

    def allowances(alpha: float) -> np.ndarray:
        return np.array([np.searchsorted(tail, alpha, side="right") for tail in tails]) - 1 + np.array(least)

    for _ in range(16 if tried[-1] ** 2 * error <= EXACT else 0):
        middle = (low + high) / 2
        low, high = (middle, high) if _pass_by_chance(tried, allowances(middle), error) <= delta else (low, middle)
    return allowances(low)


def _pass_by_chance(tried: tuple[int, ...], allowed: np.ndarray, error: float) -> float:
    """The probability that mistakes made with probability `error` are within what is allowed at one rank or more."""
    states = int(allowed.max(initial=-1)) + 1
    if not states:
        return 0.0
    chances, passed, before = np.eye(1, states)[0], 0.0, 0  # of 0, 1, … mistakes so far; more can never pass again
    for rank, most in zip(tried, allowed.tolist(), strict=True):
        step = binomial(rank - before, error, min(states - 1, _most(rank - before, error)))
        chances = np.convolve(chances, step)[:states]
        passed += float(chances[: most + 1].sum())
        chances[: most + 1] = 0
        before = rank
    return passed


def _most(n: int, p: float) -> int:
    """A number of successes that n tries practically never exceed."""
    return min(n, math.ceil(n * p + 12 * math.sqrt(n * p * (1 - p)) + 30))


def _least(n: int, p: float) -> int:
    """A number of successes that n tries practically always exceed, where p is not small."""
    return max(0, math.floor(n * p - 40 * math.sqrt(n * p * (1 - p)) - 30))


def binomial(n: int, p: float, most: int, least: int = 0) -> np.ndarray:
    """(most - least + 1,) float64: the probabilities of `least` … `most` successes in n tries; 0 < p < 1."""
    k = np.arange(least, most + 1)
    first = math.lgamma(n + 1) - math.lgamma(least + 1) - math.lgamma(n - least + 1) if least else 0.0
    logs = first + np.concatenate([[0.0], np.cumsum(np.log((n - k[:-1]) / k[1:]))])
    return np.exp(logs + k * math.log(p) + (n - k) * math.log1p(-p))
