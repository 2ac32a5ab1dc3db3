"""The check of the data that stands before every training, in its short form, and what it means for the figures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from linnaeus.check.duplicates import joined
from linnaeus.check.findings import short_form
from linnaeus.check.run import check_table, leaks, near_duplicates
from linnaeus.console import Console
from linnaeus.data.table import NEAR_DUPLICATES, Table
from linnaeus.errors import UserError
from linnaeus.metrics.classification import Figures, figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.stores.samples import Samples


@dataclass
class Inspection:
    """What is wrong with the data of a run."""

    found: dict[str, Any] = field(default_factory=dict)
    """What `check --json` writes; empty where the source holds no files."""
    lines: list[str] = field(default_factory=list)
    """At most three, for who started the run."""
    leaked: dict[str, np.ndarray] = field(default_factory=dict)
    """Split -> samples (k,) int64 of the table of which a copy stands in an earlier split."""

    @property
    def json(self) -> str:
        return json.dumps(self.found, indent=2, ensure_ascii=False) + "\n"


def group_copies(table: Table, console: Console) -> Table:
    """`table` with copies of one image as groups, joined to the groups that it has: none is divided by a split."""
    if table.paths is None:
        raise UserError(
            f'{table.source}: data.split.groups = "{NEAR_DUPLICATES}" looks for copies among files, and this source '
            "holds arrays; leave it out"
        )
    numbers = near_duplicates(table, console=console).groups()  # scenes too: what is trained on one shows in the other
    given = table.groups or ("",) * len(table)
    own = table.group_numbers(np.arange(len(table)))
    alike = [] if own is None else [*enumerate(own.tolist())]
    together = joined(len(table), np.array([*enumerate(numbers.tolist()), *alike]))
    sizes = np.bincount(together)
    return replace(
        table, groups=tuple(f"group {g}" if sizes[g] > 1 or given[i] else "" for i, g in enumerate(together.tolist()))
    )


def inspect(table: Table, console: Console) -> Inspection:
    """Check a table that is split: by pixels, and labels too where `linnaeus check` has left the vectors for it."""
    if table.paths is None:
        return Inspection()
    checked = check_table(table, weights="stored", console=console)
    lines = short_form(checked.findings, "all of them, with images, are in the run's report.html")
    return Inspection(checked.to_dict(), lines, leaks(table, checked.duplicates))


def without_leaks(
    table: Table, samples: dict[str, Samples], outputs: dict[str, Outputs], leaked: dict[str, np.ndarray]
) -> dict[str, Figures | None]:
    """Split -> its figures on the images of which no copy was trained or selected on; None where none is left."""
    found: dict[str, Figures | None] = {}
    for split, out in outputs.items():
        if split in leaked:
            clean = ~np.isin(samples[split].kept(table.where(split)), leaked[split])
            if not clean.all():
                found[split] = figures(out.take(clean)) if clean.any() else None
    return found
