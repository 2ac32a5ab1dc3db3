"""Reading rows of images into batches: from a pixel store, or decoded on demand."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from linnaeus.cache import known_checksum
from linnaeus.data.images.decode import UnreadableError, load_row
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.rows import RowGuard, open_reader


class PixelStore:
    """Rows of uint8 images, flat in one array, memory-mapped or in memory."""

    data: np.ndarray
    """(bytes,) uint8"""
    offsets: np.ndarray
    """(n,) int64: the byte of `data` at which each row starts"""
    shapes: np.ndarray
    """(n, 2) int32: height and width; 0, 0 where the image cannot be read"""
    channels: int
    failed: dict[int, str]
    """row -> why its image cannot be read"""
    uniform: tuple[int, int] | None
    """height and width where all readable rows have the same; else None"""
    note: str = ""
    """A line for the user; empty where there is nothing to say"""

    def __init__(
        self,
        data: np.ndarray,
        offsets: np.ndarray,
        shapes: np.ndarray,
        channels: int,
        failed: dict[int, str] | None = None,
        path: Path | None = None,
        guard: RowGuard | None = None,
    ):
        self.data, self.offsets, self.shapes, self.channels = data, offsets, shapes, channels
        self.failed = failed or {}
        self.path, self.guard = path, guard
        self.uniform = _uniform_shape(shapes)
        self._reader = open_reader(path)

    @classmethod
    def from_arrays(cls, images: np.ndarray) -> PixelStore:
        """A store of images (n, H, W[, C]) uint8 that have the right size; a contiguous array is not copied."""
        assert images.dtype == np.uint8, images.dtype
        n, height, width = images.shape[:3]
        channels = images.shape[3] if images.ndim == 4 else 1
        offsets = np.arange(n, dtype=np.int64) * (height * width * channels)
        shapes = np.tile(np.array([[height, width]], np.int32), (n, 1))
        return cls(np.ascontiguousarray(images).reshape(-1), offsets, shapes, channels)

    def __len__(self) -> int:
        return len(self.offsets)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows of this store."""
        return int(self.shapes.prod(axis=1, dtype=np.int64).sum()) * self.channels

    def checksum(self) -> str:
        """A checksum of the content of all rows, in order, independent of where they are stored."""
        sizes = self.shapes.prod(axis=1, dtype=np.int64) * self.channels
        # If the rows are the whole file, in order, the cache knows the checksum already.
        is_whole_file = np.array_equal(self.offsets, np.cumsum(sizes) - sizes) and int(sizes.sum()) == len(self.data)
        crc32 = known_checksum(self.path) if is_whole_file and self.path is not None else None
        if crc32 is None:
            crc32 = 0
            for i in range(len(self)):
                crc32 = zlib.crc32(np.ascontiguousarray(self.read(i)).data, crc32)
        return f"{crc32:08x} {hashlib.sha256(self.shapes.astype('<i4').tobytes()).hexdigest()[:24]}"

    def row(self, i: int) -> np.ndarray:
        """(h, w, C) uint8: a view; 0 x 0 where the image cannot be read."""
        height, width = self.shapes[i]
        start = self.offsets[i]
        return self.data[start : start + int(height) * int(width) * self.channels].reshape(height, width, self.channels)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W, C) uint8, zero-padded right and below to the largest row, and (N, 2) int32 shapes."""
        indices = np.asarray(indices, dtype=np.int64)
        shapes = _readable_shapes(self, indices)
        if self.uniform is not None and self._reader is None and self.guard is None:
            row_bytes = self.uniform[0] * self.uniform[1] * self.channels
            grid = self.data[: len(self.data) // row_bytes * row_bytes].reshape(-1, *self.uniform, self.channels)
            return grid[self.offsets[indices] // row_bytes], shapes
        return _pad(map(self.read, indices), shapes, self.channels), shapes

    def read(self, i: int) -> np.ndarray:
        """(h, w, C) uint8: a copy, read without mapping the file's pages into this process, and compared with its
        checksum. Raises DamagedRowError."""
        if self._reader is None:
            row = self.row(i)
        else:
            row = np.empty((*self.shapes[i], self.channels), np.uint8)
            self._reader.read(row, int(self.offsets[i]))
        return row if self.guard is None else self.guard.checked(i, row, self.path)


class StreamedRows:
    """Rows decoded on demand, with the interface of PixelStore, for images that do not fit the cache."""

    def __init__(self, decoding: Decoding, shapes: np.ndarray, failed: dict[int, str], identity: str, note: str):
        """`identity` identifies the content of all images; `note` is a line for the user."""
        self.note = note
        self.shapes, self.channels, self.failed = shapes, decoding.spec.channels, failed
        self.uniform = _uniform_shape(shapes)
        self.identity = identity
        self._decoding = decoding
        self._pool = ThreadPoolExecutor(decoding.threads, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.shapes)

    def row(self, i: int) -> np.ndarray:
        """(h, w, C) uint8. Raises UnreadableError if the file changed since it was checked, or is unreadable."""
        if i in self.failed:
            return np.zeros((0, 0, self.channels), np.uint8)
        source = self._decoding.source(i)
        if isinstance(source, str):
            expected = (
                0,
                self._decoding.signatures[i],
            )  # 0: the file is gone, and decoding it gives the better message
            if self._decoding.signature(i) not in expected:
                raise UnreadableError(source, "was replaced or changed while it was in use")
        return load_row(source, self._decoding.spec)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As `PixelStore.gather`, decoded by threads."""
        indices = np.asarray(indices, dtype=np.int64)
        _readable_shapes(self, indices)
        rows = list(self._pool.map(self.row, indices))
        shapes = np.array([row.shape[:2] for row in rows], np.int32).reshape(-1, 2)  # a file may still change
        return _pad(rows, shapes, self.channels), shapes


def readable(rows: PixelStore | StreamedRows) -> np.ndarray:
    """(k,) int64: the rows whose images can be read, ascending."""
    return np.setdiff1d(np.arange(len(rows)), np.fromiter(rows.failed, np.int64, len(rows.failed)))


def _uniform_shape(shapes: np.ndarray) -> tuple[int, int] | None:
    """The height and width that all readable rows share; None where they differ."""
    readable = shapes[shapes[:, 0] > 0]
    if len(readable) and (readable == readable[0]).all():
        return int(readable[0, 0]), int(readable[0, 1])
    return None


def _readable_shapes(store: PixelStore | StreamedRows, indices: np.ndarray) -> np.ndarray:
    shapes = store.shapes[indices]
    if len(bad := indices[shapes[:, 0] == 0]):
        raise ValueError(f"row {bad[0]} could not be read ({store.failed[int(bad[0])]}) and has no place in a batch")
    return shapes


def _pad(rows: Iterable[np.ndarray], shapes: np.ndarray, channels: int) -> np.ndarray:
    """(N, H, W, C) uint8, with zeros to the right of and below rows that are smaller than the largest."""
    height, width = shapes.max(axis=0) if len(shapes) else (0, 0)
    batch = np.empty((len(shapes), height, width, channels), np.uint8)
    for k, row in enumerate(rows):
        h, w = row.shape[:2]
        batch[k, :h, :w] = row
        batch[k, h:] = 0
        batch[k, :h, w:] = 0
    return batch
