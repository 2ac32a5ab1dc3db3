"""The labels in a CSV: one for each image, or several in 0/1 columns or in a column with a separator."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.class_names import listed, natural_order
from linnaeus.data.readers.columns import BOOLEANS, FLAGS, SPLIT, LabelFormat, Row, boolean, key, one_hot
from linnaeus.data.readers.listcells import list_cells
from linnaeus.data.table import Table
from linnaeus.errors import UserError

SEPARATORS = ("|", ";", ",")
SEVERAL = ("labels", "labelnames", "findinglabels", "findings", "tags", "attributes", "classes", "categories")
"""Names of columns that hold several labels."""
NOTHING = ("none", "nofinding", "nofindings", "nolabel", "nolabels")  # words in such a column that mean no label
UNCERTAIN = ("-1", "-1.0", "u")
MOST_TYPOS = 0.05
"""Share of the cells of a column of 0 and 1 that may be something else by mistake; of more, it means something else."""
SWITCH = "--set data.task=single-label"


@dataclass(frozen=True)
class Labels:
    """The labels of the rows of a CSV, as written."""

    by_line: dict[int, tuple[str, ...]]  # line number -> its label, or its labels, perhaps none
    columns: tuple[str, ...]  # the columns that hold them
    note: str = ""  # how they were read; empty where a column `label` holds them
    several: bool = False  # whether a row may have several labels


def read_labels(
    file: Path,
    label: str | None,
    others: Sequence[str],
    rows: Sequence[Row],
    form: LabelFormat,
    written: Mapping[str, str],
) -> Labels | None:
    """The labels of column `label`, or without one of those `others` that hold 0 and 1; None if no column does.

    `written`: the name of each column in lower case, as in `rows` and in the labels, -> as the file has it.
    A row has several labels where the recipe says so or the cells show it. Raises UserError for a cell that is neither
    0 nor 1 in a column of such cells, and for a row of several classes where one is expected.
    """
    if label is not None and (lists := _from_lists(file, label, rows, form.task)) is not None:
        return lists
    sets = _label_sets(file, label, others, rows, form, written)
    if sets is not None:
        return sets
    if label is not None:
        note = "" if label == "label" else f"label is read from column {label!r}"
        if form.task is None and (joined := _joined({cells[label].strip() for _, cells in rows})):
            note = f"{note}; {joined}" if note else joined
        return Labels({line: (cells[label],) for line, cells in rows}, (label,), note)
    classes = one_hot(file, others, rows, written)
    if classes is None:
        return None
    found = set(classes.values())
    used = tuple(name for name in others if name in found)
    note = f"label is read from the columns {listed([written[name] for name in used])}, one for each class"
    return Labels({line: (name,) for line, name in classes.items()}, used, note)


def _label_sets(
    file: Path,
    label: str | None,
    others: Sequence[str],
    rows: Sequence[Row],
    form: LabelFormat,
    written: Mapping[str, str],
) -> Labels | None:
    """The labels of each row, where the recipe says or the cells show that an image may have several; else None."""
    if form.task == "single-label" or not rows:
        return None
    if label is None:
        return _from_flags(file, others, rows, form.task, written)
    cells = {line: cells[label] for line, cells in rows}
    separator = form.separator or _separator(cells.values(), key(label) in SEVERAL, form.task)
    if separator is None and form.task is None:
        return None
    by_line = {line: _parts(text.split(separator) if separator else [text]) for line, text in cells.items()}
    how = f"separated by {separator!r}" if separator else "one in each row"
    return Labels(by_line, (label,), f"labels are read from column {label!r}, {how}: {_counts(by_line)}", several=True)


def _from_lists(file: Path, label: str, rows: Sequence[Row], task: str | None) -> Labels | None:
    """Labels of cells that are lists; where each has one item and the recipe says nothing else, one for each image."""
    lists = list_cells(file, label, {line: cells[label] for line, cells in rows})
    if lists is None:
        return None
    if all(len(items) == 1 for items in lists.values()) and task != "multi-label":
        return Labels(lists, (label,), f"label is read from column {label!r}, whose cells are lists of one")
    if task == "single-label":
        return None
    by_line = {line: _parts(items) for line, items in lists.items()}
    note = f"labels are read from column {label!r}, whose cells are lists: {_counts(by_line)}"
    return Labels(by_line, (label,), note, several=True)


def _from_flags(
    file: Path, others: Sequence[str], rows: Sequence[Row], task: str | None, written: Mapping[str, str]
) -> Labels | None:
    """Labels of 0/1 columns. Unless the task is stated, two of them must be 1 in some row."""
    values = {name: {cells[name].strip().lower() for _, cells in rows} for name in others}
    # Columns such as is_train are 0/1 too, but state the split.
    about_splits = [name for name in others if key(name) in FLAGS or key(name) in SPLIT]
    flags = [name for name in others if name not in about_splits and values[name] <= BOOLEANS.keys()]
    used = {*flags, *about_splits}
    unused = [name for name in others if name not in used]
    for name in unused:
        _refuse_typos(file, name, rows, written[name])
    by_line = {line: tuple(name for name in flags if boolean(cells[name])) for line, cells in rows}
    if not flags or (task is None and all(len(labels) < 2 for labels in by_line.values())):
        return None
    # CheXpert marks uncertain labels by -1: reading them as 0 would teach mistakes.
    for line, cells in rows:
        for name in others:
            if values[name] <= BOOLEANS.keys() | set(UNCERTAIN) and cells[name].strip().lower() in UNCERTAIN:
                raise UserError(
                    f"{file}:{line}: {written[name]} is {cells[name].strip()!r}, neither 0 nor 1; correct it or remove "
                    "the row"
                )
    rest = f"; not used: {listed([written[name] for name in unused])}" if unused else ""
    note = f"labels are read from the columns {listed([written[name] for name in flags], 20)}: {_counts(by_line)}{rest}"
    return Labels(by_line, tuple(flags), note, several=True)


def _refuse_typos(file: Path, name: str, rows: Sequence[Row], written: str) -> None:
    """Raise UserError for a column of 0 and 1 with a few other cells, which would silently be no label at all."""
    odd = [(line, text) for line, cells in rows if (text := cells[name].strip()).lower() not in BOOLEANS]
    if len(odd) <= MOST_TYPOS * len(rows):
        line, text = odd[0]
        raise UserError(
            f"{file}:{line}: {written} is {text!r}, neither 0 nor 1 as {len(rows) - len(odd):,} of {len(rows):,} cells "
            "of this column are; correct it, or remove the column"
        )


def _separator(cells: Iterable[str], several: bool, task: str | None) -> str | None:
    """The separator that the cells show.

    A column whose name promises several labels is split at | or ;, and at a comma if a part occurs in another cell
    too. A column `label` is split only where a part of a cell is the whole of another, and never at a comma, which
    class names contain.
    """
    texts = {text.strip() for text in cells}
    for separator in SEPARATORS:
        parts = [(text, part.strip()) for text in texts if separator in text for part in text.split(separator)]
        if not parts:
            continue
        # A comma is common inside class names ("tench, Tinca tinca"), so it needs more evidence.
        if task is not None or (several and separator != ","):
            return separator
        if several and len({part for _, part in parts}) < len(parts):
            return separator
        if (several or separator != ",") and any(part in texts for _, part in parts):
            return separator
    return None


def _joined(texts: set[str]) -> str:
    """A note on labels with a comma of which a part is a label too; empty if there are none."""
    joined = natural_order(
        text for text in texts if "," in text and any(part.strip() in texts for part in text.split(","))
    )
    if not joined:
        return ""
    return (
        f"{listed(joined)}: read as one class each, although a part is a class too; if these are several labels, "
        f'--set data.separator="," (otherwise {SWITCH})'
    )


def _parts(texts: Iterable[str]) -> tuple[str, ...]:
    parts = [text.strip() for text in texts]
    return tuple(dict.fromkeys(part for part in parts if part and key(part) not in NOTHING))


def _counts(by_line: dict[int, tuple[str, ...]]) -> str:
    """`3 of 10 images have several, 1 has none; --set data.task=single-label …`"""
    several = sum(len(labels) > 1 for labels in by_line.values())
    none = sum(not labels for labels in by_line.values())
    return (
        f"{several:,} of {len(by_line):,} images have several, {none:,} none (data.task = multi-label; {SWITCH} reads "
        "one label per image)"
    )


def indicator(sets: Sequence[tuple[str, ...]], classes: Sequence[str]) -> np.ndarray:
    """(n, classes) bool: which of `classes` each image has."""
    position = {name: k for k, name in enumerate(classes)}
    labels = np.zeros((len(sets), len(classes)), bool)
    for i, names in enumerate(sets):
        labels[i, [position[name] for name in names]] = True
    return labels


def occurring(sets: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The labels that some image has, in natural order."""
    return natural_order(name for names in sets for name in names)


def with_task(table: Table, task: str | None) -> Table:
    """`table` with label sets of one label each, where the recipe asks for several labels and the source has one."""
    if task != "multi-label" or table.labels.ndim == 2:
        return table
    labels = np.arange(len(table.classes)) == table.labels[:, None]
    note = f"each image of {table.kind} has one label; all other labels are learned as absent"
    return dataclasses.replace(table, labels=labels, notes=(*table.notes, note))
