"""Activation stores: what crosses the cut of a phase, computed once, as rows in one memory-mapped file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.cache import Cache, Entry
from linnaeus.data.background import Progress
from linnaeus.data.batches import Rows, Subset
from linnaeus.errors import JobError
from linnaeus.stores.pixelstore import PixelStore, StreamedRows
from linnaeus.stores.rows import ROWS, RowWriter, open_reader

VERSION = 2
BUILD = "build.json"
"""In the folder of an unfinished store: what is being built. A build of something else starts over."""
IMAGES = "images"  # in the header of an entry that was computed from images: the names of the stores of these images
CHUNK = 64 << 20  # bytes between two records of the journal: a killed build loses at most these


class ActivationStore:
    """Rows of activations: (n, …) float16, or float32 where float16 would overflow."""

    def __init__(self, array: np.ndarray, path: Path | None = None, made_by: str = ""):
        self.array, self.path = array, path
        self.made_by = made_by  # the executor that computed the rows, for the record
        self._reader = open_reader(path)

    def __len__(self) -> int:
        return len(self.array)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, …) rows, and zeros in place of the heights and widths that rows of images have."""
        shapes = np.zeros((len(indices), 2), np.int32)
        if self._reader is None:
            return self.array[indices], shapes
        rows = np.empty((len(indices), *self.array.shape[1:]), self.array.dtype)
        row_bytes = rows[:1].nbytes
        for row, i in zip(rows, indices.tolist(), strict=True):
            self._reader.read(row, i * row_bytes)
        return rows, shapes


@dataclass(frozen=True)
class StoreSpec:
    """The store to build: `n` rows of `shape`."""

    n: int
    shape: tuple[int, ...]
    key: str  # everything that the rows depend on, apart from rounding
    made_by: str = ""  # the executor that computes the rows: an unfinished store of another executor is not continued
    images: tuple[str, ...] = ()  # the stores of the images that the rows are of, by which `purge` finds them
    exact: bool = False  # whether the rows are float32 in any case

    @property
    def name(self) -> str:
        """The name of the entry in the cache."""
        return _name(self.n, self.key)

    def to_dict(self, dtype: np.dtype) -> dict[str, object]:
        """The description in the entry's header."""
        return {"dtype": dtype.name, "shape": list(self.shape), "n": self.n, "made_by": self.made_by}

    def row_bytes(self, dtype: np.dtype) -> int:
        return int(np.prod(self.shape)) * dtype.itemsize


class RowSource(Protocol):
    """Computes the rows of a store."""

    def batches(self, start: int, rank: int = 0, world_size: int = 1) -> Generator[Tensor, None, None]:
        """Batches of rows, in order, from row `start` on: the share of process `rank` in each batch."""
        ...


def find_activations(n: int, key: str, cache: Cache) -> ActivationStore | None:
    """The finished store of `n` rows with this key, if the cache has it."""
    entry = cache.find(_name(n, key))
    return None if entry is None else _open(entry)


def build_activations(
    source: RowSource, spec: StoreSpec, cache: Cache, progress: Progress | None = None
) -> ActivationStore:
    """Build the store from the rows of `source`, or return it where the cache has it.

    A build that was killed is continued. Raises OverBudgetError if the cache's budget is too small, UserError if
    the disk is full, and JobError if a row is not finite.
    """
    with cache.lock(spec.name):
        entry = cache.find(spec.name)
        if entry is not None:
            return _open(entry)
        # float16 halves the store; float32 only where values exceed its range, or every bit counts.
        for dtype in (np.dtype(np.float16), np.dtype(np.float32))[spec.exact :]:
            cache.room(spec.name, spec.n * spec.row_bytes(dtype))
            try:
                with cache.building(spec.name) as folder:
                    checksums = _write_rows(folder, source, spec, dtype, progress)
                about = spec.to_dict(dtype) | {IMAGES: list(spec.images)}
                return _open(cache.commit(spec.name, about, checksums))
            except _OverflowError:
                cache.discard(spec.name)
    raise JobError("the frozen part of the network computes values that are not finite; check its weights")


class _OverflowError(Exception):
    """A value is too large for the type of the rows, or not finite."""


def _write_rows(
    folder: Path, source: RowSource, spec: StoreSpec, dtype: np.dtype, progress: Progress | None
) -> dict[str, int]:
    """Write the rows that are missing in `folder`. Returns the CRC-32 of the file of rows, by its name."""
    _start_build(folder, json.dumps(spec.to_dict(dtype)))
    row_bytes = spec.row_bytes(dtype)
    with RowWriter(folder, channels=1) as writer:
        # Rows that were written before an interruption are complete.
        done = int(writer.shapes[:, 0].sum())
        pending = bytearray()
        if done < spec.n:
            with closing(source.batches(done)) as batches:
                for rows in batches:
                    pending += _encode(rows, dtype)
                    # Large writes, because every append is flushed to the journal.
                    if len(pending) >= CHUNK:
                        done += _append(writer, pending, row_bytes)
                        pending = bytearray()
                    if progress is not None:
                        progress(done + len(pending) // row_bytes, spec.n)
        if pending:
            done += _append(writer, pending, row_bytes)
        assert done == spec.n, f"{done} rows where {spec.n} were expected"
        checksums = writer.finish()
    (folder / BUILD).unlink()
    return checksums


def _start_build(folder: Path, description: str) -> None:
    """Empty the folder, unless an earlier build of the same rows left it."""
    path = folder / BUILD
    if path.is_file() and path.read_text(encoding="utf-8") == description:
        return
    for file in folder.iterdir():
        file.unlink()
    path.write_text(description, encoding="utf-8")


def _encode(rows: Tensor, dtype: np.dtype) -> bytes:
    values = rows.detach().to("cpu", torch.float16 if dtype == np.float16 else torch.float32).contiguous().numpy()
    if not np.isfinite(values).all():
        raise _OverflowError
    return values.tobytes()


def _append(writer: RowWriter, rows: bytearray, row_bytes: int) -> int:
    """Append a chunk of whole rows. Returns how many they are."""
    count = len(rows) // row_bytes
    writer.append(np.frombuffer(rows, np.uint8).reshape(count, row_bytes, 1))
    return count


def content_key(rows: Rows) -> str:
    """A key for the content of rows of images, as far as an activation store depends on it."""
    digest = hashlib.sha256()
    if isinstance(rows, Subset):
        digest.update(content_key(rows.rows).encode() + rows.positions.tobytes())
    elif isinstance(rows, PixelStore):
        # A store in the cache is named by the content of its images; arrays have to be read.
        digest.update(rows.path.parent.name.encode() if rows.path is not None else np.ascontiguousarray(rows.data).data)
        digest.update(rows.offsets.tobytes() + rows.shapes.tobytes())
    else:
        assert isinstance(rows, StreamedRows)
        digest.update(rows.identity.encode())
    return digest.hexdigest()


def image_stores(rows: Rows) -> tuple[str, ...]:
    """The entries of the cache that hold these images; none for images in memory."""
    if isinstance(rows, Subset):
        return image_stores(rows.rows)
    if isinstance(rows, PixelStore):
        return () if rows.path is None else (rows.path.parent.name,)
    return (rows.identity,) if isinstance(rows, StreamedRows) else ()


def _open(entry: Entry) -> ActivationStore:
    about = entry.about
    path = entry.path / ROWS
    shape = (about["n"], *about["shape"])
    return ActivationStore(np.memmap(path, dtype=about["dtype"], mode="r", shape=shape), path, about["made_by"])


def _name(n: int, key: str) -> str:
    return "activations-" + hashlib.sha256(f"{VERSION} {key} {n}".encode()).hexdigest()[:32]
