"""CSV and TSV: a header with `path`, `label`, optional `split` and `group`, or another column of groups."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from linnaeus.data.class_names import listed, natural_order, read_text, spelling_variants
from linnaeus.data.display_names import names_by_index, naming_note, refuse_swapped
from linnaeus.data.listfile import Rows, clip, folder_of_label, label_of, locate
from linnaeus.data.table import SPLIT_NAMES, Table
from linnaeus.errors import UserError

BELONGS = re.compile(
    "(patient|subject|person|individual|case|lesion|animal|specimen|plant|tree|camera|scene|location|site|series|burst"
    "|session|video|clip|sequence|slide)s?([ _-]?(id|nr|no|number|name))?"
)
"""Columns that say, by their names, which images belong together."""


def open_csv(source: str, files: dict[str, Path], group: str | None = None) -> Table:
    """Read CSV or TSV files; `files` maps a split ("" where the column `split` decides) to its file.

    `group` names the column whose values tell which samples belong together, such as patient; without it, it is the
    column `group`, if there is one.
    A label is a class name, also where it is a number; classes are in natural order. Where all labels are numbers,
    `classes.txt` beside the file gives the names to display: line k, from 0, for label k (or that line `number name`).
    """
    parts = [read_csv(path, split, group) for split, path in files.items()]
    paths = tuple(path for part in parts for path in locate(part))
    texts = [label for part in parts for label in part.labels]
    classes = natural_order(texts)
    position = {name: k for k, name in enumerate(classes)}
    folder = parts[0].file.absolute().parent
    names, notes = _names(folder, classes, zip(texts, paths, strict=True))
    groups = None
    if any(part.groups for part in parts):
        groups = tuple(group for part in parts for group in part.groups or [""] * len(part.texts))
    return Table(
        source,
        "csv",
        classes,
        names,
        np.array([position[text] for text in texts], dtype=np.int64),
        np.array([split for part in parts for split in part.splits], dtype="<U5"),
        paths=paths,
        groups=groups,
        offered=tuple(dict.fromkeys(name for part in parts for name in part.offered)),
        root=str(folder),
        spellings=spelling_variants(pair for part in parts for pair in part.written),
        notes=tuple(notes),
    )


def _names(
    folder: Path, classes: tuple[str, ...], rows: Iterable[tuple[str, str]]
) -> tuple[tuple[str, ...], list[str]]:
    """Display names where all labels are numbers and a file beside the CSV names them, and a note that says so."""
    named = names_by_index(folder) if all(name.isascii() and name.isdigit() for name in classes) else None
    if named is None:
        return classes, []
    path, by_index = named
    unnamed = [name for name in classes if int(name[:18]) not in by_index]
    if unnamed:
        raise UserError(f"{path}: no line for label {listed(unnamed)}; add it, or remove the file")
    names = {name: by_index[int(name[:18])] for name in classes}
    folders = folder_of_label(rows)
    refuse_swapped(path, folders.values(), {folders[name]: names[name] for name in folders})
    return tuple(names.values()), naming_note(path, names, "by index")


def read_csv(path: Path, split: str = "", group: str | None = None) -> Rows:
    """Read one CSV or TSV file into rows; the images are not looked for yet."""
    column = (group or "group").strip().lower()
    text = read_text(path)
    head = text.split("\n", 1)[0]
    separators = "\t" if path.suffix.lower() == ".tsv" else ",;\t"  # spreadsheets write ; where the comma is decimal
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(separators, key=head.count))
    rows = Rows(path)
    try:
        columns = [name.strip().lower() for name in next(reader, [])]
        for need in ("path", "label"):
            if need not in columns:
                found = f"only {listed(columns)}" if any(columns) else "none"
                raise UserError(
                    f"{path}:1: no column {need!r}, {found}; the first line must name path, label [, split]: "
                    "rename the columns that hold them"
                )
        if column in columns:
            rows.groups = []
        elif group is not None:
            raise UserError(f"{path}:1: no column {group!r} for data.split.groups; the columns are {listed(columns)}")
        likely: dict[str, set[str]] = {name: set() for name in columns if BELONGS.fullmatch(name)}
        blank: dict[str, list[int]] = {"path": [], "label": []}
        for row in reader:
            if any(cell.strip() for cell in row):
                cells = dict(zip(columns, row, strict=False))
                missing = [need for need in blank if not cells.get(need, "").strip()]
                for need in missing:
                    blank[need].append(reader.line_num)
                if not missing:
                    _add(rows, cells, reader.line_num, split, column)
                    for name, values in likely.items():
                        values.add(cells.get(name, "").strip())
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}; correct the line") from None
    for need, numbers in blank.items():
        if numbers:
            others = ", ".join(map(str, numbers[1:6])) + (" …" if numbers[6:] else "")
            more = f", nor in {len(numbers) - 1} more ({others})" if numbers[1:] else ""
            raise UserError(f"{path}:{numbers[0]}: no {need}{more}; write one, or remove the line")
    if rows.groups is None:
        rows.offered = tuple(name for name, values in likely.items() if 1 < len(values) < len(rows.texts))
    if not rows.texts:
        raise UserError(f"{path}: lists no images; write a line for each below the header")
    return rows


def _add(rows: Rows, cells: dict[str, str], number: int, split: str, group: str) -> None:
    """Append one row that has a path and a label, after looking at each of its cells."""
    path, label = cells["path"], cells["label"]
    part = cells.get("split", "").strip().lower()
    if part and part not in SPLIT_NAMES:
        raise UserError(f"{rows.file}:{number}: split {clip(part)} is none of train, valid, test; correct it")
    rows.texts.append(path)
    rows.labels.append(label_of(label, rows.file, number))
    rows.splits.append(split or (SPLIT_NAMES[part] if part else ""))
    rows.written.add((rows.splits[-1], label))
    rows.lines.append(number)
    if rows.groups is not None:
        rows.groups.append(cells.get(group, "").strip())
