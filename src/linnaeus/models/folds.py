"""Stratified folds for cross-validation, with groups that stay together."""

from __future__ import annotations

import numpy as np

from linnaeus.metrics.stratification import stratified_label_folds

FOLDS = 5


def stratified_folds(
    labels: np.ndarray, folds: int = FOLDS, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """(n,) int64: the fold that holds each sample out, classes spread evenly; -1 for the only sample of a class.

    `labels` are (n,) int64, or (n, classes) bool where images may have several, each of which is then spread evenly.
    With `groups` (n,) int64, all samples of a group have the same fold: -1 if the group holds all samples of a class.
    """
    if labels.ndim == 2:
        return stratified_label_folds(labels, folds, seed, groups)
    generator = np.random.default_rng([seed, 0xF01D])
    if groups is not None:
        return _group_folds(labels, folds, generator, groups)
    fold = np.full(len(labels), -1, np.int64)
    start = 0  # each class continues at the next fold; otherwise all small classes would share the first folds
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            fold[members] = (start + np.arange(len(members))) % folds
            start += len(members)
    return fold


def _group_folds(labels: np.ndarray, folds: int, generator: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Assign groups to folds greedily, the largest first: each to the fold with the fewest samples of its classes.

    Ties go to the smallest fold. Scikit-learn's StratifiedGroupKFold has no fold for "never held out".
    """
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), np.int64)  # (groups, classes)
    np.add.at(counts, (group, labels), 1)
    totals = counts.sum(0)
    fold_of_group = np.full(len(counts), -1, np.int64)
    filled = np.zeros((folds, len(totals)), np.int64)
    order = generator.permutation(len(counts))
    for g in order[np.argsort(-counts[order].sum(1), kind="stable")].tolist():
        if ((counts[g] == totals) & (counts[g] > 0)).any():
            continue  # holding this group out would leave a class without training samples
        crowded = filled @ (counts[g] / np.maximum(totals, 1))  # per fold, in shares of the classes of this group
        fold_of_group[g] = min(range(folds), key=lambda k: (crowded[k], filled[k].sum()))
        filled[fold_of_group[g]] += counts[g]
    return fold_of_group[group]
