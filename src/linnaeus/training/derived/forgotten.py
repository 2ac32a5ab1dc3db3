"""Select the images of a run to forget: by name, by group or by class."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.class_names import listed, read_text
from linnaeus.errors import UserError, did_you_mean
from linnaeus.runs.parsing import recorded_source
from linnaeus.training.derived.class_changes import find_class
from linnaeus.training.derived.solved_run import SolvedRun


@dataclass(frozen=True)
class Forgotten:
    """The images to forget: the union of these."""

    images: str | None = None
    """A file with the path of an image on each line, or `-` for standard input."""
    groups: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    """Class names or display names; an image with several labels counts for each."""


def chosen_images(run: SolvedRun, chosen: Forgotten) -> np.ndarray:
    """(n,) bool: the rows of split.csv that are to be forgotten. Raises UserError for a name that the run lacks."""
    if chosen == Forgotten():
        raise UserError(f"{run.path}: nothing to forget; give --images, --group or --class")
    gone = np.zeros(len(run.rows.texts), bool)
    if chosen.images is not None:
        gone |= _named(run, chosen.images)
    groups = run.rows.groups or [""] * len(gone)
    for value in chosen.groups:
        members = np.array([group == value for group in groups])
        # An empty value would match every image without a group.
        if not value or not members.any():
            known = sorted({group for group in groups if group})
            have = f"it has {listed(known, 10)}" if known else "it has no groups (data.split.groups)"
            raise UserError(
                f"--group {value}: no image of {run.path} belongs to it{did_you_mean(value, known)}; {have}"
            )
        gone |= members
    for name in chosen.classes:
        label = find_class(name, run.model.classes, run.model.names, f"--class {name}: {run.path}")
        sets = run.rows.sets if run.rows.sets is not None else [(only,) for only in run.rows.labels]
        gone |= np.array([label in labels for labels in sets])
    return gone


def _named(run: SolvedRun, source: str) -> np.ndarray:
    """(n,) bool: the images that a list names, each by its path, or as predictions.csv names it."""
    text = sys.stdin.read() if source == "-" else read_text(Path(source))
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise UserError(f"{source}: names no image; write the path of one on each line")
    positions = _positions(run)
    folder = "" if source == "-" else os.path.dirname(os.path.abspath(source))  # noqa: PTH100, PTH120
    gone = np.zeros(len(run.rows.texts), bool)
    for number, name in lines:
        # As written, then relative to the list, then to the working directory.
        tried = [name, *(os.path.normpath(os.path.join(base, name)) for base in (folder, os.getcwd()))]  # noqa: PTH109, PTH118
        position = next((positions[key] for key in tried if key in positions), None)
        if position is None:
            # The comparison with many names would take seconds.
            close = did_you_mean(name, run.rows.texts) if len(positions) < 10_000 else ""
            raise UserError(
                f"{source}:{number}: {name!r} is not an image of {run.path}{close}; name images as its split.csv or "
                "predictions.csv does, or by their paths"
            )
        gone[position] = True
    return gone


def _positions(run: SolvedRun) -> dict[str, list[int]]:
    """Names of the images -> their rows: as split.csv has them, absolute, and relative to the source of the run."""
    folder = str(run.path.absolute())
    source = Path(recorded_source(run.path) or folder).absolute()
    root = str(source if source.is_dir() else source.parent) + os.sep
    positions: dict[str, list[int]] = {}
    for i, text in enumerate(run.rows.texts):
        absolute = os.path.normpath(os.path.join(folder, text))  # noqa: PTH118
        for name in {text, absolute, absolute.removeprefix(root)}:
            positions.setdefault(name, []).append(i)
    return positions
