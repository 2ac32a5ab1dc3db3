"""Held-out accuracy on a random share of the questions, which stays valid however the other questions are chosen.

Questions of small margin are hard ones: accuracy measured on them is too low, and on what they leave over too high. So
the images are put into a random order once, and the first AUDIT_FIRST questions and each AUDIT_EVERY-th later one ask
about the first image of this order that no person has labelled. The images up to there are a simple random sample of
the folder, those among them that were asked for another reason included. Each is judged by a head that has not seen it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linnaeus.label.journal import ACCEPTED, UNKNOWN, Label
from linnaeus.metrics.intervals import proportion_interval

AUDIT_EVERY = 4
"""Every fourth question is a random one."""

AUDIT_FIRST = 20
"""The first questions are all random: until then there is no head whose margins could be asked about."""

ENOUGH = 20
"""Images of the random sample below which no accuracy is stated."""


@dataclass(frozen=True)
class Estimate:
    """Accuracy on the images of the random sample, each held out."""

    n: int
    correct: int
    low: float
    """Bounds of the 95 % interval (Wilson), widened where near duplicates are among the images."""
    high: float

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    def to_dict(self) -> dict[str, Any]:
        """As the page receives it."""
        return {"n": self.n, "correct": self.correct, "accuracy": self.accuracy, "ci95": [self.low, self.high]}


def random_order(paths: Sequence[str]) -> np.ndarray:
    """(n,) int64: the images in an order that depends on nothing but their paths, so that new images find a place."""
    keys = [
        hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8, key=b"audit").digest() for path in paths
    ]
    return np.argsort(np.array([int.from_bytes(key, "big") for key in keys], np.uint64), kind="stable")


@dataclass
class Audit:
    """The random sample of a folder."""

    paths: Sequence[str]
    order: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.order = random_order(self.paths).tolist()

    def sample(self, labels: Mapping[str, Label], passed_over: Container[int]) -> tuple[list[int], int]:
        """(images of a class in the sample, number of images in it that a person has put into no class).

        `passed_over`: images without an answer that do not end the sample: unreadable ones, and those skipped.
        """
        sample, unknown = [], 0
        for i in self.order:
            label = labels.get(self.paths[i])
            if label is None or label.provenance == ACCEPTED:
                if i in passed_over:
                    continue
                break
            if label.label == UNKNOWN:
                unknown += 1
            else:
                sample.append(i)
        return sample, unknown

    def counts(self, labels: Mapping[str, Label], passed_over: Container[int]) -> tuple[int, int]:
        """Numbers of images in the sample: (of a class, of no class)."""
        sample, unknown = self.sample(labels, passed_over)
        return len(sample), unknown

    def questions(self, labels: Mapping[str, Label], excluded: Container[int], n: int) -> list[int]:
        """The next `n` images of the order that no person has labelled."""
        found: list[int] = []
        for i in self.order:
            label = labels.get(self.paths[i])
            if (label is None or label.provenance == ACCEPTED) and i not in excluded:
                found.append(i)
                if len(found) == n:
                    break
        return found


def estimate(hits: np.ndarray, groups: np.ndarray) -> Estimate | None:
    """The accuracy over hits (n,) bool of images in `groups` (n,) int64; None for fewer than ENOUGH."""
    if len(hits) < ENOUGH:
        return None
    low, high = proportion_interval(hits, groups)
    return Estimate(len(hits), int(hits.sum()), low, high)
