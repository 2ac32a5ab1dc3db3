"""Scores of unknown images: thresholds, areas and the compact references."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from linnaeus.metrics.ood import (
    auroc,
    choose_thresholds,
    combined_scores,
    distances,
    passes_as_known,
    unit,
)
from linnaeus.metrics.reference_vectors import MOST_BYTES, MOST_VECTORS, reference_vectors


def test_both_thresholds_together_accept_the_share():
    """Averaged over samples, new images of the same kind are accepted at the stated rate, whatever the correlation."""
    generator = np.random.default_rng(0)
    accepted = []
    for _ in range(200):
        shared = generator.normal(size=(2, 200))
        distance = shared[0] ** 2
        probability = 1 / (1 + np.exp(-2 - shared[1] + 0.5 * shared[0]))
        t = choose_thresholds(distance[:100], probability[:100])
        accepted.append((~t.unknown(distance[100:], probability[100:])).mean())
    assert np.mean(accepted) == pytest.approx(0.95, abs=0.01)


def test_thresholds_lie_between_two_scores():
    """The same image computed in another batch differs by rounding and must not change sides."""
    distance, probability = np.arange(100.0), np.linspace(0.5, 0.99, 100)[::-1]
    t = choose_thresholds(distance, probability)
    assert t.accepted == 96  # of 100, ceil(101 * 0.95) accepted
    assert t.distance == 95.5
    assert not t.unknown(np.array([95.0 + 1e-6]), np.array([1.0]))
    assert t.unknown(np.array([96.0 - 1e-6]), np.array([1.0]))


@pytest.mark.parametrize("n", [1, 2, 18])
def test_few_images_accept_all_and_say_so(n: int):
    t = choose_thresholds(np.linspace(0.1, 0.2, n), np.linspace(0.9, 0.95, n))
    assert (t.accepted, t.few) == (n, True)
    assert not choose_thresholds(np.arange(19.0), None).few
    assert choose_thresholds(np.arange(38.0), np.linspace(0.5, 0.9, 38)).few, "each of two scores may reject"
    assert not choose_thresholds(np.arange(39.0), np.linspace(0.5, 0.9, 39)).few


@pytest.mark.parametrize("n", [2, 24, 60])
def test_the_assured_share_of_new_images_is_accepted(n: int):
    """Two independent scores: a new image of the same kind may be beyond either."""
    generator = np.random.default_rng(2)
    held = 0
    for _ in range(300):
        distance, probability = generator.random(n + 500), generator.random(n + 500)
        t = choose_thresholds(distance[:n], probability[:n])
        held += (~t.unknown(distance[n:], probability[n:])).mean() >= t.assured
    assert held / 300 >= 0.95
    assert 0 < t.assured < t.accepted / n


def test_the_assured_share_with_one_score_is_that_of_the_beta_distribution():
    assert choose_thresholds(np.arange(24.0), None).assured == pytest.approx(0.025 ** (1 / 24))


def test_without_a_distance_only_the_probability_counts():
    t = choose_thresholds(None, np.linspace(0, 1, 100))
    assert t.distance is None
    assert t.unknown(None, np.array([0.01, 0.9])).tolist() == [True, False]


def test_a_score_that_is_no_number_is_unknown():
    t = choose_thresholds(np.arange(50.0), np.linspace(0.5, 1, 50))
    assert t.unknown(np.array([np.nan, 1.0]), np.array([0.9, np.nan])).all()


def test_areas_agree_with_scikit_learn():
    generator = np.random.default_rng(0)
    known, unknown = generator.integers(0, 20, 60), generator.integers(5, 25, 40)  # with equal scores
    labels = np.r_[np.zeros(60), np.ones(40)]
    assert auroc(known, unknown)[0] == pytest.approx(roc_auc_score(labels, np.r_[known, unknown]), abs=1e-12)


def test_the_interval_of_an_area_covers_it_as_often_as_stated():
    """Two normal distributions a deviation apart: AUROC 0.760."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        _, (low, high) = auroc(generator.normal(size=40), generator.normal(1, size=30))
        covered += low <= 0.7602 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_perfect_area_has_an_interval():
    _, (low, high) = auroc(np.arange(20.0), np.arange(100.0, 130.0))
    assert high == 1
    assert 0.8 < low < 0.999


def test_the_false_positive_rate_counts_what_is_let_through():
    passes = passes_as_known(np.arange(100.0), np.array([3.0, 94.0, 95.0, 200.0]))
    assert passes.tolist() == [True, True, False, False]


def test_the_combined_score_rejects_what_the_thresholds_reject():
    generator = np.random.default_rng(2)
    known, other = generator.random((2, 300)), generator.random((2, 50)) * 1.2
    t = choose_thresholds(known[0], 1 - known[1])
    level = combined_scores([*known], [*known])
    score = combined_scores([*known], [*other])
    rejected = t.unknown(other[0], 1 - other[1])
    assert auroc(level, score)[0] > 0.5
    assert score[rejected].min() >= score[~rejected].max() - 2 / 300


def test_references_are_compact_and_hold_every_class():
    generator = np.random.default_rng(0)
    labels = np.r_[np.zeros(1000, int), np.ones(3, int), np.full(300, 2)]
    features = generator.normal(size=(len(labels), 1024)) + 3 * np.eye(1024)[labels * 7]
    references = reference_vectors(features, labels)
    assert references.nbytes <= MOST_BYTES
    assert len(references) <= MOST_VECTORS
    rare = distances(features[labels == 1], references)
    assert rare.max() < 0.9, "the rare class has a center of its own"
    assert np.linalg.norm(references.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("width", [1, 16, 96, 511, 512, 1280, 2048, 25088, MOST_BYTES // 2])
def test_two_megabytes_of_references_are_used_and_never_more(width: int):
    """Coarse centers cover images of other kinds too, above all where the network has few features."""
    generator = np.random.default_rng(0)
    room = min(MOST_BYTES // (2 * width), MOST_VECTORS)
    n = room + 3
    values = generator.normal(size=(n, width)).astype(np.float32)
    references = reference_vectors(values, np.arange(n) % 10)
    assert references.nbytes <= MOST_BYTES
    assert len(references) >= max(1, room - 2 * 10), "each of ten classes loses less than two"


@pytest.mark.parametrize("width", [96, 25088])
def test_more_classes_than_references_fit(width: int):
    n = min(MOST_BYTES // (2 * width), MOST_VECTORS) + 9
    values = np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)
    assert reference_vectors(values, np.arange(n)).nbytes <= MOST_BYTES


def test_distances_are_those_to_the_nearest():
    generator = np.random.default_rng(0)
    features, references = generator.normal(size=(9, 5)), unit(generator.normal(size=(4, 5)))
    expected = [min(1 - float(unit(f[None])[0] @ r) for r in references) for f in features]
    assert distances(features, references) == pytest.approx(expected, abs=1e-6)
