"""Folds: stratified, reproducible, and groups in one fold."""

from __future__ import annotations

import numpy as np

from linnaeus.metrics.stratification import stratified_folds


def test_folds_are_stratified_and_the_only_sample_of_a_class_is_never_held_out():
    labels = np.array([0] * 23 + [1] * 10 + [2])
    folds = stratified_folds(labels, 5, seed=3)
    assert np.ptp(np.bincount(folds[labels == 0])) <= 1
    assert np.bincount(folds[labels == 1]).tolist() == [2] * 5
    assert folds[labels == 2].tolist() == [-1]
    assert np.array_equal(folds, stratified_folds(labels, 5, seed=3))
    assert not np.array_equal(folds, stratified_folds(labels, 5, seed=4))


def test_folds_of_groups_are_stratified():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), generator.integers(1, 8, 40))
    labels = np.where(groups % 4 == 0, 1, 0)
    folds = stratified_folds(labels, 5, seed=3, groups=groups)
    assert all(len(np.unique(folds[groups == g])) == 1 for g in range(40))
    for label in (0, 1):
        sizes = np.bincount(folds[labels == label], minlength=5)
        assert sizes.min() > 0.6 * sizes.mean()
        assert sizes.max() < 1.5 * sizes.mean()
    assert not np.array_equal(folds, stratified_folds(labels, 5, seed=4, groups=groups))
    labels[groups == 7] = 2
    assert (stratified_folds(labels, 5, seed=3, groups=groups) == -1).sum() == (groups == 7).sum()
