"""Labels that are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

A linear head on embeddings is fitted by cross-validation, so that each image is predicted by a head that has seen
neither the image nor its group: the other images of a patient would confirm a label that is wrong for all of them. The
threshold of a class is the mean probability of the class over the images with its label. An image that reaches the
threshold of another class is confidently counted as that class, as the most probable one if there are several (section
3.1, equations 1 and 2). It assumes that label errors depend on the class, not on the image. Where images may have
several labels, the head is one logistic regression for each label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.check.findings import Finding
from linnaeus.data.table import Table
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.stores.embeddings import Embeddings
from linnaeus.text import probability_percent

MIN_IMAGES = 2  # of a class, so that one can be held out


@dataclass(frozen=True)
class LabelRanking:
    """n labels, ranked by out-of-sample probabilities."""

    # (n,) int64: samples by the probability of their label (self-confidence), the most suspicious first.
    order: np.ndarray
    predicted: np.ndarray  # (n,) int64: the most probable class of each sample
    label_probability: np.ndarray  # (n,) float64: probability of the label
    predicted_probability: np.ndarray  # (n,) float64: probability of `predicted`
    confident: np.ndarray  # (n,) bool: whether the sample is off the diagonal of the confident joint


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(n,) int64: the class that each sample is confidently counted as; -1 for none.

    From labels (n,) and out-of-sample probabilities (n, classes). Counts by (label, result) are the confident joint.
    """
    classes = probabilities.shape[1]
    thresholds = np.full(classes, np.inf)  # no sample can reach the threshold of a class without samples
    for c in np.unique(labels):
        thresholds[c] = probabilities[labels == c, c].mean()
    reached = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = reached.argmax(1)
    return np.where(reached[np.arange(len(labels)), best] >= 0, best, -1)


def rank_labels(labels: np.ndarray, probabilities: np.ndarray) -> LabelRanking:
    """Rank labels (n,) by out-of-sample probabilities (n, classes)."""
    rows = np.arange(len(labels))
    of_label = probabilities[rows, labels]
    predicted = probabilities.argmax(1)
    counted = confident_joint(labels, probabilities)
    confident = (counted >= 0) & (counted != labels)
    return LabelRanking(
        np.argsort(of_label, kind="stable"), predicted, of_label, probabilities[rows, predicted], confident
    )


def suspicious_labels(table: Table, embeddings: Embeddings) -> list[Finding]:
    """Images that look like a class other than their label, the most suspicious first.

    A warning if confident learning counts the label as wrong, otherwise information. Classes with a single image are
    left out; those with a single group are never suspicious, because no other group of the class remains to learn from.
    """
    labels = table.labels[embeddings.indices]
    counts = np.bincount(labels, minlength=len(table.classes))
    # A class of few images cannot be divided into folds.
    rows = np.flatnonzero(counts[labels] >= MIN_IMAGES)
    present = np.unique(labels[rows])
    if len(present) < 2:
        return []
    # The classes left are numbered without gaps, as the head needs.
    compact = np.searchsorted(present, labels[rows])
    groups = table.group_numbers(embeddings.indices[rows])
    # Copies in two folds would confirm each other's wrong labels.
    fold = stratified_folds(compact, groups=groups)
    head = fit_linear_probe(torch.from_numpy(embeddings.values[rows]), compact, len(present), fold=fold)
    return label_findings(table, embeddings.indices[rows[head.held_out]], head.probabilities, present)


def held_out_findings(table: Table, samples: np.ndarray, probabilities: np.ndarray) -> list[Finding]:
    """Labels of `samples` (m,) that look wrong to heads that had not seen them, with `probabilities` (m, classes)."""
    columns = np.arange(len(table.classes))
    return (label_set_findings if table.several else label_findings)(table, samples, probabilities, columns)


def label_findings(table: Table, samples: np.ndarray, probabilities: np.ndarray, columns: np.ndarray) -> list[Finding]:
    """The `samples` (m,) that look like a class other than their label, the most suspicious first.

    `probabilities` (m, k) are out-of-sample; their columns are the classes `columns` (k,), ascending.
    """
    labels = np.searchsorted(columns, table.labels[samples])
    ranking = rank_labels(labels, probabilities)
    findings = []
    for k in ranking.order.tolist():
        if ranking.predicted[k] == labels[k]:
            continue
        i = int(samples[k])
        label, predicted = int(table.labels[i]), int(columns[ranking.predicted[k]])
        detail = (
            f"labelled {_class_and_name(table, label)} ({probability_percent(ranking.label_probability[k])} probable), "
            f"looks like {_class_and_name(table, predicted)} ({probability_percent(ranking.predicted_probability[k])})"
        )
        severity = "warning" if ranking.confident[k] else "info"
        classes = (table.classes[label], table.classes[predicted])
        findings.append(Finding("suspicious-label", severity, (table.sample_id(i),), classes, detail))
    return findings


def _class_and_name(table: Table, c: int) -> str:
    folder, name = table.classes[c], table.names[c]
    return folder if folder == name else f"{folder} {name}"


@dataclass(frozen=True)
class PairRanking:
    """Pairs of an image and a label that look wrong, the most suspicious first."""

    image: np.ndarray  # (k,) int64
    label: np.ndarray  # (k,) int64
    # (k,) bool: whether confident learning counts the pair as wrong; the others are only improbable.
    confident: np.ndarray


def rank_pairs(labels: np.ndarray, probabilities: np.ndarray) -> PairRanking:
    """Rank labels (n, labels) bool by out-of-sample probabilities: pairs of which the opposite is more probable.

    The most suspicious is the pair whose given state is least probable (self-confidence). Confident learning examines
    each label on its own, as two classes: with and without. Its thresholds are the mean probability over the images
    that have it, and the mean of one minus the probability over the others. A label is confidently missing where an
    image without it reaches the first, and confidently wrong where an image with it reaches the second. In practice a
    label is far more often forgotten than added.
    """
    agreement = np.where(labels, probabilities, 1 - probabilities)
    with np.errstate(invalid="ignore", divide="ignore"):
        present = (probabilities * labels).sum(0) / labels.sum(0)
        absent = ((1 - probabilities) * ~labels).sum(0) / (~labels).sum(0)
    opposite = 1 - agreement
    confident = opposite >= np.where(labels, absent, present)  # NaN, of a label without images, is reached by none
    image, label = np.nonzero(opposite > agreement)
    order = np.argsort(agreement[image, label], kind="stable")
    image, label = image[order], label[order]
    return PairRanking(image, label, confident[image, label])


def suspicious_label_sets(table: Table, embeddings: Embeddings) -> list[Finding]:
    """Labels that an image seems to lack, or seems to have by mistake, the most suspicious first.

    A warning if confident learning counts the label as wrong, otherwise information. Labels of a single image are left
    out.
    """
    labels = table.labels[embeddings.indices]
    # A label needs images with and without it, or it cannot be learned.
    frequent = np.flatnonzero((labels.sum(0) >= MIN_IMAGES) & ((~labels).sum(0) >= MIN_IMAGES))
    if not len(frequent):
        return []
    sets = labels[:, frequent]
    fold = stratified_folds(sets, groups=table.group_numbers(embeddings.indices))
    head = fit_linear_probe(torch.from_numpy(embeddings.values.copy()), sets, len(frequent), fold=fold)
    held_out = sets.astype(np.float64)  # what no fold held out is never suspicious
    held_out[head.held_out] = head.probabilities
    return label_set_findings(table, embeddings.indices, held_out, frequent)


def label_set_findings(
    table: Table, samples: np.ndarray, probabilities: np.ndarray, columns: np.ndarray
) -> list[Finding]:
    """Labels that some of `samples` (m,) seem to lack, or to have by mistake; the arguments of `label_findings`."""
    given = table.labels[samples][:, columns]
    ranking = rank_pairs(given, probabilities)
    findings = []
    for row, k, confident in zip(ranking.image, ranking.label, ranking.confident, strict=True):
        i, label = int(samples[row]), int(columns[k])
        name, share = table.names[label], probability_percent(probabilities[row, k])
        has = ", ".join(table.labels_of(i)) or "no label"
        if given[row, k]:
            detail = f"has {name!r}, which is only {share} probable (its labels: {has})"
        else:
            detail = f"lacks {name!r}, which is {share} probable (its labels: {has})"
        severity = "warning" if confident else "info"
        findings.append(Finding("suspicious-label", severity, (table.sample_id(i),), (table.classes[label],), detail))
    return findings
