"""check(): all checks of a source, in one pass over its images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.check.class_findings import table_findings
from linnaeus.check.duplicate_findings import duplicate_findings
from linnaeus.check.duplicates import COPY, EXACT, Duplicates, find_duplicates
from linnaeus.check.findings import Finding, sort_findings
from linnaeus.check.image_findings import file_findings, image_findings, page_findings
from linnaeus.check.labels import suspicious_label_sets, suspicious_labels
from linnaeus.console import Console
from linnaeus.data.class_names import printable
from linnaeus.data.images.content import UNKNOWN
from linnaeus.data.images.hashing import MIN_SIDE
from linnaeus.data.sources import open_source
from linnaeus.data.table import SPLITS, Table
from linnaeus.inference.perceptual import comparable
from linnaeus.models.weights.pretrained import SUGGESTED
from linnaeus.stores.contents import HashedImages, first_of_each
from linnaeus.stores.embeddings import Embeddings, default_weights, embed
from linnaeus.stores.image_statistics import ImageStatistics, StatisticsBuilder, compute_statistics


@dataclass(frozen=True)
class DataCheck:
    """The result of a check."""

    table: Table
    findings: list[Finding]  # the most serious first
    duplicates: Duplicates
    statistics: ImageStatistics
    weights: str | None  # name of the weights that computed the embeddings; None if there are no embeddings
    notes: list[str]  # checks that were skipped, and why

    @property
    def errors(self) -> int:
        """Number of findings that are errors."""
        return sum(finding.severity == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """The object that `linnaeus check --json` writes."""
        return {
            "source": printable(self.table.source),
            "images": len(self.table),
            "classes": len(self.table.classes),
            "splits": {split or "unsplit": n for split, n in self.table.sizes().items()},
            "weights": self.weights,
            "notes": self.notes,
            "findings": [finding.to_dict() for finding in self.findings],
        }


def check(
    source: str | Path,
    *,
    weights: str | None = None,
    groups: str | None = None,
    device: str = "auto",
    console: Console | None = None,
) -> DataCheck:
    """Check a source. `groups` is a column of a CSV file; for `weights` see `check_table`.

    Raises UserError if the source holds no samples.
    """
    table = open_source(source, group=groups, lenient=True)
    return check_table(table, weights=weights, device=device, console=console)


def check_table(
    table: Table,
    *,
    weights: str | None = None,
    device: str = "auto",
    console: Console | None = None,
    builder: StatisticsBuilder | None = None,
) -> DataCheck:
    """Check every sample of a table.

    `weights` are those that compute embeddings, by name or file; by default the best stored locally. With
    "none" only pixels are compared, which takes seconds where embeddings take minutes, and labels are not checked. With
    "stored" embeddings are used only if an earlier check has computed them. `builder` has observed some images.
    """
    console = console or Console(quiet=True)
    builder = builder or StatisticsBuilder(table, default_cache())
    with console.progress("reading images") as advance:
        statistics = builder.finish(advance)
    notes = [*table.notes, *([table.offer] if table.offer else [])]
    embeddings = _embeddings(table, statistics, weights, device, console, notes)
    duplicates = find_duplicates(statistics, embeddings)
    short = np.minimum(statistics.rows["height"], statistics.rows["width"])[statistics.readable]
    # Small images of one kind, such as digits, resemble each other as much as copies do.
    if len(short) and np.median(short) < MIN_SIDE:
        notes.append(
            f"only exact duplicates were searched for, not near duplicates: below {MIN_SIDE} pixels an altered copy "
            "cannot be distinguished from another image of the same kind"
        )
    findings = [
        *table_findings(table),
        *file_findings(table, statistics),
        *image_findings(table, statistics),
        *page_findings(table, statistics),
        *duplicate_findings(table, duplicates),
    ]
    if embeddings is not None:
        # Copies with different labels are among them: that finding does not say which label is wrong.
        findings += (suspicious_label_sets if table.several else suspicious_labels)(table, embeddings)
    used = None if embeddings is None else embeddings.weights
    return DataCheck(table, sort_findings(findings), duplicates, statistics, used, notes)


def near_duplicates(table: Table, *, console: Console | None = None) -> Duplicates:
    """The duplicates of a table by pixels alone, for `split.groups = "near-duplicates"` and for metrics without leaks.

    Takes seconds for a thousand images, and almost no time after a check, which leaves its statistics in the cache.
    """
    with (console or Console(quiet=True)).progress("reading images") as advance:
        return find_duplicates(compute_statistics(table, cache=default_cache(), progress=advance))


def copies(table: Table, *, console: Console | None = None) -> np.ndarray:
    """(n,) int64: a number that copies share. Files count as altered copies too, arrays only where they are identical.

    Small images, which most arrays are, cannot be told from altered copies of others. Very many images in shards, which
    no store copies, are not decoded for this, either.
    """
    if comparable(table):
        return near_duplicates(table, console=console).groups(EXACT, COPY)
    samples = np.arange(len(table))
    hashes = HashedImages(table, default_cache()).hashes(samples)
    return np.where(hashes == UNKNOWN, samples, first_of_each(hashes))


def leaks(table: Table, numbers: np.ndarray) -> dict[str, np.ndarray]:
    """valid, test -> samples (k,) int64 with a copy in an earlier split; splits without leaks are left out.

    `numbers` (n,) are equal for copies, as from `copies`. Metrics without these samples are those on images
    that neither training nor model selection has seen.
    """
    leaked = {}
    for rank, split in enumerate(SPLITS):
        samples, earlier = table.where(split), np.isin(table.split, SPLITS[:rank])
        leaked[split] = samples[np.isin(numbers[samples], numbers[earlier])]
    return {split: samples for split, samples in leaked.items() if len(samples)}


def _embeddings(
    table: Table, statistics: ImageStatistics, weights: str | None, device: str, console: Console, notes: list[str]
) -> Embeddings | None:
    """Embeddings of the images; None, with the reason added to `notes`, if there are none."""
    skipped = "labels were not checked, and scenes were compared only by pixels: "
    if weights == "none":
        notes.append(skipped + "--weights none")
        return None
    stored = weights == "stored"
    name = default_weights() if weights is None or stored else weights
    if name is None:
        notes.append(
            f"{skipped}no pretrained weights are stored here; check again with --weights FILE, or after `linnaeus "
            f"weights pull {SUGGESTED}`"
        )
        return None
    if not len(statistics.readable):
        notes.append(skipped + "no image can be read")
        return None
    # `stored` is what `train` asks for: it must not spend minutes on embeddings.
    embeddings = embed(table, name, cache=default_cache(), console=console, device=device, compute=not stored)
    if embeddings is None:
        reason = "run `linnaeus check`, which takes minutes" if stored else "the cache is full; raise LINNAEUS_CACHE_GB"
        notes.append(skipped + reason)
    return embeddings
