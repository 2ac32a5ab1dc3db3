"""The decoded images of a split: one function decodes them, leaves out the unreadable ones and says why."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnaeus.cache import Cache
from linnaeus.data import tree
from linnaeus.data.background import Progress
from linnaeus.data.batches import Rows, Subset
from linnaeus.data.images.decode import RowSpec, UnreadableError
from linnaeus.data.table import Table
from linnaeus.errors import DiskError, UserError
from linnaeus.stores.activations import content_key
from linnaeus.stores.decoding import ImageSource
from linnaeus.stores.pixels import build_pixels
from linnaeus.stores.pixelstore import PixelStore, StreamedRows, readable
from linnaeus.text import such_as


@dataclass(frozen=True)
class EarlierRows:
    """Images of another run, whose stored activations may be reused."""

    rows: Rows
    positions: np.ndarray  # (n,) int64: where each wanted image is among `rows`, or -1
    exact: bool = False  # whether activations may be reused only if computing them again would give the same bits
    # Number of views -> the mark of the earlier store, if its own rows were reused from another.
    marks: Mapping[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        """Number of wanted images that the other run does not have."""
        return int((self.positions < 0).sum())

    @property
    def mark(self) -> str:
        """Part of the key of a store of views whose rows were reused: they are drawn by the number of an image in
        an earlier run, which the images of this run do not tell."""
        return content_key(self.rows) + hashlib.sha256(self.positions.tobytes()).hexdigest()

    def repeated(self, views: int) -> EarlierRows:
        """The same for `views` rows of each image, one image after the other."""
        rows = Subset(self.rows, np.repeat(np.arange(len(self.rows)), views))
        first = np.repeat(self.positions, views) * views
        positions = np.where(first < 0, -1, first + np.tile(np.arange(views), len(self.positions)))
        return EarlierRows(rows, positions, self.exact, self.marks)


@dataclass
class Samples:
    """The images of one split, decoded, with their labels."""

    rows: Rows
    labels: np.ndarray
    """(n,) int64"""
    groups: np.ndarray | None = None
    """(n,) int64: images with the same number belong together; None where each image is its own group."""
    folds: np.ndarray | None = None
    """As `groups`, and altered copies belong together too: what cross-validation must not separate."""
    accepted: np.ndarray | None = None
    """(n,) bool: whether a classifier gave the label. None unless `linnaeus label`, which does not ask for images at
    random, has written the labels."""
    earlier: EarlierRows | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def kept(self, indices: np.ndarray) -> np.ndarray:
        """The table indices of these samples, given those of the whole split; unreadable images are missing."""
        return indices[self.rows.positions] if isinstance(self.rows, Subset) else indices


def stored_row(table: Table, samples: Mapping[str, Samples], i: int) -> np.ndarray | None:
    """The decoded row (h, w, C) uint8 of image i of a table; None if it is in no split or cannot be read."""
    part = samples.get(str(table.split[i]))
    if part is None:
        return None
    kept = part.kept(table.where(str(table.split[i])))
    position = int(np.searchsorted(kept, i))
    if position == len(kept) or kept[position] != i:
        return None
    try:
        rows, shapes = part.rows.gather(np.array([position]))
    except UnreadableError:  # it changed since it was checked
        return None
    height, width = shapes[0]
    return rows[0, :height, :width]


class NoneReadableError(UserError):
    """Not a single image of a split can be read."""


def _has_entries(folder: Path) -> bool:
    """Whether a folder is there and not empty, as the place of a disk is that was disconnected."""
    try:
        return bool(tree.names(folder))
    except OSError:
        return False


@dataclass(frozen=True)
class DecodedSplit:
    """The images of a split, decoded once."""

    store: PixelStore | StreamedRows  # all images of the split; the unreadable ones have no pixels
    readable: np.ndarray  # (k,) int64: the rows of the store that could be read, ascending
    indices: np.ndarray  # (k,) int64: their indices in the table
    left_out: list[tuple[str, str]]  # (sample id, reason) of the unreadable images

    @property
    def rows(self) -> Rows:
        """The readable images."""
        return Subset(self.store, self.readable) if self.left_out else self.store


def decode_split(
    table: Table,
    indices: np.ndarray,
    spec: RowSpec,
    cache: Cache | None,
    *,
    kind: str = "images",
    progress: Progress | None = None,
    images: ImageSource | None = None,
) -> DecodedSplit:
    """Decode the images `indices` of a table into a store of the cache, or find them there.

    `kind` names the images in the message ("valid images"). `images` reads them; by default the table does.
    Raises NoneReadableError if no image can be read, and DiskError if the folder of the images has disappeared.
    """
    store = build_pixels(table if images is None else images, indices, spec, cache=cache, progress=progress)
    kept = readable(store)
    left_out = [(table.sample_id(int(indices[row])), reason) for row, reason in sorted(store.failed.items())]
    if left_out and table.kind == "folder" and not _has_entries(Path(table.source)):
        raise DiskError(
            f"{table.source}: disappeared while its images were read ({len(left_out):,} are missing); connect the disk "
            "again, then run the command again"
        )
    if not len(kept):
        example = such_as(len(left_out), ": ".join(left_out[0])) if left_out else ""
        raise NoneReadableError(
            f"{table.source}: none of the {len(indices)} {kind} can be read{example}; `linnaeus check` lists all"
        )
    return DecodedSplit(store, kept, indices[kept], left_out)
