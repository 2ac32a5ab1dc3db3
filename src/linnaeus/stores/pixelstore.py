"""Rows of images, to be gathered into batches: from a store, or decoded on demand."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from linnaeus.data.decode import UnreadableError, load_row
from linnaeus.stores.cache import known_checksum
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.rows import open_reader


class PixelStore:
    """Rows of uint8 images, flat in one array, memory-mapped or in memory."""

    data: np.ndarray
    """(bytes,) uint8"""
    offsets: np.ndarray
    """(n,) int64: where in `data` a row starts"""
    shapes: np.ndarray
    """(n, 2) int32: height and width; 0, 0 where the image could not be read"""
    channels: int
    failed: dict[int, str]
    """row -> why it could not be read"""
    uniform: tuple[int, int] | None
    """height and width, where all rows that could be read agree"""
    note: str = ""
    """A line for the user, where there is something to say."""

    def __init__(
        self,
        data: np.ndarray,
        offsets: np.ndarray,
        shapes: np.ndarray,
        channels: int,
        failed: dict[int, str] | None = None,
        path: Path | None = None,
    ):
        self.data, self.offsets, self.shapes, self.channels = data, offsets, shapes, channels
        self.failed = failed or {}
        self.path = path
        self.uniform = _agreed(shapes)
        self._reader = open_reader(path)

    @classmethod
    def from_arrays(cls, images: np.ndarray) -> PixelStore:
        """(n, H, W[, C]) uint8, at the right size already: no copy where the array is contiguous."""
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
        """By the content of all rows, in order, wherever they lie: the same images have the same."""
        sizes = self.shapes.prod(axis=1, dtype=np.int64) * self.channels
        whole = np.array_equal(self.offsets, np.cumsum(sizes) - sizes) and int(sizes.sum()) == len(self.data)
        found = known_checksum(self.path) if whole and self.path is not None else None
        if found is None:
            found = 0
            for i in range(len(self)):
                found = zlib.crc32(np.ascontiguousarray(self.read(i)).data, found)
        return f"{found:08x} {hashlib.sha256(self.shapes.astype('<i4').tobytes()).hexdigest()[:24]}"

    def row(self, i: int) -> np.ndarray:
        """(h, w, C) uint8: a view, 0 x 0 where the image could not be read."""
        height, width = self.shapes[i]
        start = self.offsets[i]
        return self.data[start : start + int(height) * int(width) * self.channels].reshape(height, width, self.channels)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, H, W, C) uint8, zero-padded right and below to the largest, and (N, 2) int32 shapes."""
        indices = np.asarray(indices, dtype=np.int64)
        shapes = _readable_shapes(self, indices)
        if self.uniform is not None and self._reader is None:
            row_bytes = self.uniform[0] * self.uniform[1] * self.channels
            grid = self.data[: len(self.data) // row_bytes * row_bytes].reshape(-1, *self.uniform, self.channels)
            return grid[self.offsets[indices] // row_bytes], shapes
        return _pad(map(self.read, indices), shapes, self.channels), shapes

    def read(self, i: int) -> np.ndarray:
        """(h, w, C) uint8: a copy, without mapping the file's pages into this process where it is a file."""
        if self._reader is None:
            return self.row(i)
        row = np.empty((*self.shapes[i], self.channels), np.uint8)
        self._reader.read(row, int(self.offsets[i]))
        return row


class StreamedRows:
    """The interface of PixelStore, decoding on demand: for stores that would not fit the disk budget."""

    def __init__(
        self,
        decoding: Decoding,
        shapes: np.ndarray,
        failed: dict[int, str],
        note: str,
        identity: str,
        signatures: np.ndarray | None = None,
    ):
        """`identity` names the content of the images, as the key of a store does; `signatures` (n,) each of them."""
        self._signatures = signatures
        self.shapes, self.channels, self.failed, self.note = shapes, decoding.spec.channels, failed, note
        self.uniform = _agreed(shapes)
        self.identity = identity
        self._decoding = decoding
        self._pool = ThreadPoolExecutor(decoding.threads, thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self.shapes)

    def row(self, i: int) -> np.ndarray:
        """(h, w, C) uint8. Raises UnreadableError where the image is another one than was checked, or none."""
        if i in self.failed:
            return np.zeros((0, 0, self.channels), np.uint8)
        source = self._decoding.source(i)
        if isinstance(source, str) and self._signatures is not None:
            known = (0, self._signatures[i])  # 0: it is gone, which decoding says better
            if self._decoding.signature(i) not in known:
                raise UnreadableError(source, "was replaced or changed while it was in use")
        return load_row(source, self._decoding.spec)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """As PixelStore.gather, in threads."""
        indices = np.asarray(indices, dtype=np.int64)
        _readable_shapes(self, indices)
        rows = list(self._pool.map(self.row, indices))
        shapes = np.array([row.shape[:2] for row in rows], np.int32).reshape(-1, 2)  # an image may have changed
        return _pad(rows, shapes, self.channels), shapes


def readable(rows: PixelStore | StreamedRows) -> np.ndarray:
    """(k,) int64: the rows that could be read, ascending."""
    return np.setdiff1d(np.arange(len(rows)), np.fromiter(rows.failed, np.int64, len(rows.failed)))


def _agreed(shapes: np.ndarray) -> tuple[int, int] | None:
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
    """(N, H, W, C) uint8, with zeros right of and below rows that are smaller than the largest."""
    height, width = shapes.max(axis=0) if len(shapes) else (0, 0)
    batch = np.empty((len(shapes), height, width, channels), np.uint8)
    for k, row in enumerate(rows):
        h, w = row.shape[:2]
        batch[k, :h, :w] = row
        batch[k, h:] = 0
        batch[k, :h, w:] = 0
    return batch
