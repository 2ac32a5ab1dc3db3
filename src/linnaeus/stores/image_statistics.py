"""Statistics of every image, about a kilobyte each: the basis of all checks.

A run computes them of the images that it decodes for its pixel store; a check decodes each image once and discards it.
One row of `STATISTICS` is kept in the cache, so that a second check or run opens only new and changed images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import SpooledTemporaryFile
from threading import Lock
from typing import Any

import numpy as np
from numpy.lib import format

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.data.background import Progress, ordered_map
from linnaeus.data.images.decode import DECODE_VERSION, RowSpec, UnreadableError
from linnaeus.data.images.pixel_statistics import (
    MULTIPLE,
    SHORT,
    STATISTICS,
    file_statistics,
    page_count,
    pixel_statistics,
    statistics_of,
)
from linnaeus.data.images.resize import UprightImage
from linnaeus.data.table import Table
from linnaeus.device import available_cores
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.pixels import lookup

VERSION = 7
CHUNK = 4096  # rows in memory at once, 5 MB
ROWS, FAILED = "statistics.npy", "failed.json"

IN_FILE = ("gray", "windows", "turned")
"""Columns that are read from the file where they are needed: 1,472 of the 1,543 bytes of a row."""
IN_MEMORY = np.dtype([(name, STATISTICS[name]) for name in STATISTICS.names or () if name not in IN_FILE])
"""A row without the columns IN_FILE."""


@dataclass(frozen=True)
class ReadFailure:
    """Why an image could not be read."""

    kind: str  # as in UnreadableError: truncated, empty, too-large or unreadable
    reason: str


class StatisticsFile:
    """Rows in a file. They are mapped for each access only, because pages once read count as memory until unmapped.

    The file stays open, so that it can still be read after its removal from the cache.
    """

    def __init__(self, path: Path):
        """Raises OSError or ValueError if the file does not hold rows of `STATISTICS`."""
        mapped = np.load(path, mmap_mode="r")
        if mapped.dtype != STATISTICS or mapped.ndim != 1:
            raise ValueError(f"{path}: {mapped.dtype}")
        self.length, self.offset = len(mapped), getattr(mapped, "offset", 0)
        self.file = path.open("rb")

    def map(self) -> np.ndarray:
        """(n,) of STATISTICS, memory-mapped."""
        if not self.length:
            return np.zeros(0, STATISTICS)
        return np.memmap(self.file, STATISTICS, "r", self.offset, (self.length,))

    def load(self) -> np.ndarray:
        """(n,) of IN_MEMORY."""
        rows = np.empty(self.length, IN_MEMORY)
        for first in range(0, self.length, CHUNK):
            rows[first : first + CHUNK] = self.map()[first : first + CHUNK][list(IN_MEMORY.names or ())]
        return rows

    def read(self, name: str, samples: np.ndarray, part: Any) -> np.ndarray:
        """Column `name` of the rows `samples` (k,), indexed by `part`. Reads a chunk at a time."""
        starts = range(0, max(1, len(samples)), CHUNK)
        return np.concatenate([self.map()[name][part][samples[first : first + CHUNK]] for first in starts])


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the n images of a table."""

    rows: np.ndarray  # (n,) of STATISTICS, or of IN_MEMORY if the rest is in `file`
    failed: Mapping[int, ReadFailure]  # sample -> why it could not be read
    file: StatisticsFile | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def full_rows(self) -> np.ndarray:
        """(n,) of STATISTICS, memory-mapped if they are in a file."""
        return self.rows if self.file is None else self.file.map()

    def thumbnails(self, samples: np.ndarray) -> np.ndarray:
        """Samples (k,) -> (k, SIDE, SIDE) uint8."""
        return self.full_rows()["gray"][samples]

    def hashes(self, name: str, samples: np.ndarray, part: Any = ()) -> np.ndarray:
        """Samples (k,) -> their `windows` or `turned` (k, hashes, 2) uint64, or the `part` of it, as an index."""
        return self.rows[name][part][samples] if self.file is None else self.file.read(name, samples, part)

    @property
    def readable(self) -> np.ndarray:
        """(k,) int64: the samples that could be read."""
        return np.flatnonzero(self.rows["height"] > 0)


def compute_statistics(table: Table, *, cache: Cache | None, progress: Progress | None = None) -> ImageStatistics:
    """Statistics of every image of `table`, as far as known from the cache. Raises UserError if the disk is full."""
    return StatisticsBuilder(table, cache).finish(progress)


class StatisticsBuilder:
    """Collects the statistics of the images of a table.

    Those in the cache are taken from there, and `observe` computes them of images that are decoded for a pixel store
    anyway. `finish` decodes the others. Only chunks of the rows are in memory, unless there is no cache.
    """

    def __init__(self, table: Table, cache: Cache | None):
        self._cache = cache
        self._decoding = Decoding(table, np.arange(len(table)), RowSpec(SHORT), available_cores(), None)
        self._signatures = self._decoding.signatures
        key = hashlib.sha256(f"{VERSION} {DECODE_VERSION}".encode() + self._signatures.tobytes()).hexdigest()[:32]
        self._name = f"statistics-{key}"
        self._known = None if cache is None else self._stored(cache) or _most_similar(cache, self._signatures)
        self._place = np.full(len(table), -1)
        if self._known is not None:
            self._place = lookup(self._known.rows["signature"], self._signatures)
        folder = None if cache is None else str(cache.root)
        if cache is not None:
            with suppress(OSError):  # `finish` says where the cache cannot be written
                cache.root.mkdir(parents=True, exist_ok=True)
        self._observed = SpooledTemporaryFile(CHUNK * STATISTICS.itemsize, dir=folder)  # noqa: SIM115
        self._has_observed = np.zeros(len(table), bool)
        self._lock = Lock()

    def observe(self, i: int, image: UprightImage) -> None:
        """Compute the statistics of image i of the table, unless they are known; for `HashedImages`."""
        if self._place[i] >= 0:
            return
        row = statistics_of(image)
        if image.format in MULTIPLE:
            source = self._decoding.source(i)
            assert not isinstance(source, np.ndarray), "an array has no format"
            row["pages"] = page_count(source, image.format)
        with self._lock, suppress(OSError):  # where the disk is full, `finish` says so
            self._observed.seek(i * STATISTICS.itemsize)
            self._observed.write(row.tobytes())
            self._observed.flush()
            self._has_observed[i] = True

    def finish(self, progress: Progress | None = None) -> ImageStatistics:
        """The statistics of all images. Raises UserError if the disk is full."""
        cache = self._cache
        if cache is None:
            return self._in_memory(progress)
        if self._known is not None and self._is_complete(self._known):
            return self._known
        with cache.lock(self._name):
            stored = self._stored(cache)  # another process may have computed them meanwhile
            if stored is not None and self._is_complete(stored):
                return stored
            try:
                cache.room(self._name, len(self._signatures) * STATISTICS.itemsize)
            except OverBudgetError:
                return self._in_memory(progress)  # the next check computes them again
            with cache.building(self._name) as folder:
                self._write(folder, progress)
                form = ["statistics", VERSION, DECODE_VERSION]
                cache.commit(self._name, {"form": form, "rows": len(self._signatures)})
            # The stored copy is preferred: its thumbnails do not occupy memory.
            return self._stored(cache) or self._in_memory(progress)

    def _stored(self, cache: Cache) -> ImageStatistics | None:
        entry = cache.find(self._name)
        return None if entry is None else _read(entry.path)

    def _is_complete(self, statistics: ImageStatistics) -> bool:
        """Whether they are of these images, and no image failed for a reason that may pass."""
        return bool(np.array_equal(statistics.rows["signature"], self._signatures))

    def _in_memory(self, progress: Progress | None) -> ImageStatistics:
        failed: dict[int, ReadFailure] = {}
        return ImageStatistics(np.array(list(self._rows(failed, progress)), STATISTICS), failed)

    def _write(self, folder: Path, progress: Progress | None) -> None:
        """Write the files of an entry of the cache, chunk by chunk."""
        failed: dict[int, ReadFailure] = {}
        rows = self._rows(failed, progress)
        header = {"descr": format.dtype_to_descr(STATISTICS), "fortran_order": False, "shape": self._signatures.shape}
        with (folder / ROWS).open("wb") as file:
            format.write_array_header_1_0(file, header)
            while chunk := b"".join(row.tobytes() for row in islice(rows, CHUNK)):
                file.write(chunk)
        reasons = {i: [failure.kind, failure.reason] for i, failure in failed.items()}
        (folder / FAILED).write_text(json.dumps(reasons), encoding="utf-8")

    def _rows(self, failed: dict[int, ReadFailure], progress: Progress | None) -> Iterator[np.ndarray]:
        """The row of each image, of shape (); those that could not be read are added to `failed`."""
        for k, result in enumerate(ordered_map(self._row, 0, len(self._signatures), self._decoding.threads, progress)):
            row = np.zeros((), STATISTICS)
            if isinstance(result, np.ndarray):
                row[()] = result
            else:
                failed[k] = result if isinstance(result, ReadFailure) else ReadFailure(result.kind, result.reason)
            # A failure that may pass, such as a missing file or a lack of memory, must not be remembered.
            temporary = isinstance(result, UnreadableError) and result.passing
            row["signature"] = 0 if temporary or self._decoding.changed(k) else self._signatures[k]
            yield row

    def _row(self, k: int) -> np.ndarray | ReadFailure | UnreadableError:
        place = int(self._place[k])
        if self._known is not None and place >= 0:
            return self._known.failed.get(place) or np.array(self._known.full_rows()[place])
        if self._has_observed[k]:
            with self._lock:
                self._observed.seek(k * STATISTICS.itemsize)
                return np.array(np.frombuffer(self._observed.read(STATISTICS.itemsize), STATISTICS)[0])
        source = self._decoding.source(k)
        try:
            return pixel_statistics(source) if isinstance(source, np.ndarray) else file_statistics(source)
        except UnreadableError as error:
            return error.with_traceback(None)  # the traceback would keep the image in memory


def _most_similar(cache: Cache, signatures: np.ndarray) -> ImageStatistics | None:
    """The cached statistics of another table that share the most images with this one."""
    best, most = None, 0
    for entry in cache.entries():
        if entry.about.get("form") != ["statistics", VERSION, DECODE_VERSION] or cache.find(entry.name) is None:
            continue
        known = _read(entry.path)
        count = 0 if known is None else int((lookup(known.rows["signature"], signatures) >= 0).sum())
        if count > most:
            best, most = known, count
    return best


def _read(folder: Path) -> ImageStatistics | None:
    """Statistics from a folder of the cache; None if it was removed meanwhile or is damaged."""
    try:
        file = StatisticsFile(folder / ROWS)
        failed = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return ImageStatistics(file.load(), {int(i): ReadFailure(*values) for i, values in failed.items()}, file)
    except (OSError, ValueError):
        return None
