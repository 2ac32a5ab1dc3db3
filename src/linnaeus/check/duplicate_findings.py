"""Findings about duplicates: leaks between splits, contradicting labels, and plain copies."""

from __future__ import annotations

import numpy as np

from linnaeus.check.duplicates import COPY, EXACT, RELATIONS, SCENE, Duplicates, group_members
from linnaeus.check.findings import Finding
from linnaeus.data.table import SPLITS, Table


def duplicate_findings(table: Table, duplicates: Duplicates) -> list[Finding]:
    """A finding for each group of copies, another one if their labels differ, and one for each repeated scene.

    Copies in several splits are a leak, which is an error: a model is evaluated on images that it was trained on.
    """
    findings = []
    altered = np.zeros(duplicates.n, bool)
    altered[duplicates.pairs[duplicates.relation == COPY].reshape(-1)] = True
    copies = duplicates.groups(EXACT, COPY)
    for group in group_members(copies, range(len(table))):
        findings += _copies(table, group, COPY if altered[group].any() else EXACT)
    scenes = duplicates.pairs[duplicates.relation == SCENE]
    scenes = scenes[np.ptp(copies[scenes], axis=1) > 0]  # copies of a third image are named above
    for group in group_members(duplicates.groups(), scenes[:, 0].tolist()):
        findings.append(_scene(table, group))
    return findings


def _copies(table: Table, group: np.ndarray, relation: int) -> list[Finding]:
    group = _by_split(table, group)
    paths, classes, where = _describe(table, group)
    text = f"{len(group)} images are {'identical' if relation == EXACT else 'nearly identical'}{where}"
    findings = []
    # A copy on both sides of a split is worse than one that merely counts twice.
    if len(set(table.split[group].tolist())) > 1:
        findings.append(Finding("leak", "error", paths, classes, f"{text}: results on the later split are optimistic"))
    if _differ(table, group):
        which = "they should have the same labels" if table.several else "only one label can be right"
        detail = f"{text}, labelled {_labels(table, group)}: {which}"
        findings.append(Finding("label-conflict", "error", paths, classes, detail))
    if not findings:
        # Without splits a random one may separate the copies; within one split they only count twice.
        severity = "warning" if relation == EXACT or "" in table.split[group] else "info"
        findings.append(Finding(RELATIONS[relation], severity, paths, classes, text))
    return findings


def _scene(table: Table, group: np.ndarray) -> Finding:
    group = _by_split(table, group)
    paths, classes, where = _describe(table, group)
    detail = f"{len(group)} images show the same scene (crops of one photograph, or shots of a series){where}"
    splits = set(table.split[group].tolist())
    if _differ(table, group):
        detail += f", labelled {_labels(table, group)}"
    severity = "warning" if len(splits) > 1 or _differ(table, group) or "" in splits else "info"
    return Finding("same-scene", severity, paths, classes, detail)


def _labels(table: Table, group: np.ndarray) -> str:
    return ", ".join(" and ".join(table.labels_of(i)) or "no label" for i in group)


def _differ(table: Table, group: np.ndarray) -> bool:
    """Whether the samples have different labels."""
    return bool((table.labels[group] != table.labels[group[0]]).any())


def _by_split(table: Table, group: np.ndarray) -> np.ndarray:
    """The samples ordered by split: train, valid, test, without a split."""
    rank = {split: k for k, split in enumerate((*SPLITS, ""))}
    return np.array(sorted(group.tolist(), key=lambda i: (rank[str(table.split[i])], i)), np.int64)


def _describe(table: Table, group: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Paths, distinct classes, and `, in` the splits, if there are any, of samples ordered by split."""
    paths = tuple(table.sample_id(i) for i in group.tolist())
    classes = tuple(dict.fromkeys(name for i in group.tolist() for name in table.labels_of(i)))
    splits = list(dict.fromkeys(table.split[group].tolist()))
    names = " and ".join(split or "the images without a split" for split in splits)
    return paths, classes, "" if splits == [""] else f", in {names}"
