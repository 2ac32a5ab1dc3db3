"""A new run with other classes, from a run with a frozen backbone and a linear head that is solved."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import Console, counted
from linnaeus.data.csvfile import open_csv
from linnaeus.data.table import Table, group_numbers
from linnaeus.errors import UserError
from linnaeus.files import write_text
from linnaeus.metrics.mcnemar import McNemar
from linnaeus.recipe import Recipe, load_recipe
from linnaeus.runs.layout import CHANGES, PREDICTIONS, RECIPE, SPLIT
from linnaeus.runs.predictions import read_predictions
from linnaeus.runs.reader import RunContents, read_run
from linnaeus.text import percent
from linnaeus.training.class_changes import ClassChanges, changed_table
from linnaeus.training.run import Run, train


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
        for split, pair in self.before_after.items():
            before, after = (pair.both + only for only in (pair.only_first, pair.only_second))
            verdict = "significant" if pair.p < 0.05 else "no significant difference"
            lines.append(
                f"{split:9} on the {counted(pair.n, 'image')} of both runs: {percent(before / pair.n)} before, "
                f"{percent(after / pair.n)} after (McNemar p = {pair.p:.3g}: {verdict})"
            )
        return "\n".join(lines)


def change_classes(
    path: str | Path, changes: ClassChanges, *, out: str | Path | None = None, device: str = "auto", console: Console
) -> ChangedRun:
    """Train a run with changed classes; the activations of images that stay are taken over from the run at `path`.

    The run at `path` is only read. Raises UserError if its network was trained below the head, its images are not
    files, or the changes do not fit its classes.
    """
    old = Path(path)
    contents = read_run(old)
    recipe = _recipe(old)
    before = _table(old, contents)
    after = changed_table(before, changes)
    lines = _describe(contents, after, changes)
    place = Path(out) if out is not None else _free(old)
    # The new run's own split.csv is its source: no folder or list has these images with these classes.
    after = dataclasses.replace(after, source=str(place.absolute() / SPLIT))
    run = train(after, recipe, out=place, device=device, console=console, earlier=before)
    changed = ChangedRun(run, lines, _before_after(old, run.path, changes.targets(before.classes, before.names)))
    content: dict[str, Any] = {"from": str(old), "changes": lines}
    content["before_after"] = {split: pair.to_dict() for split, pair in changed.before_after.items()}
    write_text(run.path / CHANGES, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return changed


def _recipe(old: Path) -> Recipe:
    """The recipe of the run, for a table that has splits already."""
    recipe = load_recipe(str(old / RECIPE))
    trained = [number for number, phase in enumerate(recipe.phase, 1) if phase.head != "auto"]
    if recipe.model.name == "custom":
        raise UserError(f"{old}: its network is the user's own code; train it again on the changed images")
    if trained:
        raise UserError(
            f"{old}: phase {trained[0]} trained its network by gradient descent, so another head does not take "
            "seconds; change the classes of the images, and use `linnaeus train`"
        )
    split = recipe.data.split.model_copy(update={"groups": None})
    data = recipe.data.model_copy(update={"train": None, "valid": None, "test": None, "split": split})
    return recipe.model_copy(update={"data": data})


def _table(old: Path, contents: RunContents) -> Table:
    """The images of the run with their splits, in their order."""
    table = open_csv(str(old / SPLIT), {"": old / SPLIT})
    if set(table.classes) != set(contents.model.classes):
        raise UserError(f"{old / SPLIT}: its classes are not those of the model; train the run again")
    if table.paths is not None and not any(Path(name).is_file() for name in table.paths[:100]):
        raise UserError(f"{old / SPLIT}: its images are not files here, so its classes cannot be changed; train again")
    source = Path((contents.metrics.get("source") or {}).get("path") or old)
    # With the root of the source, images keep their names, so that both runs can be compared.
    root = str((source if source.is_dir() else source.parent).absolute())
    return dataclasses.replace(table, names=tuple(contents.name_of(name) for name in table.classes), root=root)


def _free(old: Path) -> Path:
    """The first unused folder beside the run: NAME-classes-1, …"""
    number = 1
    while (place := old.resolve().with_name(f"{old.resolve().name}-classes-{number}")).exists():
        number += 1
    return place


def _describe(contents: RunContents, after: Table, changes: ClassChanges) -> list[str]:
    """What changes, one line each. Raises UserError if nothing does."""
    lines = [f"class renamed: {text.replace('=', ' is now ')}" for text in changes.rename]
    lines += [f"classes merged: {text.replace('=', ' are now ')}" for text in changes.merge]
    lines += [f"class dropped: {text}" for text in changes.drop]
    if changes.add is not None:
        lines.append(f"images added: {changes.add} as {changes.name or changes.add.resolve().name}")
    if not lines:
        raise UserError(f"{contents.path}: nothing to change; give --rename, --merge, --drop or --add")
    sizes = f"{len(contents.labels)} to {len(after)} images"
    return [*lines, f"{len(contents.names)} to {len(after.classes)} classes, {sizes}"]


def _before_after(old: Path, new: Path, targets: dict[str, str | None]) -> dict[str, McNemar]:
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
