"""Suspicious labels: the confident joint by hand and by cleanlab, and the ranking."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from linnaeus.check.labels import confident_joint, rank_labels, suspicious_labels
from linnaeus.data.table import Table
from linnaeus.stores.embeddings import Embeddings


def blobs(n: int, classes: int, seed: int = 0, flipped: float = 0.05) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings (n, 20), labels (n,) of which some are wrong, and a mask (n,) of the wrong ones."""
    generator = np.random.default_rng(seed)
    true = np.arange(n) % classes
    vectors = generator.normal(size=(classes, 20))[true] * 2 + generator.normal(size=(n, 20))
    wrong = np.zeros(n, bool)
    wrong[generator.choice(n, round(flipped * n), replace=False)] = True
    labels = np.where(wrong, (true + generator.integers(1, classes, n)) % classes, true)
    return vectors.astype(np.float32), labels, wrong


def table_of(labels: np.ndarray, classes: int) -> Table:
    names = tuple(str(c) for c in range(classes))
    paths = tuple(f"/t/{i}.jpg" for i in range(len(labels)))
    return Table("t", "list", names, names, labels, np.array([""] * len(labels)), paths=paths, root="/t")


def test_the_confident_joint_by_hand():
    """The thresholds are 0.7 for class 0 and 0.6 for class 1, the mean probabilities of the labels."""
    labels = np.array([0, 0, 1, 1, 1])
    p = np.array([[0.9, 0.1], [0.5, 0.5], [0.75, 0.25], [0.1, 0.9], [0.35, 0.65]])
    assert confident_joint(labels, p).tolist() == [0, -1, 0, 1, 1]


def test_a_class_without_samples_is_never_confident():
    labels = np.array([0, 0, 1, 1])
    p = np.array([[0.2, 0.1, 0.7]] * 4)
    assert set(confident_joint(labels, p).tolist()) <= {-1, 0, 1}


def test_flipped_labels_rank_first():
    vectors, labels, wrong = blobs(300, 5)
    found = suspicious_labels(table_of(labels, 5), Embeddings(vectors, np.arange(300), "made up"))
    first = [int(finding.paths[0].removesuffix(".jpg")) for finding in found][: int(wrong.sum())]
    assert wrong[first].mean() > 0.9
    assert {finding.severity for finding in found} <= {"warning", "info"}
    i = first[0]
    assert found[0].classes[0] == str(labels[i])
    assert f"labelled {labels[i]}" in found[0].detail


def test_images_of_one_patient_do_not_confirm_each_other():
    """All five images of three patients have a wrong label and resemble each other more than their class."""
    generator = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 5)
    true = patients % 2
    vectors = 1.5 * generator.normal(size=(2, 60))[true] + 2 * generator.normal(size=(40, 60))[patients]
    vectors = (vectors + 0.1 * generator.normal(size=(200, 60))).astype(np.float32)
    wrong = np.isin(patients, [4, 15, 22])
    table = table_of(np.where(wrong, 1 - true, true), 2)

    def found(table: Table) -> set[int]:
        every = suspicious_labels(table, Embeddings(vectors, np.arange(200), "made up"))
        return {int(finding.paths[0].removesuffix(".jpg")) for finding in every}

    grouped = replace(table, groups=tuple(map(str, patients)))
    assert not found(table) & set(np.flatnonzero(wrong).tolist())
    assert set(np.flatnonzero(wrong).tolist()) <= found(grouped)


def test_clean_labels_give_few_findings():
    vectors, labels, _ = blobs(300, 5, flipped=0.0)
    found = suspicious_labels(table_of(labels, 5), Embeddings(vectors, np.arange(300), "made up"))
    assert sum(finding.severity == "warning" for finding in found) <= 3


def test_unreadable_images_and_classes_of_one_image_are_left_out():
    """Only some samples have vectors; class 7 of ten has a single image, and most classes have none."""
    vectors, labels, wrong = blobs(120, 3)
    labels = labels.copy()
    single = int(np.flatnonzero(~wrong)[5])
    labels[single] = 7
    some = np.setdiff1d(np.arange(120), [0, 1, 2, 50])
    found = suspicious_labels(table_of(labels, 10), Embeddings(vectors[some], some, "made up"))
    about = {int(finding.paths[0].removesuffix(".jpg")) for finding in found}
    assert not about & {0, 1, 2, single, 50}
    assert about & set(np.intersect1d(np.flatnonzero(wrong), some).tolist())


def test_one_class_has_no_suspicious_labels():
    vectors, _, _ = blobs(20, 2)
    assert suspicious_labels(table_of(np.zeros(20, int), 2), Embeddings(vectors, np.arange(20), "made up")) == []


def test_the_ranking_equals_that_of_cleanlab():
    rank = pytest.importorskip("cleanlab.rank")
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.full(6, 0.5), 400)
    labels = generator.integers(0, 6, 400)
    theirs = rank.get_label_quality_scores(labels, p, method="self_confidence")
    ours = rank_labels(labels, p)
    np.testing.assert_allclose(ours.label_probability, theirs, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(theirs), theirs[ours.order])


def test_the_confident_joint_equals_that_of_cleanlab():
    count = pytest.importorskip("cleanlab.count")
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 500)
    p = 0.5 * np.eye(4)[labels] + 0.5 * generator.dirichlet(np.ones(4), 500)
    theirs = count.compute_confident_joint(labels, p, calibrate=False)
    counted = confident_joint(labels, p)
    ours = np.zeros((4, 4), int)
    np.add.at(ours, (labels[counted >= 0], counted[counted >= 0]), 1)
    np.testing.assert_array_equal(ours, theirs)


def test_flipped_digits_rank_at_the_top():
    """With raw pixels as vectors; benchmarks/labels.py measures embeddings of a network."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    generator = np.random.default_rng(0)
    n = 600
    wrong = generator.choice(n, n // 20, replace=False)
    labels = digits.target[:n].copy()
    labels[wrong] = (labels[wrong] + generator.integers(1, 10, len(wrong))) % 10
    vectors = Embeddings(digits.data[:n].astype(np.float32), np.arange(n), "pixels")
    found = suspicious_labels(table_of(labels, 10), vectors)
    about = [int(finding.paths[0].removesuffix(".jpg")) for finding in found][: round(0.08 * n)]
    assert np.isin(wrong, about).mean() >= 0.95
