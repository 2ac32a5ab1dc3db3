"""Stratification: divide images so that every part has its share of each class, or of each of several labels.

Label sets are spread by iterative stratification: K. Sechidis, G. Tsoumakas and I. Vlahavas, On the stratification of
multi-label data, ECML PKDD 2011, LNAI 6913, 145-158. The label with the fewest images left is spread first, because
later there is the least choice for it. Here units of several images, such as those of a patient, are kept together: the
largest first.
"""

from __future__ import annotations

import numpy as np

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


def iterative_stratification(
    counts: np.ndarray, sizes: np.ndarray, shares: np.ndarray, ranks: np.ndarray
) -> np.ndarray:
    """(units,) int64: the part of each unit.

    `counts` (units, labels) int64 are images with each label, `sizes` (units,) int64 all images of a unit, `shares`
    (parts,) float, summing to 1, the share of each part, and `ranks` (units,) decides between equal units.

    In the paper a unit goes to the part that lacks most of its rarest label. Here it goes to the part that it brings
    nearest to its shares of all its labels and of the images, as squared distances relative to the share. Of 200 images
    of 50 patients, divided 60:20:20, the largest deviation of a label was 3 images instead of 12.
    """
    totals = np.maximum(np.column_stack([counts, sizes]).sum(0), 1)
    values = np.column_stack([counts, sizes]) / totals  # (units, labels + 1), each column summing to 1
    lacking = np.repeat(shares[:, None], values.shape[1], 1)  # (parts, labels + 1)
    part = np.full(len(counts), -1, np.int64)
    order = np.lexsort((ranks, -sizes))
    left = counts.sum(0)

    def place(unit: int) -> None:
        gain = (values[unit] * (2 * lacking - values[unit])).sum(1) / shares
        # Rounded, so that the last bits of a share decide nothing; of equal parts, the first is training.
        part[unit] = int(gain.round(12).argmax())
        lacking[part[unit]] -= values[unit]

    while (left > 0).any():
        label = int(np.where(left > 0, left, np.iinfo(np.int64).max).argmin())
        for unit in order[(part[order] < 0) & (counts[order, label] > 0)].tolist():
            place(unit)
            left = left - counts[unit]
    for unit in order[part[order] < 0].tolist():  # images without a label
        place(unit)
    return part


def stratified_label_folds(
    labels: np.ndarray, folds: int, seed: int = 0, groups: np.ndarray | None = None
) -> np.ndarray:
    """(n,) int64: the fold that holds each image out, by labels (n, labels) bool and perhaps groups (n,) int64.

    -1 for a group, or an image, that has all images of some label: without it there would be nothing to learn from.
    """
    n = len(labels)
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    counts = np.zeros((int(unit.max()) + 1, labels.shape[1]), np.int64)
    np.add.at(counts, unit, labels)
    ranks = np.random.default_rng([seed, 0xF01D]).permutation(len(counts))
    fold = iterative_stratification(counts, np.bincount(unit), np.full(folds, 1 / folds), ranks)
    indispensable = ((counts == counts.sum(0)) & (counts > 0)).any(1)
    return np.where(indispensable, -1, fold)[unit]
