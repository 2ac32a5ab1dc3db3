"""Building pixel stores: every image is decoded once into a row of uint8, in one file that runs share.

Threads decode, since Pillow releases the interpreter lock. A killed build is continued, and rows of earlier stores of
the same form are reused: only images that are new or have changed are decoded.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.cache import Cache, Entry, OverBudgetError
from linnaeus.console import Console, counted
from linnaeus.data.background import Progress
from linnaeus.data.images.decode import DECODE_VERSION, RowSpec, UnreadableError, is_row
from linnaeus.device import available_cores
from linnaeus.stores.decoding import Decoding, ImageSource, Row, select, with_channels
from linnaeus.stores.pixelstore import PixelStore, StreamedRows
from linnaeus.stores.rows import (
    ROWS,
    DamagedRowError,
    Index,
    RowGuard,
    RowWriter,
    extends,
    map_rows,
    read_index,
    rewrite,
    write_index,
)
from linnaeus.text import such_as


def build_pixels(
    table: ImageSource,
    indices: np.ndarray,
    spec: RowSpec,
    *,
    cache: Cache | None,
    progress: Progress | None = None,
    threads: int | None = None,
) -> PixelStore | StreamedRows:
    """A store whose row k is image indices[k] of the table.

    Images are identified by path and version. Arrays of the right size are used without a copy. Without a cache the
    rows stay in memory. The result decodes on demand, after one pass that finds the unreadable images, where the
    cache's budget is too small and where the images lie in shards, which may be larger than any disk; its `note` says
    so.
    `progress(done, total)` is called from this thread. Raises UserError if the disk is full.
    """
    indices = np.asarray(indices, dtype=np.int64)
    # Arrays of the right size are rows already; copying them to the disk gains nothing.
    if table.images is not None and is_row(table.images.shape[1], table.images.shape[2], spec):
        return PixelStore.from_arrays(with_channels(select(table.images, indices), spec.channels))
    decoding = Decoding(table, indices, spec, threads or available_cores(), progress)
    if cache is None:
        return _in_memory(decoding)
    # Shards may exceed the disk, so their images are not stored.
    if table.members is not None:
        return _stream(cache, decoding, "the images are read from shards and decoded again in every epoch")
    name = f"pixels-{store_key(spec, decoding.signatures)}"
    if (store := _find(cache, decoding, name)) is not None:
        return store
    try:
        with cache.lock(name):
            store = _find(cache, decoding, name)  # another process may have built it meanwhile
            return store if store is not None else _build(cache, decoding, name)
    except OverBudgetError as error:
        note = f"the store of images does not fit ({error}); they are decoded again in every epoch"
        return _stream(cache, decoding, note)


@dataclass(frozen=True)
class _EarlierStore:
    """A store of the cache that has some of the wanted rows."""

    store: PixelStore
    positions: np.ndarray  # (n,) int64: the position in the store of each wanted row, or -1
    name: str

    def get(self, k: int) -> Row | None:
        """Wanted row k, or why its image cannot be read; None where the store does not have it."""
        position = int(self.positions[k])
        if position < 0:
            return None
        if (reason := self.store.failed.get(position)) is not None:
            return UnreadableError("", reason)
        try:
            return self.store.read(position)
        except DamagedRowError:
            return None

    def view(self, more_failed: dict[int, str]) -> PixelStore:
        """A store of the wanted rows on the same file. `more_failed` names the rows that it lacks."""

        def wanted(values: np.ndarray) -> np.ndarray:  # 0 for rows that the store lacks
            rows = np.zeros((len(self.positions), *values.shape[1:]), values.dtype)
            rows[self.positions >= 0] = values[self.positions[self.positions >= 0]]
            return rows

        store, positions = self.store, enumerate(self.positions.tolist())
        failed = more_failed | {k: store.failed[position] for k, position in positions if position in store.failed}
        failed = dict(sorted(failed.items()))
        guard = None if store.guard is None else RowGuard(wanted(store.guard.before), wanted(store.guard.after))
        offsets, shapes = wanted(store.offsets), wanted(store.shapes)
        return PixelStore(store.data, offsets, shapes, store.channels, failed, store.path, guard)


def _find(cache: Cache, decoding: Decoding, name: str) -> PixelStore | None:
    """A store of the cache that has all wanted rows, possibly among others."""
    earlier = _best(cache, decoding, name)
    if earlier is None:
        return None
    missing = np.flatnonzero(earlier.positions < 0)
    if len(missing) and earlier.name != name:
        return None
    # In the store of this very name only images are missing that failed for a temporary reason: try them again.
    retried = {int(k): decoding.load(int(k)) for k in missing}
    failed = {k: error.reason for k, error in retried.items() if isinstance(error, UnreadableError)}
    return _restoring(earlier.view(failed), decoding) if len(failed) == len(missing) else None


def _best(cache: Cache, decoding: Decoding, name: str) -> _EarlierStore | None:
    """The store called `name`, else the intact store of the same form that has the most wanted rows."""
    best, most = None, 0
    for entry in sorted(cache.entries(), key=lambda entry: entry.name != name):
        if entry.about.get("form") != _form(decoding.spec):
            continue
        try:
            index = read_index(entry.path)
            positions = lookup(index.signatures, decoding.signatures)
            count = len(positions) if entry.name == name else int((positions >= 0).sum())
            by_row = () if index.checksums is None else (ROWS,)
            if count > most and cache.find(entry.name, by_row) is not None:
                best, most = _EarlierStore(open_store(entry, decoding.spec), positions, entry.name), count
        except Exception:  # removed meanwhile, or damaged: NumPy evaluates the header of a file
            cache.find(entry.name, (ROWS,))  # says so
        if most == len(decoding.indices):
            break
    return best


def open_store(entry: Entry, spec: RowSpec) -> PixelStore:
    """The finished store of an entry. Raises OSError or ValueError if a file is missing or damaged."""
    index = read_index(entry.path)
    data = map_rows(entry.path)
    path, guard = entry.path / ROWS, RowGuard.of(index)
    return PixelStore(data, index.offsets(spec.channels), index.shapes, spec.channels, index.failed, path, guard)


def _restoring(store: PixelStore, decoding: Decoding) -> PixelStore:
    """The store, whose damaged rows are decoded again, written back and named; row k is image k of `decoding`."""
    path, guard = store.path, store.guard
    if guard is None or path is None:
        return store

    # Arrays, not the store and its guard: these hold the function, and a cycle would keep the file open.
    offsets, before, after = store.offsets, guard.before, guard.after

    def restore(k: int) -> np.ndarray | None:
        row = decoding.load(k)
        if isinstance(row, UnreadableError) or extends(int(before[k]), row) != int(after[k]):
            return None
        Console().warn(f"{path}: row {k} was damaged on the disk; its image was decoded again")
        rewrite(path, int(offsets[k]), row)
        return row

    guard.restore = restore
    return store


def _build(cache: Cache, decoding: Decoding, name: str) -> PixelStore:
    """Decode into an entry of the cache, continuing an interrupted build. Hold the lock."""
    # A store with many of the same images, for example before a few were added.
    earlier = _best(cache, decoding, name)
    keep = () if earlier is None else (earlier.name,)
    with cache.building(name) as folder:
        with RowWriter(folder, decoding.spec.channels) as writer:
            allowed = max(decoding.estimate(), writer.bytes)
            cache.room(name, allowed - writer.bytes, keep)
            for row in decoding.rows(writer.done, None if earlier is None else earlier.get):
                writer.append(row)
                # Extended by an eighth at a time, so that entries are not evicted row by row.
                if writer.bytes > allowed:  # the estimate was too low
                    cache.room(name, allowed // 8, keep)
                    allowed += allowed // 8
            checksums = writer.finish()
            changed = [k for k in range(len(decoding.indices)) if decoding.changed(k)]
            if changed:
                n, example = len(changed), str(decoding.source(changed[0]))
                Console().warn(
                    f"{counted(n, 'file')} changed while the images were read{such_as(n, example)}; the old or the "
                    "new content is used: run the command again for the new"
                )
            write_index(folder, writer.index(decoding.signatures, changed))
        entry = cache.commit(name, {"form": _form(decoding.spec), "rows": len(decoding.indices)}, checksums)
    return _restoring(open_store(entry, decoding.spec), decoding)


def _stream(cache: Cache, decoding: Decoding, note: str) -> StreamedRows:
    """Decode every image once to find the unreadable ones; an entry of the cache keeps the result for later runs.

    `note` says why the images are not stored.
    """
    name = f"verdict-{store_key(decoding.spec, decoding.signatures)}"
    with cache.lock(name):
        if cache.find(name) is None:
            index = _trial_index(decoding)
            with suppress(OverBudgetError), cache.building(name) as folder:
                cache.room(name, 64 * len(decoding.indices))
                write_index(folder, index)
                cache.commit(name, {"form": ["verdict", *_form(decoding.spec)], "rows": len(decoding.indices)})
        else:
            index = read_index(cache.root / name)
    for k in [k for k in index.failed if index.signatures[k] == 0]:  # failed for a temporary reason: try again
        if not isinstance(row := decoding.load(k), UnreadableError):
            index.shapes[k] = row.shape[:2]
            del index.failed[k]
    return StreamedRows(decoding, index.shapes, index.failed, name, note)


def _trial_index(decoding: Decoding) -> Index:
    """The shapes and failures of all images, decoded without keeping the rows."""
    index = Index(np.zeros((len(decoding.indices), 2), np.int32), decoding.signatures.copy(), {})
    for k, row in enumerate(decoding.rows()):
        if isinstance(row, UnreadableError):
            index.failed[k] = row.reason
            index.signatures[k] *= not row.passing
        else:
            index.shapes[k] = row.shape[:2]
    return index


def _in_memory(decoding: Decoding) -> PixelStore:
    data, failed = io.BytesIO(), {}
    shapes = np.zeros((len(decoding.indices), 2), np.int32)
    for k, row in enumerate(decoding.rows()):
        if isinstance(row, UnreadableError):
            failed[k] = row.reason
        else:
            shapes[k] = row.shape[:2]
            data.write(np.ascontiguousarray(row).data)
    channels = decoding.spec.channels
    offsets = Index(shapes, np.zeros(len(shapes), np.uint64), failed).offsets(channels)
    return PixelStore(np.frombuffer(data.getbuffer(), np.uint8), offsets, shapes, channels, failed)


def store_key(spec: RowSpec, signatures: np.ndarray) -> str:
    """Identifies a store by the form of its rows and the signatures (n,) uint64 of its images."""
    return hashlib.sha256(f"{DECODE_VERSION} {spec.key()}".encode() + signatures.tobytes()).hexdigest()[:32]


def _form(spec: RowSpec) -> list[Any]:
    """The form of a row, equal for stores that can share rows; a list, since it is compared with JSON."""
    return ["pixels", DECODE_VERSION, *spec.key()]


def lookup(stored: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) int64: the position of each wanted signature among the stored ones, or -1. Signature 0 matches none."""
    if not len(stored):
        return np.full(len(wanted), -1, np.int64)
    order = np.argsort(stored, kind="stable")
    positions = order[np.searchsorted(stored, wanted, sorter=order).clip(max=len(stored) - 1)]
    return np.where((stored[positions] == wanted) & (wanted != 0), positions, -1)
