"""Open a source as a recipe or a trained model needs it: its list files, its groups, its split, its class order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.batches import Rows
from linnaeus.data.class_names import listed
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.data.table import NEAR_DUPLICATES, Table
from linnaeus.errors import UserError, did_you_mean
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.stores import default_cache
from linnaeus.stores.samples import decode_split


@dataclass(frozen=True)
class LabeledImages:
    """The images of a split of a source, decoded, with their labels in a model's classes."""

    source: str
    """The source as the user named it."""
    split: str
    rows: Rows
    labels: np.ndarray
    """(n,) int64."""
    left_out: list[tuple[str, str]]
    """(sample id, reason) of the images that cannot be read."""
    trained_on: int
    """Number of images that the model was trained on; 0 where the source is not that of its training."""
    calibrated_on: bool
    """Whether the model was calibrated on any of the images; False where the source is not that of its training."""
    table: Table
    """The whole source."""
    indices: np.ndarray
    """(n,) int64: the index of each image in the table."""


def open_for_recipe(source: str | Path, data: Mapping[str, Any], *, lenient: bool = False) -> Table:
    """The table of a source, with the list files and the groups that a recipe's `data` section names.

    `lenient`: the source may be another one than the recipe was made for, so list files are ignored unless it is a
    folder, and a missing column of groups is no error. Raises UserError where the source cannot be read.
    """
    train, valid, test = (data.get(split) for split in ("train", "valid", "test"))
    if valid == "test":  # the test images serve as validation: there is no list of validation images
        valid = None
    if lenient and not Path(source).is_dir():
        train = valid = test = None
    groups = (data.get("split") or {}).get("groups")
    column = None if groups == NEAR_DUPLICATES else groups  # near-duplicates are found in the images, not in a column
    try:
        return open_source(source, train=train, valid=valid, test=test, group=column)
    except UserError:
        if not lenient or column is None:
            raise
        return open_source(source, train=train, valid=valid, test=test)


def reopen_source(about: ModelFile, path: Path, source: str | Path) -> tuple[Table, bool]:
    """The table of a source, and whether it is the one that the model at `path` was trained on.

    In that case the table is split as it was for the training.
    """
    data = about.recipe.get("data", {})
    table = open_for_recipe(source, data, lenient=True)
    split = data.get("split")
    samples = sum(int(n) for n in about.data.get("counts", {}).values())
    if (split or {}).get("groups") == NEAR_DUPLICATES and (table.split == "").any() and len(table) >= samples:
        raise UserError(
            f"{source}: the model was trained on a split that keeps near-duplicates together, which cannot be drawn "
            f"again here; give the split of its run: {path.parent / 'split.csv'}"
        )
    if split is None or not (table.where("train").size or table.where("").size):
        return table, False
    valid_is_test = data.get("valid") == "test"
    try:
        again = split_table(
            table, valid=split["valid"], test=split["test"], seed=split["seed"], valid_is_test=valid_is_test
        )
    except (UserError, KeyError, TypeError):  # another source than that of the training
        return table, False
    return (again, True) if again.fingerprint() == about.data.get("fingerprint") else (table, False)


def load_labeled_images(about: ModelFile, path: Path, source: str | Path, split: str | None = None) -> LabeledImages:
    """Decode the images of a split of a source, with their labels in the classes of the model at `path`.

    `split` None means test if the source has one, else valid, else all. A source without splits that the model was
    trained on is split as for the training, since "all" would include the training images.
    Raises UserError where the source has a class that the model does not know, no such split, or no readable image.
    """
    table, is_training_source = reopen_source(about, path, source)
    _check_classes(about, source, table.classes)
    splits = [name or "all" for name in table.counts()]
    split = split or next((name for name in ("test", "valid") if name in splits), "all")
    indices = np.arange(len(table)) if split == "all" else table.where(split)
    if not len(indices):
        raise UserError(f"{source}: has no split {split!r}; choose from {', '.join({*splits, 'all'})}")
    decoded = decode_split(table, indices, about.preprocessing.row_spec, default_cache())
    class_indices = np.array([about.classes.index(name) for name in table.classes])
    splits_of_images = table.split[decoded.indices] if is_training_source else np.array([])
    calibration_split = None if about.calibration is None else about.calibration.get("split")
    return LabeledImages(
        source=str(source),
        split=split,
        rows=decoded.rows,
        labels=class_indices[table.labels[decoded.indices]],
        left_out=decoded.left_out,
        trained_on=int((splits_of_images == "train").sum()),
        calibrated_on=about.calibration is not None and bool((splits_of_images == calibration_split).any()),
        table=table,
        indices=decoded.indices,
    )


def _check_classes(about: ModelFile, source: str | Path, classes: tuple[str, ...]) -> None:
    """Raise UserError unless the model knows every class of the source, which may lack some of the model's."""
    unknown = [name for name in classes if name not in about.classes]
    if not unknown:
        return
    missing = [name for name in about.classes if name not in classes]
    others = f"; the source lacks {listed(missing, 20)}, which the model knows" if missing else ""
    raise UserError(
        f"{source}: the model does not know {listed(unknown, 20)}{did_you_mean(unknown[0], about.classes)}{others}; "
        "rename the classes that are the same, and leave out the others"
    )
