"""CSVs that hold the images themselves, as gray values: a column `pixels`, as in FER2013, or one column for each pixel.

emotion,pixels,Usage                        label,pixel0,pixel1,…,pixel783
0,70 80 82 …,Training                       5,0,0,…,0
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path

import numpy as np

from linnaeus.console import counted
from linnaeus.data import tree
from linnaeus.data.class_names import natural_order, read_text
from linnaeus.data.readers.columns import Row, find_column, splits_of
from linnaeus.data.readers.listfile import label_of
from linnaeus.data.table import Table
from linnaeus.errors import UserError

PIXELS = "pixels"
PIXEL = re.compile("(pixel|px|p)?_?[0-9]+(x[0-9]+)?", re.IGNORECASE)  # as in MNIST from Kaggle, or a saved array
EMOTION = "emotion"
EMOTIONS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""Goodfellow et al. 2013, "Challenges in representation learning"."""


def holds_pixels(path: Path) -> bool:
    """Whether the header of a CSV names pixels and labels, and no paths."""
    try:
        with tree.open_binary(path) as file:
            columns = _columns(file.readline(1 << 20).decode("utf-8-sig", "replace"))
    except OSError:
        return False  # the reader of other CSVs reports it
    found = bool(pixel_columns(columns) and _label(path, columns))
    return found and find_column(path, columns, "path") is None


def open_pixels(source: str, path: Path) -> Table:
    """Read such a CSV: images (n, side, side) uint8. Raises UserError for a row that is no square of 0 to 255."""
    header, *lines = read_text(path).split("\n")
    columns = _columns(header)
    where, label = pixel_columns(columns), _label(path, columns)
    assert label is not None, "holds_pixels has found it"
    images, records, number, side = [], list[Row](), 1, 0
    try:
        for number, cells in enumerate(csv.reader(lines), 2):
            if any(cells):
                values = np.array([int(value) for k in where for value in cells[k].split()], np.uint8)
                side = side or math.isqrt(len(values))
                images.append(values.reshape(side, side))
                records.append((number, {name: cells[k].strip() for k, name in enumerate(columns) if k not in where}))
    except (csv.Error, ValueError, OverflowError, IndexError):
        raise UserError(
            f"{path}:{number}: not a square of whole numbers from 0 to 255, as wide as the first; correct the line"
        ) from None
    texts = [label_of(cells[label], path, line) for line, cells in records]
    if "" in texts:
        raise UserError(f"{path}:{records[texts.index('')][0]}: no label; write one, or remove the line")
    if not images or not side:
        raise UserError(f"{path}: has no images below the header; download it again")
    classes = natural_order(texts)
    position = {name: k for k, name in enumerate(classes)}
    labels = np.array([position[text] for text in texts])
    rest = [name for k, name in enumerate(columns) if k not in where and name != label]
    split, notes = splits_of(path, rest, records)
    names = classes
    if label == EMOTION and set(classes) <= set(map(str, range(len(EMOTIONS)))):
        names = tuple(EMOTIONS[int(name)] for name in classes)
        notes = [*notes, f"{path.name}: the names of the emotions are those of FER2013"]
    notes = [f"{path.name}: {counted(len(images), 'image')} of {side} x {side} gray pixels are in its cells", *notes]
    split_of = np.array(split, "<U5")
    return Table(source, "pixels", classes, names, labels, split_of, images=np.stack(images), notes=tuple(notes))


def _columns(header: str) -> list[str]:
    return [name.strip().strip('"').lower() for name in header.split(",")]


def _label(path: Path, columns: list[str]) -> str | None:
    return EMOTION if EMOTION in columns else find_column(path, columns, "label")


def pixel_columns(columns: list[str]) -> list[int]:
    """The positions of the columns that hold pixels: one for all, or 16 and more."""
    if PIXELS in columns:
        return [columns.index(PIXELS)]
    found = [k for k, name in enumerate(columns) if PIXEL.fullmatch(name)]
    return found if len(found) >= 16 else []
