"""Images and labels as scikit-learn's tools give them, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.masked import refuse_masked
from linnaeus.data.table import Table
from linnaeus.errors import UserError

Images = Sequence[str | Path] | Sequence[np.ndarray] | np.ndarray
"""Paths of n files; or n images (H, W) or (H, W, 3) uint8 of one size, as a list or as one array."""


def table_of(
    X: Images, y: Sequence[Any] | np.ndarray, groups: Sequence[Any] | np.ndarray | None
) -> tuple[Table, np.ndarray]:
    """The images as a table, unsplit, and the labels' values in class order."""
    for name, values in (("labels", y), ("groups", groups)):
        refuse_masked(values, f"fit: {name}")
    labels = np.asarray(y)
    images = images_of(X)
    check_lengths(images, "fit", {"labels": labels if labels.ndim != 2 else labels[:, 0], "groups": groups})
    if labels.ndim == 2:
        values, index = indicator(y, labels, "fit")
    else:
        check_labels(list(y), labels, "fit")
        values, index = np.unique(labels, return_inverse=True)
        if len(values) == 1:
            raise UserError(f"fit: all labels are {values[0]!s}; a classifier needs two or more classes")
    names = tuple(str(value) for value in values)
    table = Table(
        source="the images given to fit",
        kind="arrays" if isinstance(images, np.ndarray) else "paths",
        # Class names must be texts; `values` restores the labels' own types.
        classes=names,
        names=names,
        labels=index,
        split=np.full(len(images), "", "<U5"),
        paths=None if isinstance(images, np.ndarray) else tuple(str(Path(path).absolute()) for path in images),
        images=images if isinstance(images, np.ndarray) else None,
        groups=None if groups is None else tuple("" if is_missing(group) else str(group) for group in groups),
    )
    return table, values


def indicator(y: Any, labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Names of the labels, and (n, labels) bool: which of them each image has. Raises UserError unless 0 and 1."""
    if not np.isin(labels, (0, 1)).all():
        raise UserError(f"{where}: labels of shape {labels.shape} must be 0 or 1, a column for each label")
    names = np.array([str(name) for name in getattr(y, "columns", range(labels.shape[1]))], object)
    return names, labels.astype(bool)


def listed(classes: np.ndarray, most: int = 5) -> str:
    shown = ", ".join(map(repr, classes[:most].tolist()))
    return f"{shown} …" if len(classes) > most else shown


def check_lengths(images: Sequence[Any] | np.ndarray, where: str, columns: Mapping[str, Any]) -> None:
    """Raise UserError unless each column that is given has one value for each image."""
    for name, values in columns.items():
        if values is not None and (np.ndim(values) != 1 or len(values) != len(images)):
            raise UserError(f"{where}: {len(images)} images, but {name} of shape {np.shape(values)}; give one for each")


def check_labels(values: list[Any], labels: np.ndarray, where: str) -> None:
    """Raise UserError if a label is missing, or if labels of several kinds have no order.

    `given` are the values before NumPy made them `labels`, which turns NaN among words into the word "nan", and 1
    beside "1" into the same word.
    """
    missing = [i for i, value in enumerate(values) if is_missing(value)]
    if missing:
        raise UserError(
            f"{where}: {len(missing)} of {len(values)} labels are missing, the first at position {missing[0]} "
            f"({values[missing[0]]}); leave these images out, or label them"
        )
    # NumPy turns [1, "a"] into texts, which would hide the mistake.
    mixed = labels.dtype.kind in "US" and not all(isinstance(value, str | bytes) for value in values)
    try:
        np.unique(labels)
    except TypeError:
        mixed = True
    if mixed:
        raise UserError(f"{where}: labels of several types cannot be sorted; make all of them numbers or all strings")


def is_missing(label: Any) -> bool:
    """Whether a label is None, NaN, or the missing value of pandas, whose comparison is neither true nor false."""
    return label is None or type(label).__name__ in ("NAType", "NaTType") or bool(label != label)


def same_label(label: Any, other: Any) -> bool:
    """Whether two labels are equal; all missing values are."""
    return label is other or (is_missing(label) and is_missing(other)) or bool(label == other)


def put_label(labels: np.ndarray, where: np.ndarray, label: Any) -> np.ndarray:
    """A copy of `labels` (n,) with `label` at `where` (n,) bool; of type object if one type cannot hold both kinds."""
    alone = np.asarray(label)
    kinds = {labels.dtype.kind, alone.dtype.kind}
    together = len(kinds) == 1 or kinds == {"i", "u"}
    replaced = labels.astype(np.result_type(labels.dtype, alone.dtype) if together else object)
    replaced[where] = label
    return replaced


def images_of(X: Images) -> np.ndarray | list[str | Path]:
    """Images as one array (n, H, W[, 3]) uint8, or paths."""
    if getattr(X, "ndim", 1) == 2 and X.shape[1] == 1:  # type: ignore[union-attr]
        X = np.asarray(X)[:, 0]  # of a data frame, as other estimators pass it on
    if isinstance(X, np.ndarray) and X.ndim > 1:
        refuse_masked(X, "images")
        images = X
    else:
        items = list(X)
        for item in items:
            refuse_masked(item, "images")
        # A list of arrays of one size is an array; texts would become an array of texts.
        if all(isinstance(item, str | Path) for item in items):
            return items
        if len({np.shape(item) for item in items}) > 1:
            raise UserError("images of several sizes: give their paths, or arrays of one size")
        images = np.stack([np.asarray(item) for item in items])
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] != 3):
        raise UserError(
            f"images of shape {images.shape} and type {images.dtype}: give paths, or uint8 (n, H, W) or (n, H, W, 3)"
        )
    return images
