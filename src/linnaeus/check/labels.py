"""Labels that are probably wrong: confident learning (Northcutt, Jiang and Chuang 2021, arXiv:1911.00068).

A head is fitted by cross-validation, so that each image is judged by a head that has not seen it, nor any of its
group, whose label is wrong with it: a patient's images would vouch for each other. A class's threshold
is the mean probability of that class over the images that bear its label; an image that passes the threshold of
another class, and of no more probable one, counts as that other class with confidence (section 3.1, equations 1 and 2).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.check.findings import Finding
from linnaeus.data.table import Table
from linnaeus.models.linear_probe import fit_linear_probe
from linnaeus.stores.embeddings import Embeddings

LEAST = 2  # images of a class, so that one can be held out


@dataclass(frozen=True)
class Suspicion:
    """What cross-validation says about n labels."""

    ranking: np.ndarray
    """(n,) int64: the samples, the most suspicious first: by the probability of their own label (self-confidence)"""
    instead: np.ndarray
    """(n,) int64: the most probable class of each sample"""
    own: np.ndarray
    """(n,) float64: the probability of the label it has"""
    other: np.ndarray
    """(n,) float64: that of `instead`"""
    confident: np.ndarray
    """(n,) bool: an off-diagonal entry of the confident joint"""


def confident_joint(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """(n,) int64: the class that each sample counts as with confidence; -1 for none.

    labels (n,), probabilities (n, classes), out of sample. Counted by (label, this), they are the confident joint.
    """
    classes = probabilities.shape[1]
    thresholds = np.full(classes, np.inf)  # a class that no sample bears has no threshold to pass
    for c in np.unique(labels):
        thresholds[c] = probabilities[labels == c, c].mean()
    passing = np.where(probabilities >= thresholds, probabilities, -1.0)
    best = passing.argmax(1)
    return np.where(passing[np.arange(len(labels)), best] >= 0, best, -1)


def suspect(labels: np.ndarray, probabilities: np.ndarray) -> Suspicion:
    """Rank all labels (n,) by out-of-sample probabilities (n, classes)."""
    rows = np.arange(len(labels))
    own = probabilities[rows, labels]
    instead = probabilities.argmax(1)
    counted = confident_joint(labels, probabilities)
    confident = (counted >= 0) & (counted != labels)
    return Suspicion(np.argsort(own, kind="stable"), instead, own, probabilities[rows, instead], confident)


def suspicious_labels(table: Table, vectors: Embeddings) -> list[Finding]:
    """Images that look like another class than their label says, the most suspicious first.

    A warning where confident learning counts the label as wrong; information where the other class is only more
    probable. Classes with a single image are left out, and those of a single group are never suspicious.
    """
    labels = table.labels[vectors.indices]
    counts = np.bincount(labels, minlength=len(table.classes))
    judged = np.flatnonzero(counts[labels] >= LEAST)
    present = np.unique(labels[judged])
    if len(present) < 2:
        return []
    compact = np.searchsorted(present, labels[judged])
    groups = table.group_numbers(vectors.indices[judged])
    head = fit_linear_probe(torch.from_numpy(vectors.values[judged]), compact, len(present), groups=groups)
    found = suspect(compact, head.probabilities)
    findings = []
    for k in found.ranking.tolist():
        if found.instead[k] == compact[k]:
            continue
        i = int(vectors.indices[judged[k]])
        given, other = int(table.labels[i]), int(present[found.instead[k]])
        detail = (
            f"labelled {_named(table, given)} ({found.own[k]:.1%} probable), looks like {_named(table, other)} "
            f"({found.other[k]:.1%})"
        )
        severity = "warning" if found.confident[k] else "info"
        classes = (table.classes[given], table.classes[other])
        findings.append(Finding("suspicious-label", severity, (table.sample_id(i),), classes, detail))
    return findings


def _named(table: Table, c: int) -> str:
    name, shown = table.classes[c], table.names[c]
    return name if name == shown else f"{name} {shown}"
