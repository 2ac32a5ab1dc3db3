"""Labels of images with several that are probably missing or wrong: confident learning for each label on its own.

As in `labels.py`, a linear head on embeddings judges each image by cross-validation, here with one logistic regression
for each label. The thresholds of a label are the mean probability over the images that have it, and the mean of one
minus the probability over the others (Northcutt, Jiang and Chuang 2021, section 3.1, for two classes: with and
without). A label is confidently missing where an image without it reaches the first, and confidently wrong where an
image with it reaches the second. In practice a label is far more often forgotten than added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.check.findings import Finding
from linnaeus.check.labels import MIN_IMAGES
from linnaeus.data.table import Table
from linnaeus.models.folds import stratified_folds
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.stores.embeddings import Embeddings
from linnaeus.text import percent


@dataclass(frozen=True)
class PairRanking:
    """Pairs of an image and a label that look wrong, the most suspicious first."""

    image: np.ndarray
    """(k,) int64"""
    label: np.ndarray
    """(k,) int64"""
    confident: np.ndarray
    """(k,) bool: whether confident learning counts the pair as wrong; the others are only improbable."""


def rank_pairs(labels: np.ndarray, probabilities: np.ndarray) -> PairRanking:
    """Rank labels (n, labels) bool by out-of-sample probabilities: pairs of which the opposite is more probable.

    The most suspicious is the pair whose given state is least probable (self-confidence).
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
    judged = labels[:, frequent]
    fold = stratified_folds(judged, groups=table.group_numbers(embeddings.indices))
    head = fit_linear_probe(torch.from_numpy(embeddings.values.copy()), judged, len(frequent), fold=fold)
    held_out = np.where(fold[:, None] >= 0, head.probabilities, judged)  # what no fold held out is never suspicious
    ranking = rank_pairs(judged, held_out)
    findings = []
    for row, k, confident in zip(ranking.image, ranking.label, ranking.confident, strict=True):
        i, label = int(embeddings.indices[row]), int(frequent[k])
        name, share = table.names[label], percent(held_out[row, k])
        has = ", ".join(table.labels_of(i)) or "no label"
        if judged[row, k]:
            detail = f"has {name!r}, which is only {share} probable (its labels: {has})"
        else:
            detail = f"lacks {name!r}, which is {share} probable (its labels: {has})"
        severity = "warning" if confident else "info"
        findings.append(Finding("suspicious-label", severity, (table.sample_id(i),), (table.classes[label],), detail))
    return findings
