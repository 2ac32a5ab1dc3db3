"""Membership: which images a model was trained, chosen and tested on, recognized by content or, failing that, by path.

A model file holds the content hashes of the images of its run, by split: 8 bytes an image (1,330 images 11 kB, 1.3
million 10 MB), in the entry `contents` of its `data`.
"""

from __future__ import annotations

import binascii
import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import Cache, default_cache
from linnaeus.data.images.content import HASH, UNKNOWN, hashes_from_text, hashes_to_text
from linnaeus.data.table import SPLITS, Table
from linnaeus.errors import UserError
from linnaeus.modelfile.safetensors import MODEL, ModelFile, read_header
from linnaeus.stores.contents import HashedImages
from linnaeus.text import plain_cell

SPLIT = "split.csv"  # of a run folder
NONE = np.zeros(0, np.uint64)
EARLIER = "initial weights"


@dataclass(frozen=True, eq=False)
class Membership:
    """The content hashes of the images of a run."""

    hashes: Mapping[str, np.ndarray]  # split -> (k,) uint64, ascending
    # (k,) uint64, ascending: the images that the initial weights were trained on.
    earlier: np.ndarray = field(default_factory=lambda: NONE)

    @classmethod
    def of(cls, contents: np.ndarray, splits: np.ndarray, earlier: np.ndarray = NONE) -> Membership:
        """From the content hash (n,) and the split (n,) of every image."""
        known = contents != UNKNOWN
        return cls({split: np.unique(contents[known & (splits == split)]) for split in SPLITS}, earlier)

    @property
    def trained_before(self) -> bool:
        """Whether the initial weights were trained on some of the training images."""
        return bool(np.isin(self.hashes["train"], self.earlier).any())

    def to_dict(self) -> dict[str, str]:
        """For the model file: by split, the 48-bit hashes in ascending order, in base64."""
        parts = dict(self.hashes) | ({EARLIER: self.earlier} if len(self.earlier) else {})
        return {"hash": HASH} | {part: hashes_to_text(hashes) for part, hashes in parts.items()}

    @classmethod
    def of_model(cls, about: ModelFile, path: Path) -> Membership | None:
        """Of the run of the model file `path`; as `from_dict`."""
        return cls.from_dict(about.data.get("contents"), path)

    @classmethod
    def from_dict(cls, values: Any, path: Path) -> Membership | None:
        """The inverse; None where there is nothing, or another kind of hash. Raises UserError if it is damaged."""
        if not isinstance(values, dict) or values.get("hash") != HASH:
            return None
        parts = (*SPLITS, *([EARLIER] if EARLIER in values else []))
        try:
            hashes = {part: hashes_from_text(values[part]) for part in parts}
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise UserError(
                f"{path}: its record of the images of its run is damaged ({error}); get a fresh copy"
            ) from None
        earlier = hashes.pop(EARLIER, NONE)
        return cls(hashes, earlier)

    def split_of(self, contents: np.ndarray, expected: np.ndarray | None = None) -> np.ndarray:
        """(n,) "<U5": the split that each content hash was in, "" for none.

        An image that was in several counts as seen in training, unless it was also in its `expected` split. One that
        the initial weights were trained on always does.
        """
        splits = np.full(len(contents), "", "<U5")
        within = {split: np.isin(contents, hashes) & (contents != UNKNOWN) for split, hashes in self.hashes.items()}
        for split in reversed(SPLITS):
            splits[within[split]] = split
        for split in SPLITS if expected is not None else ():
            splits[within[split] & (expected == split)] = split
        splits[np.isin(contents, self.earlier)] = "train"
        return splits


def images_of_weights(weights: str | Path, *, with_head: bool) -> np.ndarray:
    """(k,) uint64, ascending: the content hashes of the images that initial weights were trained on.

    They are known of a run folder and of a model file. A head that was solved has learned from the images of its run,
    the backbone below it has not: `with_head` says whether the head counts.
    """
    path = Path(weights).expanduser()
    file = path / MODEL if path.is_dir() else path
    try:
        about = read_header(file)
    except UserError:  # weights of a library, or of the hub
        return NONE
    known = Membership.of_model(about, file)
    if known is None:
        return NONE
    phases = about.recipe.get("phase") or [{}]
    if not with_head and all(phase.get("head") == "auto" for phase in phases):
        return known.earlier
    return np.union1d(known.hashes["train"], known.earlier)


def held_in(contents: np.ndarray, table: Table) -> np.ndarray:
    """(n,) bool: whether each image of the table has one of these content hashes (k,)."""
    if not len(contents):
        return np.zeros(len(table), bool)
    hashes = HashedImages(table, default_cache()).hashes(np.arange(len(table)))
    return np.isin(hashes, contents) & (hashes != UNKNOWN)


class KnownImages:
    """The images of a source, and which of them a model knows from its training."""

    table: Table
    """As the source itself splits it; where it is the unchanged source of the training, as the training split it."""
    own: np.ndarray
    """(n,) "<U5": the splits of the source itself."""
    basis: str
    """What images are recognized by: "content", "split" (the unchanged source of a model that holds no hashes), "paths"
    (those of split.csv beside such a model), or "" where they cannot be recognized."""

    def __init__(self, table: Table, again: Table | None, membership: Membership | None, folder: Path, cache: Cache):
        """`again` is the table split as for the training, if the source is unchanged by all that shows from outside;
        `folder` that of the model file."""
        self.own, self.table = table.split, again or table
        self._expected = None if again is None else again.split
        self._membership, self._hashed = membership, HashedImages(table, cache)
        self._by_path: np.ndarray | None = None
        if membership is not None:
            self.basis = "content"
        elif again is not None:
            self.basis = "split"
        else:
            self._by_path = _splits_by_path(table, folder / SPLIT)
            self.basis = "" if self._by_path is None else "paths"

    def split_of(self, indices: np.ndarray) -> np.ndarray:
        """(k,) "<U5": the split of the training that each of these images was in; "" for none, or unknown."""
        if self._membership is not None:
            expected = None if self._expected is None else self._expected[indices]
            return self._membership.split_of(self._hashed.hashes(indices), expected)
        known = self._by_path if self._expected is None else self._expected
        return np.full(len(indices), "", "<U5") if known is None else known[indices]

    def contents(self, indices: np.ndarray) -> np.ndarray:
        """(k,) uint64: the content hashes of these images; UNKNOWN if images are not recognized by content."""
        if self._membership is None:
            return np.full(len(indices), UNKNOWN, np.uint64)
        return self._hashed.hashes(indices)

    def all(self) -> np.ndarray:
        """The same for all images of the table."""
        return self.split_of(np.arange(len(self.table)))


def _rows_of(file: Path) -> list[tuple[str, str]]:
    """(path or id, split) of each row of a split.csv."""
    with file.open(encoding="utf-8", errors="surrogateescape", newline="") as rows:
        return [(plain_cell(row.get("path") or ""), row.get("split") or "") for row in csv.DictReader(rows)]


def _splits_by_path(table: Table, file: Path) -> np.ndarray | None:
    """(n,) "<U5": the split of each image by its path or id in a run's split.csv; None where it names none of them."""
    if not file.is_file():
        return None
    named = _rows_of(file)
    folder = os.path.abspath(file.parent)  # noqa: PTH100 - as the table's own paths are made
    known = dict(named) if table.paths is None else {os.path.join(folder, path): split for path, split in named}  # noqa: PTH118
    names = [table.sample_id(i) for i in range(len(table))] if table.paths is None else table.paths
    splits = np.array([known.get(name, "") for name in names], "<U5")
    return splits if (splits != "").any() else None
