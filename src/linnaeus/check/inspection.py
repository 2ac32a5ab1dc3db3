"""The data check before a training run: a short summary, and metrics without leaked images."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.check.data_check import check_table, copies, leaks, near_duplicates
from linnaeus.check.duplicates import COPY, EXACT
from linnaeus.check.findings import summary_lines
from linnaeus.console import Console
from linnaeus.data.table import NEAR_DUPLICATES, SPLITS, Table
from linnaeus.errors import UserError
from linnaeus.inference.perceptual import RunHashes, comparable, why_not_compared
from linnaeus.metrics.calibration import FEWEST_FITTING
from linnaeus.metrics.multilabel import Headline
from linnaeus.stores.contents import with_copies
from linnaeus.stores.image_statistics import StatisticsBuilder
from linnaeus.stores.samples import Samples


@dataclass
class Inspection:
    """The result of the check, as a run needs it."""

    result: dict[str, Any] = field(default_factory=dict)
    """The object that `check --json` writes; empty if the source holds no files."""
    warnings: list[str] = field(default_factory=list)
    """At most one line for each split or severity."""
    where: str = ""
    """Where all findings are; empty if there is nothing to warn of."""
    leaked: dict[str, np.ndarray] = field(default_factory=dict)
    """Split -> samples of the table, (k,) int64, with a copy in an earlier split."""
    copies: np.ndarray | None = None
    """(n,) int64: a number that copies in the table share; None if only files with the same bytes are known."""
    hashes: RunHashes | None = None
    """What altered copies of the training images are recognized by; None if the source holds no files."""

    def tell(self, console: Console) -> None:
        """Print the warnings, and where all findings are."""
        for line in self.warnings:
            console.warn(line)
        if self.where:
            console.say(f"findings  {self.where}")

    @property
    def json(self) -> str:
        """The content of check.json."""
        return json.dumps(self.result, indent=2, ensure_ascii=False) + "\n"


def group_copies(table: Table, console: Console) -> Table:
    """`table` with copies grouped, so that no split separates them; existing groups that share a copy are merged."""
    if not comparable(table):
        why = why_not_compared(table) or "its images are too small"
        raise UserError(
            f'{table.source}: data.split.groups = "{NEAR_DUPLICATES}" compares images by their pixels, which is not '
            f"done here because {why}; remove the setting"
        )
    # Scenes too: what a model learns from one shot of a scene helps with the others.
    return merge_groups(table, near_duplicates(table, console=console).groups())


def merge_groups(table: Table, copies: np.ndarray) -> Table:
    """`table` with images of the same number in `copies` (n,) in one group, together with their groups so far."""
    names, alone = table.groups or ("",) * len(table), np.arange(len(table))
    numbers = with_copies(table.group_numbers(alone), copies + 1)  # 0 would be no copy of others
    merged = alone if numbers is None else numbers
    sizes = np.bincount(merged)
    groups = (f"group {g}" if sizes[g] > 1 or names[i] else "" for i, g in enumerate(merged.tolist()))
    return replace(table, groups=tuple(groups))


def inspect(table: Table, console: Console, builder: StatisticsBuilder | None = None) -> Inspection:
    """Check a table with splits: by pixels, and labels only if `linnaeus check` has stored embeddings.

    `builder` has observed the images that were decoded for the run.
    """
    if not comparable(table):
        leaked = leaks(table, copies(table))
        warnings = [
            f"{len(samples):,} of {len(table.where(split)):,} {split} images are in an earlier split too"
            for split, samples in leaked.items()
        ]
        if why := why_not_compared(table):
            warnings.append(
                f"only images of equal bytes were searched for across the splits, not altered copies (scaled, encoded "
                f"again, cropped), because {why}: such copies make the figures optimistic"
            )
        return Inspection({}, warnings, leaked=leaked)
    result = check_table(table, weights="stored", console=console, builder=builder)
    warnings = summary_lines(result.findings)
    numbers = result.duplicates.groups(EXACT, COPY)
    hashes = RunHashes.of(result.statistics, table.split)
    return Inspection(
        result.to_dict(), warnings, _where(table) if warnings else "", leaks(table, numbers), numbers, hashes
    )


def _where(table: Table) -> str:
    """Where all findings are. Not the report of the run: it is not written where no plots are wanted."""
    if table.kind == "paths":
        return "all are in the estimator's check_"
    place = shlex.quote(str(table.source))
    shown = f"; to see the images: linnaeus check {place} --gallery check.html" if Path(table.source).exists() else ""
    return f"all are listed in check.json in the run folder{shown}"


def unseen_images(
    leaked: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray], console: Console
) -> dict[str, np.ndarray]:
    """Split -> (n,) bool: which of its `images` (n,), by table, choose and calibrate a model, or measure that.

    A split is absent if all do. A model is better and surer on an image of which training had a copy, and the more so
    the more it memorizes.
    """
    unseen = {split: ~np.isin(numbers, leaked.get(split, [])) for split, numbers in images.items()}
    if "valid" in unseen and not unseen["valid"].all() and (n := int(unseen["valid"].sum())) < FEWEST_FITTING:
        console.warn(
            f"only {n} of {len(unseen['valid'])} validation images were not seen in training, too few to choose a "
            "model and to fit its thresholds. All are used, so the model will be overconfident; remove the copies that "
            f"`linnaeus check` lists, or keep copies in one split with --set data.split.groups={NEAR_DUPLICATES}"
        )
    return {split: mask for split, mask in unseen.items() if FEWEST_FITTING <= mask.sum() < len(mask)}


def without_leaks(
    table: Table,
    samples: dict[str, Samples],
    leaked: dict[str, np.ndarray],
    measure: Callable[[str, np.ndarray], Headline],
) -> dict[str, Headline | None]:
    """Split with leaks -> `measure` of it and of its images, (n,) bool, without a copy in an earlier split; None if
    none is left."""
    clean_figures: dict[str, Headline | None] = {}
    for split in SPLITS[1:]:
        if split in leaked and split in samples:
            clean = ~np.isin(samples[split].kept(table.where(split)), leaked[split])
            if not clean.all():
                clean_figures[split] = measure(split, clean) if clean.any() else None
    return clean_figures
