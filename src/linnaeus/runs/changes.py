"""changes.json: how a run differs from the run that it was derived from, and both on the same images."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.data.table import group_numbers
from linnaeus.files import write_text
from linnaeus.metrics.mcnemar import McNemar, significance
from linnaeus.runs.layout import CHANGES, PREDICTIONS
from linnaeus.runs.predictions import read_predictions
from linnaeus.text import percent


@dataclass
class RunChanges:
    """What was changed, and the answers of both runs on the images that both have."""

    old: Path  # the folder of the run before
    lines: list[str]  # what changed: one line each
    # Class of the run before -> the class that its images have afterwards, None for a class that is left out. None
    # where images may have several labels, which are not compared.
    targets: Mapping[str, str | None] | None
    forgotten: tuple[dict[str, Any], ...] = ()  # the statement on the images that were removed, if any were
    before_after: dict[str, McNemar] = field(default_factory=dict)  # by split; filled in by `write`
    leaks: set[str] = field(default_factory=set)  # splits of which some images are left out; filled in by `write`

    def write(self, new: Path, leaked: Collection[tuple[str, str]]) -> None:
        """Compare both runs by their predictions, and write changes.json into the folder `new`.

        `leaked`: (split, sample) of the images of which the new run has a copy in an earlier split.
        """
        if self.targets is not None:
            self.before_after = paired_tests(self.old, new, self.targets, leaked)
            self.leaks = {split for split, _ in leaked}
        content: dict[str, Any] = {"from": str(self.old), "changes": self.lines}
        if self.forgotten:
            content["forgotten"] = self.forgotten[0]
        content["before_after"] = {
            split: pair.to_dict() | dict(zip(("before", "after"), _accuracies(pair), strict=True))
            for split, pair in self.before_after.items()
        }
        write_text(new / CHANGES, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def render(self) -> str:
        """The changes and the paired tests as plain text."""
        lines = [f"changed   {line}" for line in self.lines]
        for split, pair in self.before_after.items():
            before, after = (percent(accuracy) for accuracy in _accuracies(pair))
            without = ", without those with a copy in an earlier split" if split in self.leaks else ""
            lines.append(
                f"{split:9} on the {counted(pair.n, 'image')} of both runs{without}: {before} before, {after} after "
                f"(McNemar p = {pair.p:.3g}: {significance(pair.p)})"
            )
        return "\n".join(lines)


def _accuracies(pair: McNemar) -> tuple[float, float]:
    return (pair.both + pair.only_first) / pair.n, (pair.both + pair.only_second) / pair.n


def paired_tests(
    old: Path, new: Path, targets: Mapping[str, str | None], leaked: Collection[tuple[str, str]]
) -> dict[str, McNemar]:
    """The paired test of both runs on the images that both have, by split, without those `leaked` to the new one."""
    pairs: dict[str, McNemar] = {}
    later = {(row.split, row.sample): row for row in read_predictions(new / PREDICTIONS)}
    shared: dict[str, list[tuple[bool, bool, str]]] = {}
    for row in read_predictions(old / PREDICTIONS):
        match = later.get((row.split, row.sample))
        if match is not None and (row.split, row.sample) not in leaked:
            # A class that is left out is never the right answer for an image that stays.
            was_correct = targets[row.predicted] == match.true
            shared.setdefault(row.split, []).append((was_correct, match.correct, row.group))
    for split, rows in shared.items():
        first, second = (np.array([row[k] for row in rows]) for k in (0, 1))
        pairs[split] = McNemar.of(first, second, group_numbers([row[2] for row in rows]))
    return pairs
