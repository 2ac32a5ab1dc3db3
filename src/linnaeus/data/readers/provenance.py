"""Who gave the labels of a CSV that `linnaeus label` has written: people, or the classifier that was learning."""

from __future__ import annotations

import numpy as np

from linnaeus.data.readers.listfile import Rows

PROVENANCES = HUMAN, ACCEPTED, IMPORTED = "human", "accepted", "imported"
"""Who gave a label: a person who looked at the image, a person who accepted a batch of the model, or a given CSV."""


def accepted(parts: list[Rows]) -> np.ndarray | None:
    """(n,) bool: whether a classifier gave the label; None unless `linnaeus label` has written the labels."""
    if not any(part.accepted for part in parts):
        return None
    return np.array([flag for part in parts for flag in part.accepted or [False] * len(part.texts)], bool)


def read_provenances(rows: Rows, provenances: list[str]) -> list[str]:
    """Note in `rows` which labels were accepted from a classifier, and return notes; none for other files.

    Accepted labels agree with whatever learns from the same images, so that these images train.
    """
    found = set(provenances)
    if not found & {HUMAN, ACCEPTED} or not found <= {*PROVENANCES, ""}:
        return []
    rows.accepted = [provenance == ACCEPTED for provenance in provenances]
    name, measured = rows.file.name, {"valid", "test"} & set(rows.splits)
    notes = [
        f"{name}: `linnaeus label` does not ask for images at random, unless with --order random: figures on these "
        "images are not those of new ones; Finish on its page validates on a random sample"
    ]
    if n := sum(rows.accepted):
        rows.splits = ["train" if flag else part for part, flag in zip(rows.splits, rows.accepted, strict=True)]
        notes.append(
            f"{name}: {n:,} of {len(provenances):,} labels were accepted from a classifier: these images train, and no "
            "figure counts them"
        )
    return notes[1:] if measured else notes
