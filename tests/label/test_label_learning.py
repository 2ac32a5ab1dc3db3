"""Learning from labels: held-out figures, and questions that do not depend on the reserved images."""

from __future__ import annotations

import os
import shutil
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from linnaeus.label.backbone import colors
from linnaeus.label.estimate import ENOUGH, Audit, estimate
from linnaeus.label.features import Features
from linnaeus.label.journal import ACCEPTED, Label
from linnaeus.label.learner import Learned, Learner
from linnaeus.label.selection import ORDERS, Pool, Selection, SelectionContext


def learner_of(n: int, seed: int = 0, noise: float = 2.0) -> tuple[Learner, np.ndarray]:
    """(a learner of n images with random features of three classes, the class of each)."""
    generator = np.random.default_rng(seed)
    features = Features(Path(), [f"{seed}/{i}.jpg" for i in range(n)], colors())
    truth = generator.integers(0, 3, n)
    means = generator.standard_normal((3, 20))
    features.values = np.zeros((n, 20), np.float16)
    features.values[:] = means[truth] + noise * generator.standard_normal((n, 20))
    features.hashes = generator.integers(1, 2**63, (n, 2), dtype=np.uint64)
    features.ready[:] = True
    return Learner(features, Audit(features.paths)), truth


def labels_of(learner: Learner, truth: np.ndarray, images: list[int], provenance: str = "human") -> dict[str, Label]:
    return {learner.features.paths[i]: Label("abc"[truth[i]], provenance, "", k) for k, i in enumerate(images)}


def ask(learner: Learner, truth: np.ndarray, order: str, n: int) -> tuple[dict[str, Label], Learned]:
    """Answer n questions."""
    selection, labels, learned, pool = Selection(order, learner), dict[str, Label](), Learned(), Pool()
    while len(labels) < n:
        for question in selection.choose(learned, pool, SelectionContext(labels, set(), len(labels)), 4):
            labels |= labels_of(learner, truth, [question.image])
        learned = learner.learn(labels)
        pool = pool.updated(learner, learned.taught)
    return labels, learned


@pytest.mark.parametrize("order", ORDERS)
def test_no_two_near_duplicates_are_asked_about_in_a_row(order: str):
    learner, truth = learner_of(60)
    features = learner.features
    kind = np.random.default_rng(1).integers(0, 8, 60)
    features.values, features.hashes = features.values[kind], features.hashes[kind]
    truth = truth[kind]
    selection, labels, learned, pool = Selection(order, learner), dict[str, Label](), Learned(), Pool()
    asked: list[int] = []
    while len(asked) < 24:
        now = SelectionContext(labels, set(), len(labels), asked[-1] if asked else None)
        (question,) = selection.choose(learned, pool, now, 1)
        asked.append(question.image)
        labels |= labels_of(learner, truth, [question.image])
        learned = learner.learn(labels)
        pool = pool.updated(learner, learned.taught)
    assert all(kind[a] != kind[b] for a, b in pairwise(asked))
    reserved = [i for i in asked if i in learner.audit.reserved]
    assert len(reserved) >= 4
    assert reserved == learner.audit.reserved[: len(reserved)]


def test_neither_head_nor_questions_depend_on_the_labels_of_reserved_images():
    learner, truth = learner_of(200)
    others = learner.audit.order[len(learner.audit.reserved) :].tolist()[:30]
    alone = learner.learn(labels_of(learner, truth, others))
    pool = Pool().updated(learner, alone.taught)
    both = learner.learn(labels_of(learner, truth, others + learner.audit.reserved))
    assert both.answers is not None
    assert alone.answers is not None
    rows = np.arange(200)
    assert both.answers.probabilities(rows) == pytest.approx(alone.answers.probabilities(rows), abs=1e-6)
    assert np.array_equal(Pool().updated(learner, both.taught).closest, pool.closest)
    assert not set(pool.rows.tolist()) & set(learner.audit.reserved)
    assert both.estimate is not None
    assert (both.estimate.n, alone.estimate) == (len(learner.audit.reserved), None)


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_asks_about_each_image_once_and_keeps_a_share_for_the_figures(order: str):
    learner, truth = learner_of(120)
    labels, learned = ask(learner, truth, order, 60)
    assert len(labels) == 60
    assert learned.estimate is not None
    assert learned.estimate.n == ENOUGH
    labels, _ = ask(learner, truth, order, 120)
    assert len(labels) == 120


def test_accepted_labels_are_asked_about_again_and_never_count_in_the_sample():
    learner, truth = learner_of(100)
    labels = labels_of(learner, truth, list(range(100)), ACCEPTED)
    assert learner.learn(labels).estimate is None
    questions = Selection("mixed", learner).choose(learner.learn(labels), Pool(), SelectionContext(labels, set(), 0), 4)
    assert [q.image for q in questions] == learner.audit.reserved[:4]


def test_copies_of_reserved_images_are_not_learned_from():
    learner, truth = learner_of(100)
    reserved, other = learner.audit.reserved[0], int(learner.audit.order[-1])
    for values in (learner.features.values, learner.features.hashes):
        values[other] = values[reserved]
    learned = learner.learn(labels_of(learner, truth, learner.audit.order.tolist()))
    assert other in learned.rows
    assert other not in learned.taught
    assert set(learned.taught) == set(learner.audit.order[len(learner.audit.reserved) :]) - {other}


def test_a_wrong_label_is_a_suspect():
    learner, truth = learner_of(150, noise=0.3)
    labels = labels_of(learner, truth, list(range(150)))
    wrong = [3, 77]
    for i in wrong:
        path = learner.features.paths[i]
        labels[path] = Label("abc"[(truth[i] + 1) % 3], "human", "", i)
    found = learner.learn(labels).suspects()
    assert found
    assert {suspect.image for suspect in found} <= set(wrong)
    assert all(suspect.suggested == "abc"[truth[suspect.image]] for suspect in found)


@pytest.mark.long
def test_intervals_cover_the_accuracy_under_margin_sampling():
    """Of 95 % intervals of 150 simulated users, at least 90 % contain the accuracy on images that nobody labels."""
    inside = []
    for seed in range(150):
        learner, truth = learner_of(300, seed, noise=3.0)
        spare, spare_truth = np.arange(150, 300), truth[150:]
        learner.audit.order = learner.audit.order[np.argsort(learner.audit.order >= 150, kind="stable")]
        learner.features.ready[150:] = False
        learner.audit.reserved = [i for i in learner.audit.reserved if i < 150]
        first = [i for i in learner.audit.order.tolist() if i < 150 and i not in learner.audit.reserved]
        learner.audit.order = np.array([*learner.audit.reserved, *first])
        _, learned = ask(learner, truth, "margin", 80)
        assert learned.estimate is not None
        assert learned.answers is not None
        correct = np.array(learned.answers.classes)[learned.answers.probabilities(spare).argmax(1)]
        accuracy = (correct == np.array(list("abc"))[spare_truth]).mean()
        inside.append(learned.estimate.low <= accuracy <= learned.estimate.high)
    assert np.mean(inside) >= 0.9


def test_an_accuracy_that_the_most_frequent_class_has_too_is_marked():
    labels, alone = np.repeat([0, 1], [36, 4]), np.arange(40)
    stated = []
    for right in (36, 40):
        found = estimate(alone < right, alone, labels)
        assert found is not None
        stated.append((found.to_dict()["most_frequent"], found.to_dict()["no_better"]))
    assert stated == [(36, True), (36, False)]
    one_class = estimate(alone < 40, alone, np.zeros(40, np.int64))
    assert one_class is not None
    assert one_class.to_dict()["no_better"] is False, "no other answer could be better"


def test_images_of_one_size_that_are_exchanged_with_their_times_are_computed_again(tmp_path: Path):
    def computed() -> Features:
        features = Features(tmp_path, ["0.bmp", "1.bmp"], colors())
        features.start()
        while features.done < 2:
            time.sleep(0.01)
        features.stop()
        return features

    for k in range(2):
        Image.fromarray(np.full((32, 32, 3), 40 + 150 * k, np.uint8)).save(tmp_path / f"{k}.bmp")
        os.utime(tmp_path / f"{k}.bmp", (1, 1))
    before = computed().values
    shutil.copy2(tmp_path / "0.bmp", tmp_path / "kept")
    shutil.copy2(tmp_path / "1.bmp", tmp_path / "0.bmp")
    shutil.copy2(tmp_path / "kept", tmp_path / "1.bmp")
    assert not np.array_equal(before[0], before[1])
    np.testing.assert_array_equal(computed().values, before[::-1])
