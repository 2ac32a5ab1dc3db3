"""A new run with other classes, from a run with a frozen backbone and a linear head that is solved."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.runs.changes import RunChanges
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.ownership import is_in_progress
from linnaeus.training.derived.class_changes import ClassChanges, changed_table
from linnaeus.training.derived.solved_run import SolvedRun
from linnaeus.training.run import Run, train


@dataclass(frozen=True)
class ChangedRun:
    """A run with changed classes, and its answers beside those of the run before on the images of both."""

    run: Run
    changes: RunChanges


def change_classes(
    path: str | Path, changes: ClassChanges, *, out: str | Path | None = None, device: str = "auto", console: Console
) -> ChangedRun:
    """Train a run with changed classes; the activations of images that stay are reused from the run at `path`.

    The run at `path` is only read. Raises UserError if its network was trained below the head, its images are not
    files, or the changes do not fit its classes.
    """
    old = SolvedRun.read(Path(path), "its classes cannot be changed")
    if old.model.task == "multi-label":
        raise UserError(f"{path}: its images have several labels each, which `linnaeus classes` does not support")
    before = old.table()
    after = changed_table(before, changes)
    lines = _describe(old.path, before, after, changes)
    record = RunChanges(old.path, lines, changes.targets(before.classes, before.names))
    earlier = old.earlier(before, record)
    with old.new_folder("classes", out) as place:
        # The new run's own split.csv is its source: no folder or list has these images with these classes.
        after = dataclasses.replace(after, source=str(place.absolute() / SPLIT))
        resume = is_in_progress(place)  # what a killed process of the same command has begun
        run = train(after, old.recipe, out=place, device=device, console=console, earlier=earlier, resume=resume)
    return ChangedRun(run, record)


def _describe(path: Path, before: Table, after: Table, changes: ClassChanges) -> list[str]:
    """What changes, one line each. Raises UserError if nothing does."""
    lines = [f"class renamed: {text.replace('=', ' is now ')}" for text in changes.rename]
    lines += [f"classes merged: {text.replace('=', ' are now ')}" for text in changes.merge]
    lines += [f"class dropped: {text}" for text in changes.drop]
    lines += [
        f"images added: {folder}" if Path(folder).name == name else f"images added: {folder} as {name}"
        for folder, name in changes.added
    ]
    if not lines:
        raise UserError(f"{path}: nothing to change; give --rename, --merge, --drop or --add")
    sizes = f"{len(before)} to {len(after)} images"
    return [*lines, f"{len(before.classes)} to {len(after.classes)} classes, {sizes}"]
