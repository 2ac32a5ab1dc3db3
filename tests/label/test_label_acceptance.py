"""Batches that are accepted: the errors that are stated before a person has verified them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from linnaeus.label.acceptance import PRIOR, Batch, Batches
from linnaeus.label.backbone import colors
from linnaeus.label.features import Features
from linnaeus.label.learner import Learned
from linnaeus.metrics.intervals import most_successes

SURE = np.array([0.995, 0.005])


@dataclass
class AlwaysSure:
    classes: tuple[str, ...] = ("a", "b")

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        return np.tile(SURE, (len(rows), 1))


def learned(wrong: int, right: int, doubtful: int = 0) -> Learned:
    """Held-out answers about the first images: sure ones, `wrong` of them, and doubtful ones, which are all wrong."""
    n = wrong + right + doubtful
    held_out = np.concatenate([np.tile(SURE, (wrong + right, 1)), np.full((doubtful, 2), 0.5)])
    labels = np.array([1] * wrong + [0] * right + [1] * doubtful)
    rows = np.arange(n)
    return Learned(AlwaysSure(), rows, labels, ("a", "b"), groups=rows, taught=rows, held_out=held_out)


def proposed(answers: Learned, accepted: frozenset[int] = frozenset(), at_least: float = 0.99) -> Batch:
    """A batch of 100."""
    features = Features(None, [f"{i}.jpg" for i in range(answers.n + 100)], colors())  # type: ignore[arg-type]
    features.ready[:] = True
    batch = Batches().propose(features, answers, set(range(answers.n)), at_least, accepted)
    assert len(batch.answers) == 100
    return batch


def expected(answers: Learned, accepted: frozenset[int] = frozenset(), at_least: float = 0.99) -> float:
    """The errors stated for a batch of 100."""
    return proposed(answers, accepted, at_least).errors()[0]


def test_without_answers_that_were_as_sure_the_doubts_count() -> None:
    assert expected(learned(0, 0, doubtful=5)) == pytest.approx(0.5)


def test_wrong_answers_that_were_as_sure_count() -> None:
    prior = PRIOR * 0.005
    assert expected(learned(4, 36)) == pytest.approx(100 * (4 + prior) / (40 + PRIOR))
    assert expected(learned(4, 36, doubtful=9)) == expected(learned(4, 36)), "doubtful answers say nothing about it"
    assert expected(learned(4, 36), at_least=0.9) == expected(learned(4, 36))


def test_labels_that_the_head_gave_itself_do_not_count() -> None:
    accepted = frozenset(range(4, 40))
    assert expected(learned(4, 36), accepted) == expected(learned(4, 0)) > expected(learned(4, 36))


def test_at_most_so_many_errors_as_the_answers_that_were_as_sure_allow() -> None:
    assert proposed(learned(4, 36)).errors()[1] == most_successes(4, 40, 100) == 23
    assert proposed(learned(4, 36, doubtful=9)).errors()[1] == 23, "doubtful answers say nothing about it"
    assert proposed(learned(0, 0, doubtful=5)).errors()[1] == 100, "nothing is known"


def test_near_duplicates_say_only_once_that_the_head_is_right() -> None:
    answers = learned(2, 38)
    copies = replace(answers, groups=np.where(answers.rows < 2, 0, 2 + answers.rows % 4))
    assert proposed(copies).known == (5, 1)
    assert proposed(answers).known == (40, 2)


def test_the_verified_sample_counts_with_the_answers_that_were_as_sure() -> None:
    batch = proposed(learned(0, 40))
    batch.verified = dict.fromkeys(batch.sample, True)
    assert batch.errors()[1] == most_successes(0, 60, 80)
    batch.verified[batch.sample[0]] = False
    assert batch.errors()[1] == most_successes(1, 60, 80)
    assert batch.errors()[0] == pytest.approx(80 * (1 + PRIOR * 0.005) / (60 + PRIOR))


def test_a_sample_with_more_errors_than_the_answers_allow_counts_alone() -> None:
    batch = proposed(learned(0, 40))
    allowed = most_successes(0, 40, 20)
    batch.verified = {image: k >= allowed for k, image in enumerate(batch.sample)}
    assert batch.errors()[1] == most_successes(allowed, 60, 80)
    batch.verified[batch.sample[allowed]] = False
    assert batch.errors()[1] == most_successes(allowed + 1, 20, 80) > 3 * most_successes(allowed + 1, 60, 80) / 2
