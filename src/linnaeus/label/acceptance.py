"""Batch acceptance: the images that the head is nearly sure of, with the errors to expect and a sample to verify."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from linnaeus.errors import UserError
from linnaeus.label.features import Features
from linnaeus.label.journal import ACCEPTED, Answer, Label
from linnaeus.label.learner import Learned
from linnaeus.metrics.intervals import most_successes

SURE = 0.99
LEVELS = (0.95, 0.98, SURE, 0.999)  # probabilities that the page offers as the least of a batch

PRIOR = 10
"""Weight of the calibrated doubts, in held-out answers.

Over 100 splits each (`benchmarks/label_intervals.py`) the doubts of batches at 0.99 are 467 on flowers16 and 336 on
MNIST, where 942 and 145 labels were wrong; with the held-out answers 1838 and 419 errors are expected.
"""

KEPT = 8  # batches that are remembered
VERIFY = 20  # images of a batch that a person must look at before the rest is accepted


@dataclass
class Batch:
    """Images to be labelled as the head says."""

    number: int
    answers: dict[int, str]  # image -> class
    doubt: float  # mean of 1 - p over the images, p being the calibrated probability of the class
    known: tuple[int, int]  # held-out answers that were as sure, and the wrong ones among them
    sample: list[int]  # images to verify first, drawn at random
    verified: dict[int, bool] = field(default_factory=dict)  # image of the sample -> whether the person agreed

    @property
    def wrong(self) -> int:
        """Images of the sample whose class the person has corrected."""
        return sum(not agreed for agreed in self.verified.values())

    def errors(self) -> tuple[float, int]:
        """(errors to expect, upper 95 % bound) among the images that no person has verified.

        Before the verification by the held-out answers that were as sure, after it by the sample, too; by the sample
        alone where it has more errors than those answers allow, which then say nothing about this batch.
        """
        seen, wrong = self.known
        if self.wrong > most_successes(wrong, seen, len(self.verified)):
            seen, wrong = 0, 0
        seen, wrong, rest = seen + len(self.verified), wrong + self.wrong, len(self.answers) - len(self.verified)
        return expected_errors(self.doubt, seen, wrong, rest), most_successes(wrong, seen, rest)

    def to_dict(self) -> dict[str, Any]:
        """As the page receives it."""
        expected, most = self.errors()
        return {
            "batch": self.number,
            "n": len(self.answers),
            "sample": [{"image": i, "label": self.answers[i]} for i in self.sample if i not in self.verified],
            "verified": len(self.verified),
            "wrong": self.wrong,
            "seen": self.known[0],
            "seen_wrong": self.known[1],
            "expected_errors": round(expected, 2),
            "most_errors": most,
        }


def held_out_errors(learned: Learned, accepted: Set[int], at_least: float) -> tuple[int, int]:
    """(held-out answers that were at least so sure, the wrong ones among them), of labels that a person gave.

    Near duplicates count once: they are right or wrong together.
    """
    if not learned.held_out.size:
        return 0, 0
    sure = (learned.held_out.max(1) >= at_least) & ~np.isin(learned.rows, list(accepted))
    wrong = sure & (learned.held_out.argmax(1) != learned.labels)
    return len(np.unique(learned.groups[sure])), len(np.unique(learned.groups[wrong]))


def expected_errors(doubt: float, seen: int, wrong: int, n: int) -> float:
    """Errors to expect among `n` images of mean calibrated `doubt` 1 - p, with `wrong` of `seen` answers as sure.

    The doubts alone are no estimate. They are fitted to all held-out answers, of which few are so sure; questions of
    small margin take the images away that were doubtful once, so that those never doubted, and wrong, remain; and a
    softmax knows no share of labels that are wrong whatever the image shows.
    """
    return (wrong + PRIOR * doubt) / (seen + PRIOR) * n


@dataclass
class Batches:
    """The batches that were proposed. Each keeps its answers, whatever the head learns meanwhile."""

    known: dict[int, Batch] = field(default_factory=dict)
    _proposed: int = 0

    def propose(
        self,
        features: Features,
        learned: Learned,
        excluded: Set[int],
        at_least: float = SURE,
        accepted: Set[int] = frozenset(),
    ) -> Batch:
        """The unlabelled images whose most probable class is at least `at_least` probable.

        `accepted`: images whose labels come from the head itself, and say nothing about its errors.
        """
        rows = np.flatnonzero(features.ready)
        rows = rows[~np.isin(rows, list(excluded))]
        answers: dict[int, str] = {}
        doubts: list[float] = []
        if learned.answers is not None and len(rows):
            probabilities = learned.answers.probabilities(rows)
            top, best = probabilities.max(1), probabilities.argmax(1)
            for k in np.flatnonzero(top >= at_least).tolist():
                answers[int(rows[k])] = learned.answers.classes[int(best[k])]
                doubts.append(1 - float(top[k]))
        number, self._proposed = self._proposed, self._proposed + 1
        images = sorted(answers)
        # Drawn at random, so that the sample stands for the batch; seeded, so that a reload shows the same.
        drawn = np.random.default_rng([number, len(images)]).permutation(len(images))[:VERIFY]
        doubt = float(np.mean(doubts)) if doubts else 0.0
        known = held_out_errors(learned, accepted, at_least)
        batch = Batch(number, answers, doubt, known, [images[k] for k in drawn.tolist()])
        self.known[number] = batch
        # Old proposals are dropped: their answers no longer fit the labels given since.
        self.known.pop(number - KEPT, None)
        return batch

    def sampled(self, number: int, images: Sequence[int]) -> Batch:
        """The batch, if the images are in its sample. Raises UserError otherwise."""
        batch = self._find(number)
        for image in images:
            if image not in batch.sample:
                raise UserError(f"image {image} is not in the sample of batch {number}; ask for the batch again")
        return batch

    def accept(self, number: int, paths: Sequence[str], labels: Mapping[str, Label]) -> list[Answer]:
        """The answers of a verified batch for images that nobody has labelled since. Raises UserError if unverified."""
        batch = self._find(number)
        missing = len(batch.sample) - len(batch.verified)
        if missing:
            raise UserError(f"batch {number}: {missing} images of its sample are not verified; look at them first")
        return [
            Answer(paths[i], label, ACCEPTED) for i, label in sorted(batch.answers.items()) if paths[i] not in labels
        ]

    def _find(self, number: int) -> Batch:
        if number not in self.known:
            raise UserError(f"no batch {number}: it is too old, or the server was restarted; ask for the batch again")
        return self.known[number]
