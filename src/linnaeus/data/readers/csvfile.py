"""CSV and TSV: a header with `path`, `label`, optional `split` and `group`, or another column of groups."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.class_names import listed, natural_order, read_text, spelling_variants
from linnaeus.data.display_names import names_by_index, naming_note, refuse_swapped
from linnaeus.data.readers.columns import (
    AS_SHOWN,
    LabelFormat,
    Row,
    find_column,
    missing_note,
    refuse_repeated,
    splits_of,
)
from linnaeus.data.readers.foreign_files import MANIFEST
from linnaeus.data.readers.jsonlines import json_records
from linnaeus.data.readers.labels import indicator, occurring, read_labels
from linnaeus.data.readers.listfile import Rows, folder_of_label, label_of, locate, splits_of_folders
from linnaeus.data.readers.pixelcsv import pixel_columns
from linnaeus.data.readers.provenance import accepted, read_provenances
from linnaeus.data.readers.repeats import whole_numbers, with_swapped_labels, without_repeats
from linnaeus.data.table import Table, checked
from linnaeus.errors import UserError
from linnaeus.text import plain_cell

SPLIT_FILE = "split.csv"  # name of the split in a run folder; earlier versions wrote it without content hashes

LABELS_CSV = ("path", "label", "provenance", "time")
LABELS_TO_TRAIN = ("path", "label", "split", "group", "provenance")
"""Columns of the files that `linnaeus label` writes: the labels, and what it gives to `linnaeus train`."""

MANIFESTS = ("source-ref", "imagegcsuri", "image_url")  # of SageMaker, Vertex AI and Azure ML
BELONGS = re.compile(
    "(patient|subject|person|individual|case|lesion|animal|specimen|plant|tree|camera|scene|location|site|series|burst"
    "|session|video|clip|sequence|slide)s?([ _-]?(id|nr|no|number|name))?"
)
"""Columns that say, by their names, which images belong together."""


def open_csv(source: str, files: dict[str, Path], group: str | None = None, form: LabelFormat = AS_SHOWN) -> Table:
    """Read CSV or TSV files; `files` maps a split ("" where the column `split` decides) to its file.

    `group` names the column whose values tell which samples belong together, such as patient; without it, it is the
    column `group`, if there is one. `form` says whether images have several labels (labels.py).
    A label is a class name, also where it is a number; classes are in natural order. Where all labels are numbers,
    `classes.txt` beside the file gives the names to display: line k, from 0, for label k (or that line `number name`).
    """
    return open_rows(source, [read_csv(path, split, group, form) for split, path in files.items()])


def open_frame(frame: Any, group: str | None = None, form: LabelFormat = AS_SHOWN, *, lenient: bool = False) -> Table:
    """Read a pandas DataFrame with the columns of a CSV; relative paths start at the working directory.

    Raises UserError for a table that cannot be trained on, unless `lenient`.
    """
    header = [str(name).strip() for name in frame.columns]
    columns = [name.lower() for name in header]
    blank = frame.isna().to_numpy()
    cells = [
        ["" if empty else str(value) for value, empty in zip(row, missing, strict=True)]
        for row, missing in zip(frame.itertuples(index=False, name=None), blank, strict=True)
    ]
    records = [(number, dict(zip(columns, row, strict=True))) for number, row in enumerate(cells, 1)]
    table = open_rows("DataFrame", [_rows(Path("DataFrame"), header, records, "", group, form)])
    return table if lenient else checked(table)


def open_rows(source: str, parts: list[Rows]) -> Table:
    """The table of rows that were read from files. Raises UserError if an image does not exist."""
    paths = tuple(path for part in parts for path in locate(part))
    folder = parts[0].file.absolute().parent
    _spell_as_written(parts)
    labels, classes, names, notes = _resolve_labels(parts, paths, folder)
    groups = None
    # One file of several may lack the column; its images then belong to no group.
    if any(part.groups for part in parts):
        groups = tuple(group for part in parts for group in part.groups or [""] * len(part.texts))
    table = Table(
        source,
        "csv",
        classes,
        names,
        labels,
        np.array([split for part in parts for split in part.splits], dtype="<U5"),
        paths=paths,
        groups=groups,
        accepted=accepted(parts),
        offered=tuple(dict.fromkeys(name for part in parts for name in part.offered)),
        root=str(folder),
        spellings=spelling_variants(pair for part in parts for pair in part.written),
        notes=(*(note for part in parts for note in part.notes), *notes),
    )
    return with_swapped_labels(without_repeats(table))


def _spell_as_written(parts: list[Rows]) -> None:
    """Name classes that have a column each as the first of the files does: columns are compared in lower case."""
    written: dict[str, str] = {}
    for part in parts:
        written = part.names | written
        if part.names:
            part.labels = [written[label] for label in part.labels]
            part.sets = part.sets and [tuple(written[name] for name in names) for names in part.sets]
            part.written = {(split, written[text]) for split, text in part.written}


def _resolve_labels(
    parts: list[Rows], paths: Sequence[str], folder: Path
) -> tuple[np.ndarray, tuple[str, ...], tuple[str, ...], list[str]]:
    """(labels, (n,) int64 or (n, classes) bool; classes; display names; notes on them)."""
    if any(part.sets is not None for part in parts):
        # Files with and without several labels can be mixed: a single label is a set of one.
        sets = [names for part in parts for names in (part.sets if part.sets is not None else zip(part.labels))]
        classes = occurring(sets)
        return indicator(sets, classes), classes, classes, []
    texts = [label for part in parts for label in part.labels]
    texts, numbers = (texts, []) if any(part.exact for part in parts) else whole_numbers(texts)
    classes = natural_order(texts)
    position = {name: k for k, name in enumerate(classes)}
    names, notes = _names(folder, classes, zip(texts, paths, strict=True))
    return np.array([position[text] for text in texts], dtype=np.int64), classes, names, [*numbers, *notes]


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


def read_csv(path: Path, split: str = "", group: str | None = None, form: LabelFormat = AS_SHOWN) -> Rows:
    """Read one CSV or TSV file into rows; the images are not looked for yet."""
    return _rows(path, *_records(path), split, group, form)


def _rows(path: Path, header: list[str], records: list[Row], split: str, group: str | None, form: LabelFormat) -> Rows:
    """The rows of a table that was read from `path`, checked. Records have the columns in lower case."""
    columns = [name.lower() for name in header]
    grouping = (group or "group").strip().lower()
    refuse_repeated(path, columns)
    image, label = (find_column(path, columns, role) for role in ("path", "label"))
    if image is None:
        raise _no_column(path, columns, "path")
    others = [name for name in columns if name and name not in (image, "split", grouping)]
    labels = read_labels(path, label, others, records, form, dict(zip(columns, header, strict=True)))
    if labels is None:
        raise _no_column(path, columns, "label")
    if group is not None and grouping not in columns:
        raise UserError(f"{path}:1: no column {group!r}; the columns are {listed(columns)}")
    if not records:
        raise UserError(f"{path}: lists no images; write a line for each below the header")
    rows = Rows(path, lines=[line for line, _ in records], texts=[cells[image] for _, cells in records])
    rows.exact = _is_split_of_run(path, columns)
    texts = [] if labels.several else [labels.by_line[line][0] for line in rows.lines]
    _refuse_blank(rows, "path", rows.texts)
    _refuse_blank(rows, "label", texts)
    of_labels = set(labels.columns)  # a table may have a column for each of 100,000 labels
    rest = [name for name in others if name not in of_labels]
    about_splits = [name for name in columns if name == "split" or name in rest]
    rows.splits, split_notes = ([split] * len(records), []) if split else splits_of(path, about_splits, records)
    if "split" not in columns and not any(rows.splits):
        splits, by_folders = splits_of_folders(path, rows.texts)
        rows.splits, split_notes = splits or rows.splits, split_notes + by_folders
    if labels.several:
        rows.sets = [tuple(label_of(name, path, line) for name in labels.by_line[line]) for line in rows.lines]
    else:
        rows.labels = [label_of(text, path, line) for text, line in zip(texts, rows.lines, strict=True)]
        rows.written = set(zip(rows.splits, texts, strict=True))
    if label is None:
        pairs = [(name, text) for name, text in zip(columns, header, strict=True) if name in of_labels]
        rows.names = {label_of(name, path, 1): label_of(text, path, 1) for name, text in pairs}
    if grouping in columns:
        rows.groups = [cells[grouping].strip() for _, cells in records]
    else:
        # A column such as `patient` with repeated values suggests groups, which are offered and not applied.
        values = {name: {cells[name].strip() for _, cells in records} for name in rest if BELONGS.fullmatch(name)}
        rows.offered = tuple(name for name, distinct in values.items() if 1 < len(distinct) < len(records))
    split_notes += read_provenances(rows, [cells.get("provenance", "").strip() for _, cells in records])
    notes = ["" if image == "path" else f"path is read from column {image!r}", labels.note]
    notes = [f"{path.name}: {note}" for note in notes if note]
    rows.notes = [*notes, *missing_note(path, rows.labels), *split_notes]
    return rows


def _no_column(path: Path, columns: list[str], role: str) -> UserError:
    """The error for a file in which no column holds the paths or the labels."""
    if not any(columns):
        return UserError(
            f"{path}: has no columns; write `path,label` on the first line, and a line for each image below"
        )
    if any("://" in column or column in MANIFESTS for column in columns):
        return UserError(f"{path}:1: a manifest for a cloud service, without a column of paths: {MANIFEST}")
    if pixels := pixel_columns(columns):
        return UserError(
            f"{path}:1: the columns {columns[pixels[0]]} to {columns[pixels[-1]]} hold pixels, not paths of images; "
            "they are read from a CSV with a column label, or pass arrays to linnaeus.sklearn.ImageClassifier"
        )
    return UserError(
        f"{path}:1: no column {role!r}, only {listed(columns)}; the first line must name path, label [, split]: rename "
        "the columns that hold them"
    )


def _records(path: Path) -> tuple[list[str], list[Row]]:
    """The header, and the rows that are not blank, by columns in lower case.

    Spreadsheets may announce the separator: `sep=;`.
    """
    if path.suffix.lower() == ".jsonl":
        return json_records(path)
    text, first = read_text(path), 1
    head = text.split("\n", 1)[0].strip()
    if announced := re.fullmatch(r'"?sep=(.)"?', head, re.IGNORECASE):
        text, first = text.partition("\n")[2], 2
        delimiter = announced[1]
    else:
        # Spreadsheets write ; where the comma is the decimal point.
        delimiter = "\t" if path.suffix.lower() == ".tsv" and "\t" in head else max(",;\t|", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    records = []
    try:
        header = [name.strip() for name in next(reader, [])]
        columns = [name.lower() for name in header]
        # Linnaeus protects the cells of its files from spreadsheets; other files are taken as they are.
        ours = _is_split_of_run(path, columns) or tuple(columns) in (LABELS_CSV, LABELS_TO_TRAIN)
        content = plain_cell if ours else str
        for row in reader:
            line = reader.line_num + first - 1
            # Empty cells at the end of a row come from spreadsheets and are harmless.
            if any(cell.strip() for cell in row[len(columns) :]):
                raise UserError(
                    f"{path}:{line}: {len(row)} cells, but {len(columns)} columns; put quotes around a cell that "
                    f"contains {delimiter!r}"
                )
            if any(cell.strip() for cell in row):
                blanks = [""] * (len(columns) - len(row))
                records.append((line, dict(zip(columns, map(content, [*row, *blanks]), strict=False))))
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num + first - 1}: {error}; correct the line") from None
    return header, records


def _is_split_of_run(path: Path, columns: list[str]) -> bool:
    """Whether `write_split` wrote the file, whose quote marks before formulas are not part of the cells.

    In a file of the user they are: a class may be named `'=a`.
    """
    first, rest = columns[:3], columns[3:]
    if first not in (["path", "label", "split"], ["path", "labels", "split"]):
        return False
    if rest != [name for name in ("group", "content") if name in rest]:
        return False
    return "content" in rest or path.name == SPLIT_FILE


def _refuse_blank(rows: Rows, role: str, texts: Sequence[str]) -> None:
    """Raise UserError for rows that lack a path or a label; `texts` are the cells of the column."""
    lines = [line for line, text in zip(rows.lines, texts, strict=False) if not text.strip()]
    if lines:
        others = ", ".join(map(str, lines[1:6])) + (" …" if lines[6:] else "")
        more = f", nor in {len(lines) - 1} more ({others})" if lines[1:] else ""
        raise UserError(f"{rows.file}:{lines[0]}: no {role}{more}; write one, or remove the line")
