"""Content hashes of the images of a table, computed while the images are read and kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.data.background import ordered_map
from linnaeus.data.images.content import HASH, UNKNOWN, content_hash
from linnaeus.data.images.decode import RowSpec, UnreadableError
from linnaeus.data.images.resize import UprightImage
from linnaeus.data.table import Table
from linnaeus.device import available_cores
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.pixels import lookup

CONTENTS = "contents.npy"
FORM = ["contents", HASH]
DTYPE = np.dtype([("signature", "<u8"), ("content", "<u8")])


class HashedImages:
    """The images of a table. Whoever decodes them through this object has their content hashed on the way.

    A file is hashed just before its decoder reads it, so that the disk is read once. The hashes of files that have not
    changed since (same path and version) come from the cache, and so do those of images whose pixels are stored.
    `observer(i, image)` sees image i of the table as it is decoded, as `ObservingSource` describes.
    """

    def __init__(self, table: Table, cache: Cache | None, observer: Callable[[int, UprightImage], None] | None = None):
        self._table, self._cache, self._observer = table, cache, observer
        self.paths, self.images, self.members = table.paths, table.images, table.members
        self._hashes = np.full(len(table), UNKNOWN, np.uint64)
        self._read = np.zeros(len(table), bool)
        self._signatures = np.zeros(len(table), np.uint64)
        """What a file, or a member of a shard, is known by without reading it; from before its content was hashed."""
        self._decoding = Decoding(table, np.arange(len(table)), RowSpec(1), 1, None)

    def image(self, i: int) -> str | bytes | np.ndarray:
        """Image i as the decoder takes it."""
        source = self._table.image(i)
        if self._hashes[i] == UNKNOWN:
            # First: a file that is changed meanwhile must not be known by its former content.
            self._signatures[i] = 0 if self._table.images is not None else self._decoding.signature(i)
            self._hashes[i] = content_hash(source)
            self._read[i] = True
        return source

    def observe(self, i: int, image: UprightImage) -> None:
        if self._observer is not None:
            self._observer(i, image)

    def hashes(self, indices: np.ndarray) -> np.ndarray:
        """(k,) uint64: the content hashes of these images, UNKNOWN where one cannot be read."""
        missing = indices[self._hashes[indices] == UNKNOWN]
        if self._table.images is not None:  # in memory already: the cache would only slow this down
            for i in missing.tolist():
                self.image(i)
            return self._hashes[indices]
        self._hashes[missing] = self._stored(missing)
        missing = missing[self._hashes[missing] == UNKNOWN]

        def read(k: int) -> None:
            with suppress(UnreadableError):
                self.image(int(missing[k]))

        for _ in ordered_map(read, 0, len(missing), available_cores()):
            pass
        if self._read[indices].any():
            self._store(indices)
        return self._hashes[indices]

    def changed(self, indices: np.ndarray, recorded: np.ndarray) -> np.ndarray:
        """Those of `indices` whose images have other hashes than `recorded` (k,) uint64, as far as both are known."""
        found = self.hashes(indices)
        return indices[(found != recorded) & (found != UNKNOWN) & (recorded != UNKNOWN)]

    def _stored(self, indices: np.ndarray) -> np.ndarray:
        """(k,) uint64: the hashes that the cache has of these images, else UNKNOWN."""
        contents = np.full(len(indices), UNKNOWN, np.uint64)
        signatures = np.array([self._decoding.signature(i) for i in indices.tolist()], np.uint64)
        self._signatures[indices] = signatures
        for entry in self._cache.entries() if self._cache is not None else ():
            unknown = np.flatnonzero(contents == UNKNOWN)
            if not len(unknown):
                break
            if entry.about.get("form") == FORM and self._cache is not None and self._cache.find(entry.name):
                with suppress(OSError, ValueError):  # removed meanwhile, or damaged
                    known = np.load(entry.path / CONTENTS)
                    place = lookup(known["signature"], signatures[unknown])
                    contents[unknown[place >= 0]] = known["content"][place[place >= 0]]
        return contents

    def _store(self, indices: np.ndarray) -> None:
        """Keep the hashes of these images in the cache, as far as it has room."""
        cache, known = self._cache, indices[(self._hashes[indices] != UNKNOWN) & (self._signatures[indices] != 0)]
        if cache is None or not len(known):
            return
        rows = np.empty(len(known), DTYPE)
        rows["signature"], rows["content"] = self._signatures[known], self._hashes[known]
        name = f"contents-{hashlib.sha256(rows.tobytes()).hexdigest()[:32]}"
        if cache.find(name) is not None:
            return
        with cache.lock(name), suppress(OverBudgetError), cache.building(name) as folder:
            cache.room(name, rows.nbytes)
            np.save(folder / CONTENTS, rows)
            cache.commit(name, {"form": FORM, "rows": len(rows)})


def with_copies(groups: np.ndarray | None, copies: np.ndarray) -> np.ndarray | None:
    """Groups (n,) int64 in which images with equal numbers of `copies` (n,) are together too; None if none are shared.

    A number of 0 (UNKNOWN) is no copy of others. `groups` None: each image is its own.
    """
    n = len(copies)
    alone = np.arange(n)
    merged = alone if groups is None else first_of_each(groups)
    same = np.where(copies == UNKNOWN, alone, first_of_each(copies))
    # Each pass takes the lowest number within the copies, then within the groups, until nothing changes.
    lowest, before = merged.copy(), np.full(n, -1)
    while not np.array_equal(lowest, before):
        before = lowest.copy()
        for key in (same, merged):
            smallest = np.full(n, n)
            np.minimum.at(smallest, key, lowest)
            lowest = smallest[key]
    return lowest if len(np.unique(lowest)) < n else None


def first_of_each(numbers: np.ndarray) -> np.ndarray:
    """(n,) int64: of each number the index where it occurs first."""
    _, first, number = np.unique(numbers, return_index=True, return_inverse=True)
    return first[number]
