"""Find rows of a list or CSV that repeat an image, and whole-number labels written as fractions (`1.0`)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np

from linnaeus.console import counted
from linnaeus.data.class_names import class_name
from linnaeus.data.readers.columns import MISSING
from linnaeus.data.table import Table

WHOLE = re.compile(r"(-?[0-9]{1,18})(\.0+)?")


def without_repeats(table: Table) -> Table:
    """Each image once: without the rows that list it again with the same labels in the same split; a note says so.

    Counted twice, an image would narrow the intervals of figures, and weigh twice in training.
    """
    assert table.paths is not None
    if len(set(table.paths)) == len(table):
        return table
    labels = [tuple(np.flatnonzero(row)) for row in table.labels] if table.several else table.labels.tolist()
    first: dict[tuple[object, ...], int] = {}
    for i, row in enumerate(zip(table.paths, labels, table.split.tolist(), strict=True)):
        first.setdefault(row, i)
    if len(first) == len(table):
        return table
    again = np.setdiff1d(np.arange(len(table)), [*first.values()])
    note = (
        f"{counted(len(again), 'row')} of {len(table):,} list an image again with the same label, such as "
        f"{table.sample_id(int(again[0]))!r}: each image counts once"
    )
    return table.select(np.array(sorted(first.values()), np.int64)).with_notes(note)


def with_swapped_labels(table: Table) -> Table:
    """The table, with a note on labels that stand for one folder in train and for another one in another split."""
    assert table.paths is not None
    if table.several:
        return table
    pairs: dict[str, set[tuple[int, str]]] = {}
    for path, label, split in zip(table.paths, table.labels.tolist(), table.split.tolist(), strict=True):
        pairs.setdefault(split, set()).add((label, class_name(os.path.basename(os.path.dirname(path)))))
    # Only where labels and folders correspond one to one, which tells that the folders are the classes.
    folders = {split: dict(found) for split, found in pairs.items() if _is_one_to_one(found)}
    learned = folders.get("train", {})
    notes = []
    for split in ("valid", "test"):
        other = folders.get(split, {})
        swapped = [k for k in other if other[k] != learned.get(k, other[k]) and other[k] in learned.values()]
        if swapped:
            k = swapped[0]
            notes.append(
                f"label {table.classes[k]!r} stands for folder {learned[k]!r} in train but for {other[k]!r} in "
                f"{split}: the labels of one split are wrong, and so are metrics on it"
            )
    return table.with_notes(*notes)


def _is_one_to_one(pairs: set[tuple[int, str]]) -> bool:
    return len({label for label, _ in pairs}) == len({folder for _, folder in pairs}) == len(pairs)


def whole_numbers(labels: Sequence[str]) -> tuple[list[str], list[str]]:
    """Labels such as `1.0` as `1`, where all of them are whole numbers, and a note; else the labels as they are.

    pandas writes a column of integers in this way if a value was missing once.
    """
    texts = {label: whole_number(label) for label in set(labels) if label not in MISSING}
    written = sorted(label for label, text in texts.items() if text not in (label, None))
    if not written or None in texts.values():
        return list(labels), []
    note = f"labels are whole numbers: {written[0]!r} is read as {texts[written[0]]!r}"
    return [texts.get(label) or label for label in labels], [note]


def whole_number(label: str) -> str | None:
    """`1` of `1.0` or `1`; None for other labels."""
    match = WHOLE.fullmatch(label)
    return None if match is None else match[1]
