"""What crosses the cut of a phase, computed once: rows of float16 in one memory-mapped file, shared by runs."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from linnaeus.data.batches import Rows, Subset
from linnaeus.errors import JobError
from linnaeus.stores.cache import Cache, Entry
from linnaeus.stores.pixelstore import PixelStore, StreamedRows

VERSION = 2
ROWS = "rows.bin"
JOURNAL = "journal.jsonl"  # a line a chunk: rows so far, checksum of the chunk; a killed build goes on after the last
CHUNK = 64 << 20  # bytes between two lines of the journal


Chunks = Callable[[int], Generator[Tensor, None, None]]
"""chunks(start): batches of rows, in order, from row `start` on."""


class ActivationStore:
    """Rows of what crosses the cut: (n, …) float16, or float32 where float16 would overflow."""

    def __init__(self, array: np.ndarray, path: Path | None = None, made_by: str = ""):
        self.array, self.path = array, path
        self.made_by = made_by
        """The executor that computed the rows, for the record."""
        # A mapped page that was read once counts as this process's memory; pread() leaves it to the system.
        self._file = path.open("rb", buffering=0) if path is not None and hasattr(os, "preadv") else None

    def __len__(self) -> int:
        return len(self.array)

    @property
    def nbytes(self) -> int:
        return self.array.nbytes

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(N, …) rows, and shapes for the interface's sake."""
        shapes = np.zeros((len(indices), 2), np.int32)
        if self._file is None:
            return self.array[indices], shapes
        rows = np.empty((len(indices), *self.array.shape[1:]), self.array.dtype)
        flat = rows.reshape(len(rows), -1).view(np.uint8)
        for row, i in zip(flat, indices.tolist(), strict=True):
            got = os.preadv(self._file.fileno(), [row.data], i * flat.shape[1])
            assert got == flat.shape[1], f"{self.path}: cut short while in use"
        return rows, shapes


def find_activations(n: int, key: str, cache: Cache) -> ActivationStore | None:
    """The store of n rows of that key, if it is whole."""
    found = cache.find(_name(n, key))
    return None if found is None else _open(found)


def build_activations(
    chunks: Chunks,
    n: int,
    shape: tuple[int, ...],
    key: str,
    *,
    cache: Cache,
    made_by: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> ActivationStore:
    """A store of n rows of `shape`, from `chunks(start)`: batches of rows, in order, from row `start` on.

    `key` says everything that the rows depend on, but for rounding; a store of that key is used as it is, and one that
    a killed run left unfinished is continued if `made_by`, the executor, is the same. Raises OverBudgetError where the
    cache's budget is too small, UserError where the disk is full, and JobError where a row is not finite.
    """
    name = _name(n, key)
    with cache.lock(name):
        found = cache.find(name)
        if found is not None:
            return _open(found)
        for dtype in (np.float16, np.float32):
            cache.room(name, n * int(np.prod(shape)) * np.dtype(dtype).itemsize)
            try:
                with cache.building(name) as folder:
                    checksum = _Builder(folder, n, shape, np.dtype(dtype), made_by).fill(chunks, progress)
                about = {"dtype": np.dtype(dtype).name, "shape": list(shape), "n": n, "made_by": made_by}
                return _open(cache.commit(name, about, {ROWS: checksum}))
            except _OverflowError:
                cache.discard(name)
    raise JobError("the frozen part of the network gives values that are not finite; are its weights sound?")


class _OverflowError(Exception):
    """A value is too large for the type of the rows, or not finite at all."""


class _Builder:
    """Appends rows to a file, with a journal by which a later build goes on where this one was killed."""

    def __init__(self, folder: Path, n: int, shape: tuple[int, ...], dtype: np.dtype, made_by: str):
        self.folder, self.n, self.dtype = folder, n, dtype
        self.row = int(np.prod(shape)) * dtype.itemsize
        self.head = json.dumps({"dtype": dtype.name, "shape": list(shape), "n": n, "made_by": made_by})

    def fill(self, chunks: Chunks, progress: Callable[[int, int], None] | None) -> int:
        """Write what is missing. Returns the CRC-32 of the whole file."""
        done, total = self._resume()
        with (self.folder / ROWS).open("ab") as file, (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            if journal.tell() == 0:
                journal.write(self.head + "\n")
            pending = bytearray()
            if done < self.n:
                with closing(chunks(done)) as given:
                    for rows in given:
                        pending += self._encode(rows)
                        if len(pending) >= CHUNK:
                            total, done = self._write(file, journal, pending, total, done)
                        if progress is not None:
                            progress(done + len(pending) // self.row, self.n)
            total, done = self._write(file, journal, pending, total, done)
        assert done == self.n, f"{done} rows where {self.n} were expected"
        (self.folder / JOURNAL).unlink()
        return total

    def _encode(self, rows: Tensor) -> bytes:
        values = (
            rows.detach().to("cpu", torch.float16 if self.dtype == np.float16 else torch.float32).contiguous().numpy()
        )
        if not np.isfinite(values).all():
            raise _OverflowError
        return values.tobytes()

    def _write(self, file: BinaryIO, journal, pending: bytearray, total: int, done: int) -> tuple[int, int]:
        file.write(pending)
        file.flush()
        done += len(pending) // self.row
        journal.write(json.dumps([done, zlib.crc32(pending)]) + "\n")
        journal.flush()
        total = zlib.crc32(pending, total)
        pending.clear()
        return total, done

    def _resume(self) -> tuple[int, int]:
        """(rows that an earlier build left whole, their CRC-32); what follows them is cut off."""
        rows, journal = self.folder / ROWS, self.folder / JOURNAL
        done = total = 0
        kept = [self.head]
        lines = journal.read_text(encoding="utf-8", errors="replace").splitlines() if journal.is_file() else []
        if lines[:1] == [self.head] and rows.is_file():
            with rows.open("rb") as file:
                for line in lines[1:]:
                    try:
                        upto, checksum = json.loads(line)
                        chunk = file.read((upto - done) * self.row)
                    except (ValueError, TypeError):
                        break
                    if len(chunk) != (upto - done) * self.row or zlib.crc32(chunk) != checksum:
                        break
                    done, total = upto, zlib.crc32(chunk, total)
                    kept.append(line)
        with rows.open("ab") as file:
            file.truncate(done * self.row)
        journal.write_text("\n".join(kept) + "\n" if done else "", encoding="utf-8")
        return done, total


def identity(rows: Rows) -> str:
    """A key for the content of rows of images, as far as a store can depend on it."""
    digest = hashlib.sha256()
    if isinstance(rows, Subset):
        digest.update(identity(rows.rows).encode() + rows.positions.tobytes())
    elif isinstance(rows, PixelStore):
        # A store in the cache is named by the content of its images; arrays have to be read.
        digest.update(rows.path.parent.name.encode() if rows.path is not None else np.ascontiguousarray(rows.data).data)
        digest.update(rows.offsets.tobytes() + rows.shapes.tobytes())
    else:
        assert isinstance(rows, StreamedRows)
        digest.update(rows.identity.encode())
    return digest.hexdigest()


def _open(entry: Entry) -> ActivationStore:
    about = entry.about
    path = entry.path / ROWS
    shape = (about["n"], *about["shape"])
    return ActivationStore(np.memmap(path, dtype=about["dtype"], mode="r", shape=shape), path, about["made_by"])


def _name(n: int, key: str) -> str:
    return "activations-" + hashlib.sha256(f"{VERSION} {key} {n}".encode()).hexdigest()[:32]
