"""CSV and TSV: a header with `path`, `label`, optional `split` and `group`, or another column of groups."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np

from linnaeus.data.listing import Rows, clip, label_of, locate
from linnaeus.data.names import NAMES_TEXT, listed, natural_order, read_classes, read_text, spelled_apart
from linnaeus.data.table import SPLIT_NAMES, Table
from linnaeus.errors import UserError


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
    names = classes
    if (folder / NAMES_TEXT).is_file() and all(name.isascii() and name.isdigit() for name in classes):
        named = read_classes(folder / NAMES_TEXT)
        unnamed = [name for name in classes if int(name[:18]) not in named]
        if unnamed:
            raise UserError(f"{folder / NAMES_TEXT}: no line for label {listed(unnamed)}; add it, or remove the file")
        names = tuple(named[int(name[:18])] for name in classes)
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
        root=str(folder),
        spellings=spelled_apart(pair for part in parts for pair in part.written),
    )


def read_csv(path: Path, split: str = "", group: str | None = None) -> Rows:
    """Read one CSV or TSV file into rows; the pictures are not looked for yet."""
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
        for row in reader:
            if any(cell.strip() for cell in row):
                _add(rows, dict(zip(columns, row, strict=False)), reader.line_num, split, column)
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: {error}; correct the line") from None
    if not rows.texts:
        raise UserError(f"{path}: lists no pictures; write a line for each below the header")
    return rows


def _add(rows: Rows, cells: dict[str, str], number: int, split: str, group: str) -> None:
    """Append one row, after looking at each of its cells."""
    path, label = cells.get("path", ""), cells.get("label", "")
    for column, cell in (("path", path), ("label", label)):
        if not cell.strip():
            raise UserError(f"{rows.file}:{number}: no {column}; write one, or remove the line")
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
