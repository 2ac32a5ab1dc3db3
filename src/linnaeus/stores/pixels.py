"""Every image decoded once: rows of uint8 in one file, shared by runs.

A store holds rows back to back, in order, with a table of offsets and shapes. It is built by threads (Pillow releases
the interpreter lock), goes on where a killed build stopped, and takes over what earlier stores of the same form hold:
only images that are new or have changed are decoded.
"""

from __future__ import annotations

import hashlib
import io
from contextlib import suppress
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from linnaeus.data.decode import DECODE_VERSION, RowSpec, UnreadableError, is_row
from linnaeus.device import available_cores
from linnaeus.stores.cache import Cache, Entry, OverBudgetError
from linnaeus.stores.decoding import Decoding, Images, Progress, Row, select, with_channels
from linnaeus.stores.pixelstore import PixelStore, StreamedRows
from linnaeus.stores.rows import ROWS, Index, RowWriter, map_rows, read_index, write_index

__all__ = ["PixelStore", "StreamedRows", "build_pixels"]


def build_pixels(
    table: Images,
    indices: np.ndarray,
    spec: RowSpec,
    *,
    cache: Cache | None,
    progress: Progress | None = None,
    threads: int | None = None,
    hash_content: bool = False,
) -> PixelStore | StreamedRows:
    """A store whose row k is image indices[k] of the table.

    Images are known again by path, size and time, or, with `hash_content`, by their bytes. Arrays that are rows
    already are used as they are. Without a cache the rows stay in memory. Where the cache's budget is too small the
    result streams, after one pass that finds the unreadable images, and its `note` says so; so it does where the
    images lie in shards, which may be larger than any disk.
    `progress(done, total)` is called from this thread. Raises UserError where the disk is full.
    """
    indices = np.asarray(indices, dtype=np.int64)
    if table.images is not None and is_row(table.images.shape[1], table.images.shape[2], spec):
        return PixelStore.from_arrays(with_channels(select(table.images, indices), spec.channels))
    rows = Decoding(table, indices, spec, threads or available_cores(), progress)
    if cache is None:
        return _in_memory(rows)
    signatures = rows.signatures(hash_content)
    key = hashlib.sha256(f"{DECODE_VERSION} {astuple(spec)}".encode() + signatures.tobytes()).hexdigest()[:32]
    name = f"pixels-{key}"
    if table.members is None and (store := _find(cache, rows, signatures, name)) is not None:
        return store
    if table.members is not None:
        note = "the images are read from shards: they are decoded anew in every epoch"
        return _stream(cache, rows, signatures, f"verdict-{key}", note, hash_content)
    try:
        with cache.lock(name):
            store = _find(cache, rows, signatures, name)  # another process may have built it meanwhile
            return store if store is not None else _build(cache, rows, signatures, name)
    except OverBudgetError as error:
        note = f"the images' store does not fit ({error}): they are decoded anew in every epoch"
        return _stream(cache, rows, signatures, f"verdict-{key}", note, hash_content)


@dataclass(frozen=True)
class _Known:
    """Rows that an earlier store holds: match[k] is its row for our row k, or -1."""

    store: PixelStore
    match: np.ndarray
    name: str

    def get(self, k: int) -> Row | None:
        at = int(self.match[k])
        if at < 0:
            return None
        return UnreadableError("", self.store.failed[at]) if at in self.store.failed else self.store.read(at)

    def view(self, more_failed: dict[int, str]) -> PixelStore:
        """The store in our order, where every row but the failed is known."""
        found = np.flatnonzero(self.match >= 0)
        offsets, shapes = np.zeros(len(self.match), np.int64), np.zeros((len(self.match), 2), np.int32)
        offsets[found], shapes[found] = self.store.offsets[self.match[found]], self.store.shapes[self.match[found]]
        failed = dict(more_failed)
        if self.store.failed:
            failed |= {int(k): self.store.failed[at] for k in found if (at := int(self.match[k])) in self.store.failed}
        store = self.store
        return PixelStore(store.data, offsets, shapes, store.channels, dict(sorted(failed.items())), store.path)


def _find(cache: Cache, rows: Decoding, signatures: np.ndarray, name: str) -> PixelStore | None:
    """A store in the cache that holds all rows, perhaps among others."""
    known = _best(cache, rows, signatures, name)
    if known is None:
        return None
    missing = np.flatnonzero(known.match < 0)
    if len(missing) and known.name != name:
        return None
    again = {int(k): rows.load(int(k)) for k in missing}  # they failed for a passing reason: is it over?
    failed = {k: error.reason for k, error in again.items() if isinstance(error, UnreadableError)}
    return known.view(failed) if len(failed) == len(missing) else None


def _best(cache: Cache, rows: Decoding, signatures: np.ndarray, name: str) -> _Known | None:
    """Of the whole stores of this form, the one called `name`, or the one that has most of the rows."""
    best, most = None, 0
    for entry in sorted(cache.entries(), key=lambda entry: entry.name != name):
        if entry.about.get("form") != _form(rows.spec):
            continue
        try:
            match = lookup(read_index(entry.path).signatures, signatures)
            count = len(match) if entry.name == name else int((match >= 0).sum())
            if count > most and cache.find(entry.name) is not None:
                best, most = _Known(_open(entry, rows.spec), match, entry.name), count
        except (OSError, ValueError):
            continue  # damaged, or gone since
        if most == len(signatures):
            break
    return best


def _open(entry: Entry, spec: RowSpec) -> PixelStore:
    index = read_index(entry.path)
    data = map_rows(entry.path)
    path = entry.path / ROWS
    return PixelStore(data, index.offsets(spec.channels), index.shapes, spec.channels, index.failed, path)


def _build(cache: Cache, rows: Decoding, signatures: np.ndarray, name: str) -> PixelStore:
    """Decode into an entry of the cache, going on where an earlier try stopped. Hold the lock."""
    known = _best(cache, rows, signatures, name)
    keep = () if known is None else (known.name,)
    with cache.building(name) as folder:
        with RowWriter(folder, rows.spec.channels) as writer:
            allowed = max(rows.estimate(), writer.bytes)
            cache.room(name, allowed - writer.bytes, keep)
            for row in rows.each(writer.done, None if known is None else known.get):
                writer.append(row)
                if writer.bytes > allowed:  # the estimate was low
                    cache.room(name, allowed // 8, keep)
                    allowed += allowed // 8
            checksums = writer.finish()
            write_index(folder, writer.index(signatures))
        entry = cache.commit(name, {"form": _form(rows.spec), "rows": len(signatures)}, checksums)
    return _open(entry, rows.spec)


def _stream(cache: Cache, rows: Decoding, signatures: np.ndarray, name: str, note: str, hashed: bool) -> StreamedRows:
    """Decode every image once to find the unreadable ones; keep that verdict for the next run."""
    with cache.lock(name):
        if cache.find(name) is None:
            index = _verdict(rows, signatures)
            with suppress(OverBudgetError), cache.building(name) as folder:
                cache.room(name, 64 * len(signatures))
                write_index(folder, index)
                cache.commit(name, {"form": ["verdict", *_form(rows.spec)], "rows": len(signatures)})
        else:
            index = read_index(cache.root / name)
    for k in [k for k in index.failed if index.signatures[k] == 0]:  # is the passing reason over?
        if not isinstance(row := rows.load(k), UnreadableError):
            index.shapes[k] = row.shape[:2]
            del index.failed[k]
    return StreamedRows(rows, index.shapes, index.failed, note, name, None if hashed else signatures)


def _verdict(rows: Decoding, signatures: np.ndarray) -> Index:
    index = Index(np.zeros((len(signatures), 2), np.int32), signatures.copy(), {})
    for k, row in enumerate(rows.each()):
        if isinstance(row, UnreadableError):
            index.failed[k] = row.reason
            index.signatures[k] *= not row.passing
        else:
            index.shapes[k] = row.shape[:2]
    return index


def _in_memory(rows: Decoding) -> PixelStore:
    data, failed = io.BytesIO(), {}
    shapes = np.zeros((len(rows.indices), 2), np.int32)
    for k, row in enumerate(rows.each()):
        if isinstance(row, UnreadableError):
            failed[k] = row.reason
        else:
            shapes[k] = row.shape[:2]
            data.write(np.ascontiguousarray(row).data)
    channels = rows.spec.channels
    offsets = Index(shapes, np.zeros(len(shapes), np.uint64), failed).offsets(channels)
    return PixelStore(np.frombuffer(data.getbuffer(), np.uint8), offsets, shapes, channels, failed)


def _form(spec: RowSpec) -> list[Any]:
    """What two stores must share so that one's rows serve the other; as JSON gives it back."""
    return ["pixels", DECODE_VERSION, *astuple(spec)]


def lookup(theirs: np.ndarray, ours: np.ndarray) -> np.ndarray:
    """(n,) int64: where each of our signatures is among theirs, or -1."""
    if not len(theirs):
        return np.full(len(ours), -1, np.int64)
    order = np.argsort(theirs, kind="stable")
    at = order[np.searchsorted(theirs, ours, sorter=order).clip(max=len(theirs) - 1)]
    return np.where((theirs[at] == ours) & (ours != 0), at, -1)
