"""The images of a source with their labels in a model's classes, split as they were when the model was trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.batches import Rows
from linnaeus.data.class_names import listed
from linnaeus.data.table import NEAR_DUPLICATES, Table
from linnaeus.errors import UserError, did_you_mean
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.stores import default_cache
from linnaeus.stores.samples import decode_split


@dataclass(frozen=True)
class Images:
    """The images of a split of a source, decoded, with their labels in a model's classes."""

    source: str
    """What the user named."""
    split: str
    rows: Rows
    labels: np.ndarray
    """(n,) int64."""
    left_out: list[tuple[str, str]]
    """(image, reason) of what could not be read."""
    trained_on: int
    """How many of the images the model was trained on, where that can be told: the source is that of its training."""
    calibrated_on: bool
    """Whether the model's calibration was fitted on any of them, where that can be told."""
    table: Table
    """Of the whole source."""
    indices: np.ndarray
    """(n,) int64: the sample of the table that each image is."""


def labelled_images(about: ModelFile, path: Path, source: str | Path, split: str | None = None) -> Images:
    """The images of a split of a source, with their labels in the model's classes.

    Without `split`: test where the source has one, else valid, else all. A source without parts of its own, which
    this model was trained on, is split as it was then; "all" would count what it was trained on.
    """
    table, same = labelled_table(about, path, source)
    _check_classes(about, source, table.classes)
    parts = [part or "all" for part in table.counts()]
    split = split or next((part for part in ("test", "valid") if part in parts), "all")
    indices = np.arange(len(table)) if split == "all" else table.where(split)
    if not len(indices):
        raise UserError(f"{source}: has no split {split!r}; choose from {', '.join({*parts, 'all'})}")
    decoded = decode_split(table, indices, about.preprocessing.row_spec, default_cache())
    indices = decoded.indices
    labels = np.array([about.classes.index(name) for name in table.classes])[table.labels[indices]]
    seen = table.split[indices] if same else np.array([])
    fitted = about.calibration is not None and bool((seen == about.calibration.get("split")).any())
    return Images(
        str(source), split, decoded.rows, labels, decoded.left_out, int((seen == "train").sum()), fitted, table, indices
    )


def _check_classes(about: ModelFile, source: str | Path, classes: tuple[str, ...]) -> None:
    """Raise UserError unless the model knows every class; some of its own may be missing."""
    unknown = [name for name in classes if name not in about.classes]
    if not unknown:
        return
    near = did_you_mean(unknown[0], about.classes)
    unmet = [name for name in about.classes if name not in classes]
    only = f"; it knows {listed(unmet, 20)}, not in the source" if unmet else ""
    raise UserError(
        f"{source}: the model does not know {listed(unknown, 20)}{near}{only}; rename what is the same, "
        "and leave out the rest"
    )


def labelled_table(about: ModelFile, path: Path, source: str | Path) -> tuple[Table, bool]:
    """The source's table, and whether it is the one that this model was trained on; it is then split as it was."""
    from linnaeus.data.sources import open_source
    from linnaeus.data.split import split_table

    data = about.recipe.get("data", {})
    lists = {key: data.get(key) for key in ("train", "valid", "test")}
    on_test = lists["valid"] == "test"
    share = data.get("split")
    groups = (share or {}).get("groups")
    named = (lists | {"valid": None} if on_test else lists) if Path(source).is_dir() else {}
    column = None if groups == NEAR_DUPLICATES else groups
    try:
        table = open_source(source, **named, group=column)
    except UserError:
        if column is None:
            raise
        table = open_source(source, **named)  # another source has no such column
    counted = sum(int(n) for n in about.data.get("counts", {}).values())
    if groups == NEAR_DUPLICATES and (table.split == "").any() and len(table) >= counted:
        raise UserError(
            f"{source}: the model was trained on a split that keeps copies together, which is not drawn again "
            f"here; give the run's own: {path.parent / 'split.csv'}"
        )
    if share is None or not (table.where("train").size or table.where("").size):
        return table, False
    try:
        again = split_table(table, valid=share["valid"], test=share["test"], seed=share["seed"], valid_is_test=on_test)
    except (UserError, KeyError, TypeError):  # another source than that of the training
        return table, False
    same = again.fingerprint() == about.data.get("fingerprint")
    return (again, True) if same else (table, False)
