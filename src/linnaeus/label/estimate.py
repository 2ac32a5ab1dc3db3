"""Held-out accuracy on a random share of the images, which stays valid however the questions are chosen.

Questions of small margin are hard ones: accuracy measured on them is too low. Leaving one image out in turn does not
help: the questions were chosen by a head that knew this image, so none fills the hole that it leaves. Measured on
flowers in the order of margins, accuracy by leave-one-out is 7 points too low on a random sample, and 21 points on all
labels. So a random part of the folder is reserved: its images are asked about in a random order, between the other
questions, and the head never learns from them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linnaeus.label.journal import ACCEPTED, UNKNOWN, Label
from linnaeus.metrics.intervals import exact_interval

RESERVED = 0.25
"""Share of the folder that is reserved, up to a half where that would be fewer than RESERVED_AT_LEAST images."""

RESERVED_AT_LEAST = 40

ENOUGH = 20  # images of the random sample below which no accuracy is stated

AUDIT_FIRST = 3
"""Every third question is about a reserved image until there are ENOUGH of them, and then every AUDIT_EVERY-th."""

AUDIT_EVERY = 5


@dataclass(frozen=True)
class Estimate:
    """Accuracy on the images of the random sample, none of which the head has learned from."""

    n: int
    correct: int
    low: float  # bounds of the 95 % interval (Clopper-Pearson), widened where near duplicates are among the images
    high: float
    most_frequent: int  # images of the most frequent class among them: always answering it has this many right

    @property
    def accuracy(self) -> float:
        return self.correct / self.n

    def to_dict(self) -> dict[str, Any]:
        return {"n": self.n, "correct": self.correct, "accuracy": self.accuracy, "ci95": [self.low, self.high]} | {
            "most_frequent": self.most_frequent,
            "no_better": self.low <= self.most_frequent / self.n < 1,
        }


def random_numbers(paths: Sequence[str]) -> np.ndarray:
    """(n,) float64 in 0..1 that depend on nothing but the path of each image, so that new images change no other."""
    keys = [
        hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8, key=b"audit").digest() for path in paths
    ]
    return np.array([int.from_bytes(key, "big") for key in keys], np.uint64) / 2.0**64


@dataclass
class Audit:
    """The random order of a folder, and the part of it that is reserved to measure accuracy."""

    paths: Sequence[str]
    order: np.ndarray = field(init=False)  # (n,) int64: all images; the reserved ones come first
    reserved: list[int] = field(init=False)

    def __post_init__(self) -> None:
        numbers = random_numbers(self.paths)
        share = min(0.5, max(RESERVED, RESERVED_AT_LEAST / max(1, len(numbers))))
        self.order = np.argsort(numbers, kind="stable")
        self.reserved = self.order[: int((numbers < share).sum())].tolist()

    def sample(self, labels: Mapping[str, Label], passed_over: Container[int]) -> tuple[list[int], int]:
        """(images of a class in the sample, number of images in it that a person has put into no class).

        The sample ends at the first reserved image that no person has labelled: those behind it may have been labelled
        for a reason. `passed_over`: images that do not end the sample: unreadable ones, and those skipped.
        """
        sample, unknown = [], 0
        for i in self.reserved:
            label = labels.get(self.paths[i])
            if label is None or label.provenance == ACCEPTED:
                # A skipped image stays out, as a person could not decide.
                if i in passed_over:
                    continue
                # Later answers would depend on the order of labelling: the sample must be a random prefix.
                break
            if label.label == UNKNOWN:
                unknown += 1
            else:
                sample.append(i)
        return sample, unknown

    def is_due(self, sampled: int, actions: int) -> bool:
        """Whether the next question is about a reserved image; `sampled` of the `actions` so far were about one."""
        return actions % (AUDIT_FIRST if sampled < ENOUGH else AUDIT_EVERY) == AUDIT_FIRST - 1

    def questions(self, labels: Mapping[str, Label], excluded: Container[int], n: int) -> list[int]:
        """The next `n` reserved images that no person has labelled."""
        images: list[int] = []
        for i in self.reserved:
            label = labels.get(self.paths[i])
            if (label is None or label.provenance == ACCEPTED) and i not in excluded:
                images.append(i)
                if len(images) == n:
                    break
        return images


def estimate(hits: np.ndarray, groups: np.ndarray, labels: np.ndarray) -> Estimate | None:
    """The accuracy over hits (n,) bool of images with `groups` and `labels`, (n,) int64; None for fewer than ENOUGH."""
    if len(hits) < ENOUGH:
        return None
    low, high = exact_interval(hits, groups)
    most_frequent = int(np.unique(labels, return_counts=True)[1].max())
    return Estimate(len(hits), int(hits.sum()), low, high, most_frequent)
