"""A new run with other classes, from a run with a frozen backbone and a linear head that is solved."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import Console, counted
from linnaeus.data.table import Table, group_numbers
from linnaeus.errors import UserError
from linnaeus.files import write_text
from linnaeus.metrics.mcnemar import McNemar
from linnaeus.runs.layout import CHANGES, PREDICTIONS, SPLIT
from linnaeus.runs.predictions import read_predictions
from linnaeus.text import percent
from linnaeus.training.class_changes import ClassChanges, changed_table
from linnaeus.training.request import EarlierRun
from linnaeus.training.run import Run, train
from linnaeus.training.solved_run import SolvedRun


@dataclass(frozen=True)
class ChangedRun:
    """A run with changed classes, and its answers beside those of the run before on the images of both."""

    run: Run
    lines: list[str]
    """What changed: one line each."""
    before_after: dict[str, McNemar]
    """By split; the classes of the run before are taken as they are called, or united, afterwards."""

    def render(self) -> str:
        """The changes and the paired test as plain text."""
        lines = [f"changed   {line}" for line in self.lines]
        return "\n".join([*lines, *(render_test(*each) for each in self.before_after.items())])


def change_classes(
    path: str | Path, changes: ClassChanges, *, out: str | Path | None = None, device: str = "auto", console: Console
) -> ChangedRun:
    """Train a run with changed classes; the activations of images that stay are taken over from the run at `path`.

    The run at `path` is only read. Raises UserError if its network was trained below the head, its images are not
    files, or the changes do not fit its classes.
    """
    old = SolvedRun.read(Path(path), "its classes cannot be changed")
    if old.model.task == "multi-label":
        raise UserError(f"{path}: its images have several labels each, which `linnaeus classes` does not support")
    before = old.table()
    after = changed_table(before, changes)
    lines = _describe(old.path, before, after, changes)
    place = Path(out) if out is not None else old.free_folder("classes")
    # The new run's own split.csv is its source: no folder or list has these images with these classes.
    after = dataclasses.replace(after, source=str(place.absolute() / SPLIT))
    earlier = EarlierRun(before, old.samples(before), forgotten=old.forgotten)
    run = train(after, old.recipe, out=place, device=device, console=console, earlier=earlier)
    targets = changes.targets(before.classes, before.names)
    changed = ChangedRun(run, lines, paired_tests(old.path, run.path, targets))
    content: dict[str, Any] = {"from": str(old.path), "changes": lines}
    content["before_after"] = {split: pair.to_dict() for split, pair in changed.before_after.items()}
    write_text(run.path / CHANGES, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return changed


def _describe(path: Path, before: Table, after: Table, changes: ClassChanges) -> list[str]:
    """What changes, one line each. Raises UserError if nothing does."""
    lines = [f"class renamed: {text.replace('=', ' is now ')}" for text in changes.rename]
    lines += [f"classes merged: {text.replace('=', ' are now ')}" for text in changes.merge]
    lines += [f"class dropped: {text}" for text in changes.drop]
    if changes.add is not None:
        lines.append(f"images added: {changes.add} as {changes.name or changes.add.resolve().name}")
    if not lines:
        raise UserError(f"{path}: nothing to change; give --rename, --merge, --drop or --add")
    sizes = f"{len(before)} to {len(after)} images"
    return [*lines, f"{len(before.classes)} to {len(after.classes)} classes, {sizes}"]


def render_test(split: str, pair: McNemar) -> str:
    """One line of plain text."""
    before, after = (pair.both + only for only in (pair.only_first, pair.only_second))
    verdict = "significant" if pair.p < 0.05 else "no significant difference"
    return (
        f"{split:9} on the {counted(pair.n, 'image')} of both runs: {percent(before / pair.n)} before, "
        f"{percent(after / pair.n)} after (McNemar p = {pair.p:.3g}: {verdict})"
    )


def paired_tests(old: Path, new: Path, targets: dict[str, str | None]) -> dict[str, McNemar]:
    """The paired test of both runs on the images that both have, by split."""
    pairs: dict[str, McNemar] = {}
    later = {(row.split, row.sample): row for row in read_predictions(new / PREDICTIONS)}
    shared: dict[str, list[tuple[bool, bool, str]]] = {}
    for row in read_predictions(old / PREDICTIONS):
        match = later.get((row.split, row.sample))
        if match is not None:
            # A dropped class is never the right answer for an image that stays.
            was_correct = targets[row.predicted] == match.true
            shared.setdefault(row.split, []).append((was_correct, match.correct, row.group))
    for split, rows in shared.items():
        first, second = (np.array([row[k] for row in rows]) for k in (0, 1))
        pairs[split] = McNemar.of(first, second, group_numbers([row[2] for row in rows]))
    return pairs
