"""check(): everything that is wrong with a source, in one pass over its images."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.check.copies import copies
from linnaeus.check.duplicates import SMALLEST, Duplicates, find_duplicates
from linnaeus.check.findings import Finding, in_order
from linnaeus.check.images import files, images
from linnaeus.check.labels import suspicious_labels
from linnaeus.check.look import Looks, look
from linnaeus.check.tables import tables
from linnaeus.console import Console
from linnaeus.data.class_names import printable
from linnaeus.data.sources import open_source
from linnaeus.data.table import SPLITS, Table
from linnaeus.stores import default_cache
from linnaeus.stores.embeddings import Embeddings, default_weights, embed

TO_PULL = "resnet50-torchvision-v2"


@dataclass(frozen=True)
class Checked:
    """What a check found."""

    table: Table
    findings: list[Finding]
    """The worst first"""
    duplicates: Duplicates
    looks: Looks
    weights: str | None
    """The published weights whose vectors were compared; None where none were at hand"""
    notes: list[str]
    """What was not looked for, and why"""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def errors(self) -> int:
        return sum(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        return {
            "source": printable(self.table.source),
            "pictures": len(self.table),
            "classes": len(self.table.classes),
            "splits": {split or "unsplit": int(n.sum()) for split, n in self.table.counts().items()},
            "weights": self.weights,
            "notes": self.notes,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(
    source: str | Path, *, weights: str | None = None, groups: str | None = None, device: str = "auto",
    console: Console | None = None,
) -> Checked:  # fmt: skip
    """Check what the user points at; `weights` as for `check_table`. Raises UserError where it holds no samples.

    `groups` names the column of a CSV whose values tell which samples belong together.
    """
    table = open_source(source, group=groups, lenient=True)
    return check_table(table, weights=weights, device=device, console=console)


def check_table(
    table: Table, *, weights: str | None = None, device: str = "auto", console: Console | None = None
) -> Checked:
    """Check every sample of a table.

    `weights`: published weights whose vectors are compared; without a name the best at hand; "none" for a check by
    pixels alone, which takes seconds where the vectors take minutes, and looks for no suspicious labels; "stored" for
    vectors if an earlier check has left them, and by pixels alone otherwise.
    """
    console = console or Console(quiet=True)
    cache = default_cache()
    seconds: dict[str, float] = {}
    started = time.perf_counter()
    with console.progress("looking") as advance:
        looks = look(table, cache=cache, progress=advance)
    seconds["looking"] = time.perf_counter() - started
    notes = [table.offer] if table.offer else []
    started = time.perf_counter()
    vectors = _vectors(table, looks, weights, device, console, notes)
    seconds["vectors"] = time.perf_counter() - started
    started = time.perf_counter()
    duplicates = find_duplicates(looks, vectors)
    short = np.minimum(looks.rows["height"], looks.rows["width"])[looks.readable]
    if len(short) and np.median(short) < SMALLEST:
        notes.append(
            f"near duplicates were not looked for, only exact ones: below {SMALLEST} pixels "
            "a copy and an image that is merely alike look the same"
        )
    seconds["duplicates"] = time.perf_counter() - started
    findings = [*tables(table), *files(table, looks), *images(table, looks), *copies(table, duplicates)]
    started = time.perf_counter()
    if vectors is not None:
        findings += suspicious_labels(table, vectors)
    seconds["labels"] = time.perf_counter() - started
    return Checked(table, in_order(findings), duplicates, looks, vectors.weights if vectors else None, notes, seconds)


def near_duplicates(table: Table, *, console: Console | None = None) -> Duplicates:
    """The pairs of a table by pixels alone: what `split.groups = "near-duplicates"` and figures without leaks need.

    Seconds for a thousand images, and nearly nothing after a check, which leaves in the cache what it saw.
    """
    with (console or Console(quiet=True)).progress("looking") as advance:
        return find_duplicates(look(table, cache=default_cache(), progress=advance))


def leaks(table: Table, duplicates: Duplicates) -> dict[str, np.ndarray]:
    """Split -> samples (k,) int64 of valid and test of which a copy stands in an earlier split; splits without are left
    out."""
    found = {split: duplicates.leaked(table, split) for split in SPLITS[1:]}
    return {split: samples for split, samples in found.items() if len(samples)}


def _vectors(
    table: Table, looks: Looks, weights: str | None, device: str, console: Console, notes: list[str]
) -> Embeddings | None:
    """Vectors of the images; None, with a note that says why, where there are none."""
    missing = "suspicious labels were not looked for, and scenes that are there twice only by pixels: "
    if weights == "none":
        notes.append(missing + "--weights none")
        return None
    stored = weights == "stored"
    name = default_weights() if weights is None or stored else weights
    if name is None:
        notes.append(f"{missing}that takes ImageNet weights; linnaeus weights pull {TO_PULL}, and check again")
        return None
    if not len(looks.readable):
        notes.append(missing + "no image can be read")
        return None
    found = embed(table, name, cache=default_cache(), console=console, device=device, compute=not stored)
    if found is None:
        why = "`linnaeus check` does, which takes minutes" if stored else "no room for vectors; raise LINNAEUS_CACHE_GB"
        notes.append(missing + why)
    return found
