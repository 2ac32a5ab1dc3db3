"""Notes on content of a source that is not used, or is used although its name suggests otherwise."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from linnaeus.console import counted
from linnaeus.data import tree
from linnaeus.data.class_names import listed
from linnaeus.data.readers.columns import find_column
from linnaeus.errors import UserError, visible
from linnaeus.text import such_as

TABLES = (".csv", ".tsv", ".jsonl")
MASK = re.compile(r"(.+?)[ _-]*(masks?|seg|segmentation|gt|ground[ _-]?truth|annotations?)(_?[0-9]+)?", re.IGNORECASE)
UNLABELED = re.compile("(no[ _-]?labels?|un[ _-]?label+ed|unsorted|unclassified|to[ _-]?sort)", re.IGNORECASE)


def holds_labels(path: Path) -> bool:
    """Whether the header of a table names images and labels."""
    return _names(path, "path", "label")


def names_images(path: Path) -> bool:
    """Whether the header of a table names images; labels may be one column for each class."""
    return _names(path, "path")


def _names(path: Path, *roles: str) -> bool:
    if path.suffix.lower() == ".jsonl":
        return True
    try:
        with tree.open_binary(path) as file:
            head = file.read(1 << 16).decode("utf-8-sig", "replace").partition("\n")[0].lower()
        columns = [name.strip().strip('"') for name in head.split(max(",;\t|", key=head.count))]
        return all(find_column(path, columns, role) for role in roles)
    except (OSError, UserError):
        return False


def unused_notes(root: str, loose: Sequence[str], folders: Sequence[str], parts: Iterable[str]) -> list[str]:
    """Notes on `loose` images outside of the class folders, `folders` beside the splits, and tables in `parts`."""
    notes = []
    if loose:
        first = visible(os.path.relpath(loose[0], root).replace(os.sep, "/"))
        verb = "is" if len(loose) == 1 else "are"
        notes.append(
            f"{counted(len(loose), 'image')} outside of the class folders {verb} not used{such_as(len(loose), first)}"
        )
    if folders:
        names = [visible(os.path.relpath(folder, root)) for folder in folders]
        notes.append(f"folders beside the splits are not used: {listed(names)}")
    for part in dict.fromkeys((root, *parts)):
        tables: list[str] = []
        with suppress(OSError):
            tables = sorted(name for name in tree.names(part) if name.lower().endswith(TABLES))
        notes += [
            f"{Path(part, name)} is not used, because the class folders give the labels; to use its labels or splits, "
            "give it as the source"
            for name in tables
            if holds_labels(Path(part, name))
        ]
    return notes


def doubtful_notes(contents: Iterable[tuple[str, Sequence[str]]]) -> list[str]:
    """Notes on images and classes, as (class, paths), whose names say that they are no images or no class."""
    masks, example, unlabeled = 0, "", []
    for name, images in contents:
        unlabeled += [name] if UNLABELED.fullmatch(name) else []
        stems = {os.path.splitext(path)[0] for path in images}
        for path in images:
            found = MASK.fullmatch(os.path.splitext(path)[0])
            if found is not None and found[1] in stems:
                masks, example = masks + 1, example or os.path.basename(path)
    notes = []
    if masks:
        verb = "is" if masks == 1 else "are"
        notes.append(
            f"{counted(masks, 'image')} of the class folders {verb} named like masks of others, such as "
            f"{visible(example)}; if they are masks, move them away"
        )
    if unlabeled:
        names = listed(list(dict.fromkeys(unlabeled)))
        notes.append(f"{names} is taken for a class; if its images have no label, move the folder away")
    return notes
