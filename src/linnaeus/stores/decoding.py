"""Images of a table, decoded into rows by threads, in order."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from linnaeus.data.decode import MAX_ASPECT, RowSpec, UnreadableError, header_size, load_row
from linnaeus.data.table import Members

T = TypeVar("T")

Row = np.ndarray | UnreadableError
"""(h, w, C) uint8, or why there is none"""
Progress = Callable[[int, int], None]
"""Called with the images that are done and all of them."""


class Images(Protocol):
    """What of a table is needed here: images as files, as an array, or inside larger files."""

    @property
    def paths(self) -> Sequence[str] | None: ...

    @property
    def images(self) -> np.ndarray | None: ...

    @property
    def members(self) -> Members | None: ...

    def image(self, i: int) -> str | bytes | np.ndarray: ...


@dataclass(frozen=True)
class Decoding:
    """Images to decode, in order, by threads."""

    table: Images
    indices: np.ndarray
    spec: RowSpec
    threads: int
    progress: Progress | None

    def source(self, k: int) -> str | bytes | np.ndarray:
        """The path, the bytes or the array of image k."""
        return self.table.image(int(self.indices[k]))

    def load(self, k: int) -> Row:
        try:
            return load_row(self.source(k), self.spec)
        except UnreadableError as error:
            return error.with_traceback(None)  # which would keep the image's memory

    def each(self, start: int = 0, known: Callable[[int], Row | None] | None = None) -> Iterator[Row]:
        """Rows from `start` on, in order; those that `known` returns are not decoded."""

        def make(k: int) -> Row:
            row = None if known is None else known(k)
            return self.load(k) if row is None else row

        return in_order(make, start, len(self.indices), self.threads, self.progress)

    def estimate(self) -> int:
        """Bytes that the rows will take: exact for squares, else from the headers of some of the images."""
        size, n = self.spec.size, len(self.indices)
        aspect = 1.0
        if self.spec.fit == "crop" and self.table.images is not None:
            height, width = self.table.images.shape[1:3]
            aspect = _kept_aspect(height, width)
        elif self.spec.fit == "crop" and self.table.paths is not None and n:
            some = np.linspace(0, n - 1, min(n, 64)).astype(int)
            sizes = [header_size(self.table.paths[self.indices[k]]) for k in some]
            aspects = [_kept_aspect(*found) for found in sizes if found is not None]
            aspect = 1.03 * float(np.mean(aspects)) if aspects else 1.0
        return int(n * size * size * aspect * self.spec.channels) + 64 * n

    def signatures(self, hash_content: bool) -> np.ndarray:
        """(n,) uint64, by which an image is known again: from path, size and time, or from the bytes.

        0 where there is nothing to know it by.
        """
        return np.array([self.signature(k, hash_content) for k in range(len(self.indices))], np.uint64)

    def signature(self, k: int, hash_content: bool = False) -> int:
        """As `signatures`, of image k."""
        digest = hashlib.blake2b(digest_size=8)
        if self.table.members is not None:  # known by what the index says, without reading it
            digest.update(self.table.members.key(int(self.indices[k])))
            return int.from_bytes(digest.digest(), "little") or 1
        source = self.source(k)
        assert not isinstance(source, bytes)
        try:
            if isinstance(source, np.ndarray):
                digest.update(source.tobytes())
            elif hash_content:
                digest.update(Path(source).read_bytes())
            else:
                found = Path(source).stat()
                digest.update(f"{source}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape"))
        except (OSError, ValueError):
            return 0
        return int.from_bytes(digest.digest(), "little") or 1


def in_order(
    make: Callable[[int], T], start: int, total: int, threads: int, progress: Progress | None = None
) -> Iterator[T]:
    """make(start) … make(total - 1), in order, worked out by threads a little ahead of who asks."""
    ahead = iter(range(start, total))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    waiting: deque[Future[T]] = deque()
    try:
        # As many are under way as keep the threads busy, and no more, which bounds the memory.
        waiting.extend(pool.submit(make, k) for k in islice(ahead, 4 * threads))
        for done in range(start + 1, total + 1):
            yield waiting.popleft().result()
            waiting.extend(pool.submit(make, k) for k in islice(ahead, 1))
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)


def select(images: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """images[indices], without a copy where that is all of them in order."""
    everything = len(indices) == len(images) and np.array_equal(indices, np.arange(len(images)))
    return images if everything else images[indices]


def with_channels(images: np.ndarray, channels: int) -> np.ndarray:
    """(n, H, W, channels) uint8 from (n, H, W[, C]). Luma as Pillow computes it, so that files and arrays agree."""
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
    return min(MAX_ASPECT, max(height, width) / max(1, min(height, width)))
