"""Decode images in threads: the images of a table become rows, in order, slightly ahead of their use."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Protocol, runtime_checkable

import numpy as np

from linnaeus.data import tree
from linnaeus.data.archives.members import ShardMembers
from linnaeus.data.background import Progress, ordered_map
from linnaeus.data.images.decode import MAX_ASPECT, RowSpec, UnreadableError, header_size, load_row
from linnaeus.data.images.resize import UprightImage

Row = np.ndarray | UnreadableError  # (h, w, C) uint8, or why the image cannot be read


class ImageSource(Protocol):
    """The part of a table that decoding needs: images as files, as an array, or inside larger files."""

    @property
    def paths(self) -> Sequence[str] | None: ...

    @property
    def images(self) -> np.ndarray | None: ...

    @property
    def members(self) -> ShardMembers | None: ...

    def image(self, i: int) -> str | bytes | np.ndarray: ...


@runtime_checkable
class ObservingSource(ImageSource, Protocol):
    """An image source that wants to see what is decoded, before it is resized to a row."""

    def observe(self, i: int, image: UprightImage) -> None:
        """Called by several threads, for images that `decode.inspect` would decode to the same pixels."""


@dataclass(frozen=True)
class Decoding:
    """The images `indices` of a table, to be decoded in this order by threads. Image k is the k-th of them."""

    table: ImageSource
    indices: np.ndarray
    spec: RowSpec
    threads: int
    progress: Progress | None

    def source(self, k: int) -> str | bytes | np.ndarray:
        """The path, the bytes or the array of image k."""
        return self.table.image(int(self.indices[k]))

    def load(self, k: int) -> Row:
        """Decode image k."""
        table = self.table
        observe = partial(table.observe, int(self.indices[k])) if isinstance(table, ObservingSource) else None
        try:
            return load_row(self.source(k), self.spec, observe)
        except UnreadableError as error:
            return error.with_traceback(None)  # a traceback would keep the image in memory

    def rows(self, start: int = 0, known: Callable[[int], Row | None] | None = None) -> Iterator[Row]:
        """Rows from `start` on, in order. A row that `known` returns is not decoded."""

        def load(k: int) -> Row:
            row = None if known is None else known(k)
            return self.load(k) if row is None else row

        return ordered_map(load, start, len(self.indices), self.threads, self.progress)

    def estimate(self) -> int:
        """Bytes that the rows will take: exact for squares, else estimated from the headers of up to 64 images."""
        size, n = self.spec.size, len(self.indices)
        aspect = 1.0
        if self.spec.fit == "crop" and self.table.images is not None:
            height, width = self.table.images.shape[1:3]
            aspect = _kept_aspect(height, width)
        elif self.spec.fit == "crop" and self.table.paths is not None and n:
            sample = np.linspace(0, n - 1, min(n, 64)).astype(int)
            sizes = [header_size(self.table.paths[self.indices[k]]) for k in sample]
            aspects = [_kept_aspect(*size) for size in sizes if size is not None]
            aspect = 1.03 * float(np.mean(aspects)) if aspects else 1.0
        return int(n * size * size * aspect * self.spec.channels) + 64 * n

    @cached_property
    def signatures(self) -> np.ndarray:
        """(n,) uint64 that identify the images: from path and version, from the pixels of arrays, or from the index
        of shards. 0 where there is no such file."""
        return np.array([self.signature(k) for k in range(len(self.indices))], np.uint64)

    def signature(self, k: int) -> int:
        """The signature of image k."""
        if self.table.members is not None:  # the index of the shards identifies it without reading it
            return _signature(self.table.members.key(int(self.indices[k])))
        source = self.source(k)
        assert not isinstance(source, bytes)
        return _signature(source.tobytes()) if isinstance(source, np.ndarray) else signature_of_file(source)

    def changed(self, k: int) -> bool:
        """Whether the file of image k was changed since its signature was taken: it may be decoded in either form."""
        return self.table.paths is not None and self.signature(k) != int(self.signatures[k])


def signature_of_file(path: str) -> int:
    """The signature of an image file by path and version; 0 where there is no such file."""
    try:
        version = tree.version(path)
    except (OSError, ValueError):
        return 0
    return _signature(f"{path}\0{version}".encode(errors="surrogateescape"))


def _signature(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little") or 1


def select(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """images[indices], without a copy where the indices are all images in order."""
    all_in_order = len(indices) == len(images) and np.array_equal(indices, np.arange(len(images)))
    return images if all_in_order else images[indices]


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """(n, H, W, channels) uint8 from (n, H, W[, C]). Gray is Pillow's luma, so that files and arrays agree."""
    images = images[..., None] if images.ndim == 3 else images
    if images.shape[3] == channels:
        return images
    if channels == 3:
        return np.repeat(images, 3, axis=3)
    gray = np.empty((*images.shape[:3], 1), np.uint8)
    for k, image in enumerate(images):
        gray[k, :, :, 0] = (image @ np.array([19595, 38470, 7471], np.uint32) + 32768) >> 16
    return gray


def _kept_aspect(height: int, width: int) -> float:
    """Long side by short side of the row that an image of this size becomes."""
    return min(MAX_ASPECT, max(height, width) / max(1, min(height, width)))
