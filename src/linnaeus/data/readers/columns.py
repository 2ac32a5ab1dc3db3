"""Recognize the columns of a CSV by their names and values: path, label, split, or one column per class."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from linnaeus.console import counted
from linnaeus.data.class_names import listed
from linnaeus.data.table import SPLIT_NAMES
from linnaeus.errors import UserError, did_you_mean

PATH = ("filepath", "file", "filename", "image", "img", "imagepath", "imgpath", "imagename", "imagefile", "images")
IDENTIFIER = ("imageid", "id", "imgid", "imageindex", "name")  # names the image only where no other column does
LABELS = (
    "findinglabels",
    "labelnames",
    "tags",
    "classid",
    "labelid",
    "categoryid",
    "classindex",
)  # only where no other column names labels
LABEL = ("class", "classname", "labels", "labelname", "category", "target", "species", "breed", "diagnosis", "choice")
SPLIT = ("set", "subset", "partition", "phase", "usage", "fold", "kfold", "datasplit", "dataset", "stage", "mode")
FLAGS = {
    re.sub("[^a-z]", "", prefix + word): split
    for split, words in {
        "train": ("train", "training", "trainingimage"),
        "valid": ("valid", "val", "validation", "eval", "evaluation"),
        "test": ("test", "testing", "holdout", "heldout"),
    }.items()
    for word in words
    for prefix in ("", "is_")
}
BOOLEANS = dict.fromkeys(("true", "t", "yes", "y", "1", "1.0"), True)
BOOLEANS |= dict.fromkeys(("false", "f", "no", "n", "0", "0.0", ""), False)
MISSING = ("nan", "NaN", "NAN", "<NA>", "N/A", "#N/A", "NULL", "null", "None")
"""What pandas, R, spreadsheets and databases write for a missing value. `none` and `NA` are names of classes."""
WORDS = SPLIT_NAMES | {"dev": "valid", "publictest": "valid", "privatetest": "test"}


@dataclass(frozen=True)
class LabelFormat:
    """What a recipe says of the labels in a CSV."""

    task: str | None = None  # `single-label` or `multi-label`; None: as the cells show
    separator: str | None = None  # between the labels of a cell; None: as the cells show


AS_SHOWN = LabelFormat()


Row = tuple[int, dict[str, str]]  # the line number, from 1, and the cells by column


def key(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def boolean(cell: str) -> bool | None:
    """Whether a cell says yes or no; None if it says something else."""
    return BOOLEANS.get(cell.strip().lower())


def refuse_repeated(file: Path, columns: Sequence[str]) -> None:
    """Raise UserError if two columns have the same name, since one would hide the other."""
    repeated = [name for name, n in Counter(columns).items() if n > 1 and name]
    if repeated:
        places = [k for k, name in enumerate(columns, 1) if name == repeated[0]]
        raise UserError(
            f"{file}:1: columns {' and '.join(map(str, places))} are both called {repeated[0]!r}; rename or remove one"
        )


def find_column(file: Path, columns: Sequence[str], role: str) -> str | None:
    """The column `path` or `label`, under this or a usual other name; None if there is none.

    Raises UserError if several columns may be meant.
    """
    if role in columns:
        return role
    for known in (PATH, IDENTIFIER) if role == "path" else (LABEL, LABELS):
        candidates = [name for name in columns if key(name) in known]
        if len(candidates) > 1:
            raise UserError(f"{file}:1: no column {role!r}; rename the right one of {listed(candidates)} to {role}")
        if candidates:
            return candidates[0]
    return None


def one_hot(
    file: Path, columns: Sequence[str], rows: Sequence[Row], written: Mapping[str, str]
) -> dict[int, str] | None:
    """Line -> column, where each of two or more `columns` says by 1 or 0 whether an image is of its class.

    Other columns, such as a camera, may stand beside them if each row then has exactly one 1. None if the columns hold
    anything else. Raises UserError for a row with several classes or none, if there are no other columns.
    """
    flags = [
        name
        for name in columns
        if key(name) not in FLAGS and all(boolean(cells[name]) is not None for _, cells in rows)
    ]
    if len(flags) < 2 or not rows:
        return None
    given = {line: [name for name in flags if boolean(cells[name])] for line, cells in rows}
    if len(flags) < len(columns) and any(len(names) != 1 for names in given.values()):
        return None
    for line, names in given.items():
        if len(names) != 1:
            classes = f"classes {listed([written[name] for name in names])}" if names else "no class"
            raise UserError(
                f"{file}:{line}: the columns {listed([written[name] for name in flags])} give this image {classes}; "
                "exactly one class per image is supported: correct the row, write a column label with the class to "
                "learn, or learn several labels per image with --set data.task=multi-label"
            )
    return {line: names[0] for line, names in given.items()}


def splits_of(file: Path, columns: Sequence[str], rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The split of each row ("" where the file states none), and notes on the column that states it.

    The column is `split`, or one whose values are names of splits, or flags such as `is_valid`. A column that is named
    like a split but holds something else, such as the number of a fold, is not used, which a note says.
    """
    if "split" in columns:
        splits = [_word(file, line, cells["split"]) for line, cells in rows]
        without = splits.count("") if any(splits) else 0
        note = f"{file.name}: {without:,} of {counted(len(rows), 'row')} have no split: they train, or are drawn for a"
        return splits, [f"{note} split that no row has"] if without else []
    # An empty cell states nothing, so it does not speak against a column.
    values = {name: {cells[name].strip().lower() for _, cells in rows} - {""} for name in columns if name}
    flags = [name for name in values if key(name) in FLAGS and values[name] and values[name] <= BOOLEANS.keys()]
    named = [name for name in values if key(name) in SPLIT and any(key(value) in WORDS for value in values[name])]
    # The name alone is not enough: a column `set` may hold anything, so its values decide.
    named += [name for name in values if name not in named and len(values[name]) > 1 and _all_words(values[name])]
    if len(named) > 1 or (named and flags):
        raise UserError(
            f"{file}:1: columns {listed([*named, *flags])} may all hold the split; rename the right one to split"
        )
    if named:
        splits = [_word(file, line, cells[named[0]]) for line, cells in rows]
    elif flags:
        splits = [_flagged(file, line, {name: cells[name] for name in flags}) for line, cells in rows]
    else:
        # A column with a value of its own for every row is not a split, so it is not worth a note.
        words = {*SPLIT, *FLAGS}
        unused = [name for name in values if key(name) in words and 1 < len(values[name]) < max(3, len(rows))]
        return [""] * len(rows), [
            f"{file.name}: column {name!r} ({listed(sorted(values[name]))}) is not used; to split by it, add a column "
            "split with train, valid or test"
            for name in unused
        ]
    counts = ", ".join(f"{n} {split or 'without'}" for split, n in Counter(splits).items())
    return splits, [f"{file.name}: the split is that of column {listed(named or flags)}: {counts}"]


def missing_note(file: Path, labels: Sequence[str]) -> list[str]:
    """A note on labels that other programs write for a missing value; they are classes here."""
    found = Counter(label for label in labels if label in MISSING)
    return [
        f"{file.name}: label {name!r} of {counted(n, 'image')} is taken for a class; if it means that the label is "
        "missing, remove these rows"
        for name, n in found.items()
    ]


def _all_words(values: set[str]) -> bool:
    return all(key(value) in WORDS for value in values)


def _word(file: Path, line: int, cell: str) -> str:
    text = cell.strip()
    if text and key(text) not in WORDS:
        shown = repr(text[:120])
        raise UserError(
            f"{file}:{line}: split {shown} is none of train, valid, test{did_you_mean(key(text), WORDS)}; correct it"
        )
    return WORDS[key(text)] if text else ""


def _flagged(file: Path, line: int, cells: dict[str, str]) -> str:
    """The split of a row with flags; what no flag claims is train, or the first of test and valid without a flag."""
    flags = {FLAGS[key(name)]: boolean(cell) for name, cell in cells.items()}
    claims = [split for split, flag in flags.items() if flag]
    if len(claims) > 1:
        raise UserError(f"{file}:{line}: {listed(list(cells))} put this image into {listed(claims)}; correct the row")
    rest = next((split for split in ("train", "test", "valid") if split not in flags), "")
    return claims[0] if claims else rest
