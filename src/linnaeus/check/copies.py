"""Findings about images that are there twice: leaks between splits, contradicting labels, and plain copies."""

from __future__ import annotations

import numpy as np

from linnaeus.check.duplicates import COPY, EXACT, RELATIONS, SCENE, Duplicates, members
from linnaeus.check.findings import Finding
from linnaeus.data.table import SPLITS, Table


def copies(table: Table, duplicates: Duplicates) -> list[Finding]:
    """A finding for each group of copies, and another where their labels differ; then the scenes that are there twice.

    Copies in several splits are a leak, an error: the figures of a later split are measured on what was learned.
    """
    found = []
    groups = duplicates.groups(EXACT, COPY)
    near = _in_pair(duplicates, COPY)
    for group in members(groups, range(len(table))):
        relation = COPY if near[group].any() else EXACT
        found += _copies(table, group, relation)
    scenes = duplicates.pairs[duplicates.relation == SCENE]
    for group in members(duplicates.groups(), scenes[:, 0].tolist()):
        found.append(_scene(table, group))
    return found


def _in_pair(duplicates: Duplicates, relation: int) -> np.ndarray:
    """(n,) bool: the samples that stand in a pair of this relation."""
    marked = np.zeros(duplicates.n, bool)
    marked[duplicates.pairs[duplicates.relation == relation].reshape(-1)] = True
    return marked


def _copies(table: Table, group: np.ndarray, relation: int) -> list[Finding]:
    group = _by_split(table, group)
    paths, classes, where = _about(table, group)
    what = f"{len(group)} images are {'the same' if relation == EXACT else 'nearly the same'}, {where}"
    found = []
    if len(set(table.split[group].tolist())) > 1:
        found.append(Finding("leak", "error", paths, classes, f"{what}: figures on the later split flatter"))
    if len(classes) > 1:
        listed = ", ".join(f"{table.classes[table.labels[i]]}" for i in group)
        found.append(Finding("label-conflict", "error", paths, classes, f"{what}, labelled {listed}: which is right?"))
    if not found:
        severity = "warning" if relation == EXACT or "" in table.split[group] else "info"
        found.append(Finding(RELATIONS[relation], severity, paths, classes, what))
    return found


def _scene(table: Table, group: np.ndarray) -> Finding:
    group = _by_split(table, group)
    paths, classes, where = _about(table, group)
    detail = f"{len(group)} images share a scene (crops of one photograph, or shots of a series), {where}"
    splits = set(table.split[group].tolist())
    if len(classes) > 1:
        detail += f", labelled {', '.join(table.classes[table.labels[i]] for i in group)}"
    severity = "warning" if len(splits) > 1 or len(classes) > 1 or "" in splits else "info"
    return Finding("same-scene", severity, paths, classes, detail)


def _by_split(table: Table, group: np.ndarray) -> np.ndarray:
    """What is learned from first, then what it is measured on."""
    rank = {split: k for k, split in enumerate((*SPLITS, ""))}
    return np.array(sorted(group.tolist(), key=lambda i: (rank[str(table.split[i])], i)), np.int64)


def _about(table: Table, group: np.ndarray) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Paths, distinct classes, and the splits in words, of samples that are in order."""
    paths = tuple(table.sample_id(i) for i in group.tolist())
    classes = tuple(dict.fromkeys(table.classes[c] for c in table.labels[group].tolist()))
    splits = list(dict.fromkeys(table.split[group].tolist()))
    where = "not split yet" if splits == [""] else "in " + " and ".join(split or "the unsplit part" for split in splits)
    return paths, classes, where
