"""The disk format of stores: rows in one file, appended with a journal while the store is built, then an index.

While a store is built: `rows.bin`, `journal.bin` (16 bytes a row: height, width, CRC-32 of all rows so far, CRC-32 of
these three) and `reasons.jsonl` for images that cannot be read. A finished pixel store has `rows.bin`, `index.npy`,
`failed.json` and `checksums.npy`, which earlier versions did not write; a finished activation store has `rows.bin`
alone, and appends a chunk of its rows as one row.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO

import numpy as np

from linnaeus.data.images.decode import UnreadableError
from linnaeus.errors import JobError

ROWS = "rows.bin"
INDEX = "index.npy"
FAILED = "failed.json"
CHECKSUMS = "checksums.npy"
JOURNAL = "journal.bin"
_REASONS = "reasons.jsonl"
_RECORD = struct.Struct("<iiII")

INDEX_DTYPE = np.dtype([("height", "<i4"), ("width", "<i4"), ("signature", "<u8")])
"""A row of the index. The signature identifies the image; 0 matches no image, so this one is decoded again."""


@dataclass(frozen=True)
class Index:
    """The shapes, signatures and failures of the rows of a finished pixel store."""

    shapes: np.ndarray  # (n, 2) int32: height and width
    signatures: np.ndarray  # (n,) uint64
    failed: dict[int, str]  # row -> why the image could not be read
    # (n,) uint32: CRC-32 of all rows up to and including each; None in stores of earlier versions
    checksums: np.ndarray | None = None

    def offsets(self, channels: int) -> np.ndarray:
        """(n,) int64: the byte at which each row starts."""
        sizes = self.shapes.prod(axis=1, dtype=np.int64) * channels
        return np.cumsum(sizes) - sizes


class RowWriter:
    """Appends rows to a folder. The rows that an interrupted build left there are checked, and the sound ones kept."""

    def __init__(self, folder: Path, channels: int):
        self.folder = folder
        self.bytes = 0
        self.crc32 = 0
        self.failed: dict[int, str] = {}
        self.temporary: set[int] = set()
        """Failed rows whose reason may go away, such as a network file system that does not answer."""
        self._sizes = array("i")  # height, width, height, width, ...
        self._checksums = array("I")
        for name in (ROWS, JOURNAL, _REASONS):
            (folder / name).touch()
        self._rows = (folder / ROWS).open("r+b")
        self._journal = (folder / JOURNAL).open("r+b")
        self._reasons = (folder / _REASONS).open("r+b")
        self._recover(channels)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._rows, self._journal, self._reasons):
            file.close()

    @property
    def shapes(self) -> np.ndarray:
        """(done, 2) int32: height and width of each row; 0, 0 for a failed one."""
        return np.array(self._sizes, dtype=np.int32).reshape(-1, 2)

    @property
    def done(self) -> int:
        """Number of complete rows, failed ones included."""
        return len(self._sizes) // 2

    def append(self, row: np.ndarray | UnreadableError) -> None:
        """Append the next row, (h, w, C) uint8, or the reason why its image cannot be read."""
        if isinstance(row, UnreadableError):
            self._add_failure(row.reason, row.passing)
            line = json.dumps({"reason": row.reason, "passing": row.passing}).encode() + b"\n"
            _write(self._reasons, line)
            height, width, checksum = 0, 0, zlib.crc32(line)
        else:
            flat = np.ascontiguousarray(row).reshape(-1).data
            height, width = row.shape[:2]
            # The checksum runs over the whole file, so a cut-off row is noticed.
            checksum = self.crc32 = zlib.crc32(flat, self.crc32)
            self.bytes += len(flat)
            _write(self._rows, flat)
        self._sizes.extend((height, width))
        self._checksums.append(self.crc32)
        head = struct.pack("<iiI", height, width, checksum)
        # The record comes last: a process that is killed before it leaves a row that the next build cuts off.
        _write(self._journal, head + struct.pack("<I", zlib.crc32(head)))

    def index(self, signatures: np.ndarray, passing: Sequence[int] = ()) -> Index:
        """The index of the rows, given the (n,) uint64 signatures of their images. No later run uses rows `passing`."""
        known = signatures.copy()
        known[[*self.temporary, *passing]] = 0
        return Index(self.shapes, known, self.failed, np.array(self._checksums, np.uint32))

    def finish(self) -> dict[str, int]:
        """Close the files and remove the journal. Returns the CRC-32 of the rows, by file name."""
        self.__exit__()
        for name in (JOURNAL, _REASONS):
            (self.folder / name).unlink()
        return {ROWS: self.crc32}

    def _add_failure(self, reason: str, passing: bool) -> None:
        self.failed[self.done] = reason
        if passing:
            self.temporary.add(self.done)

    def _recover(self, channels: int) -> None:
        """Check the rows of an interrupted build and cut off everything after the last sound one."""
        while len(record := self._journal.read(_RECORD.size)) == _RECORD.size:
            height, width, checksum, record_checksum = _RECORD.unpack(record)
            if zlib.crc32(record[:-4]) != record_checksum:
                break
            # A height of 0 stands for an image that cannot be read.
            if height == 0:
                line = self._reasons.readline()
                if zlib.crc32(line) != checksum:
                    break
                self._add_failure(**json.loads(line))
            else:
                row = self._rows.read(height * width * channels)
                if len(row) != height * width * channels or zlib.crc32(row, self.crc32) != checksum:
                    break
                self.crc32 = checksum
                self.bytes += len(row)
            self._sizes.extend((height, width))
            self._checksums.append(self.crc32)
        sound_lengths = (
            (self._rows, self.bytes),
            (self._journal, self.done * _RECORD.size),
            (self._reasons, self._length_of_reasons()),
        )
        for file, length in sound_lengths:
            file.seek(length)
            file.truncate()

    def _length_of_reasons(self) -> int:
        self._reasons.seek(0)
        return sum(len(self._reasons.readline()) for _ in self.failed)


def write_index(folder: Path, index: Index) -> None:
    table = np.empty(len(index.shapes), INDEX_DTYPE)
    table["height"], table["width"], table["signature"] = index.shapes[:, 0], index.shapes[:, 1], index.signatures
    save_array(folder / INDEX, table)
    if index.checksums is not None:
        save_array(folder / CHECKSUMS, index.checksums)
    (folder / FAILED).write_text(json.dumps(index.failed, ensure_ascii=False), encoding="utf-8")


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array as `numpy.save` does. Raises OSError if the disk does not take all of it.

    Given a file, numpy writes with C's buffered functions and ignores the error of the last flush.
    """
    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array)


def read_index(folder: Path) -> Index:
    """Read what `write_index` wrote. Raises OSError or ValueError if a file is missing or damaged."""
    table = np.load(folder / INDEX)
    if table.dtype != INDEX_DTYPE:
        raise ValueError(f"{folder / INDEX}: {table.dtype}")
    shapes = np.stack([table["height"], table["width"]], axis=1).astype(np.int32)
    failed = json.loads((folder / FAILED).read_text(encoding="utf-8"))
    checksums = np.load(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else None
    if checksums is not None and (checksums.dtype != np.uint32 or checksums.shape != (len(shapes),)):
        raise ValueError(f"{folder / CHECKSUMS}: {checksums.dtype} {checksums.shape}")
    known = {int(row): reason for row, reason in failed.items()}
    return Index(shapes, table["signature"].astype(np.uint64), known, checksums)


class DamagedRowError(JobError):
    """A row on the disk is not the one that was written, and cannot be made again."""


def extends(before: int, row: np.ndarray) -> int:
    """CRC-32 of all rows up to `row`, from that of the rows before it."""
    return zlib.crc32(np.ascontiguousarray(row).reshape(-1).data, before)


class RowGuard:
    """Compares each row with its checksum when it is first read: a disk may change bytes and keep a file's time."""

    def __init__(
        self, before: np.ndarray, after: np.ndarray, restore: Callable[[int], np.ndarray | None] | None = None
    ):
        """CRC-32 of all rows before and up to each row, (n,) uint32. `restore` makes a row again from its image."""
        self.before, self.after, self.restore = before, after, restore
        self._sound = np.zeros(len(after), bool)

    @classmethod
    def of(cls, index: Index) -> RowGuard | None:
        """The guard of a whole store; None without checksums."""
        if index.checksums is None:
            return None
        return cls(
            np.concatenate([np.zeros(1, np.uint32), index.checksums[:-1]])[: len(index.checksums)], index.checksums
        )

    def matches(self, i: int, row: np.ndarray) -> bool:
        """Whether row i is the one that was written."""
        return extends(int(self.before[i]), row) == int(self.after[i])

    def checked(self, i: int, row: np.ndarray, path: Path | None) -> np.ndarray:
        """The row, or where it is damaged the one that `restore` makes. Raises DamagedRowError without one."""
        if not self._sound[i]:
            if not self.matches(i, row):
                again = None if self.restore is None else self.restore(i)
                if again is None or not self.matches(i, again):
                    raise DamagedRowError(
                        f"{path}: row {i} was damaged on the disk, and its image no longer gives the same pixels; "
                        "remove the store with `linnaeus data cache --clear` and start again"
                    )
                row = again
            self._sound[i] = True
        return row


def rewrite(path: Path, offset: int, row: np.ndarray) -> None:
    """Put a row back where it was, and keep the file's time, by which the cache knows it. A shared cache may refuse."""
    with suppress(OSError):
        status = path.stat()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(row).reshape(-1).data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def map_rows(folder: Path) -> np.ndarray:
    """(bytes,) uint8, read-only and memory-mapped."""
    path = folder / ROWS
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


class PositionedReader:
    """Reads a file by position, without mapping its pages into this process.

    A page of a memory-mapped file counts as this process's memory once it was read; with pread() it does not.
    """

    def __init__(self, path: Path):
        self._path, self._file = path, path.open("rb", buffering=0)

    def read(self, out: np.ndarray, offset: int) -> None:
        """Fill the contiguous array `out` from byte `offset` on."""
        count = os.preadv(self._file.fileno(), [out.reshape(-1).view(np.uint8).data], offset)  # type: ignore[attr-defined, unused-ignore]
        assert count == out.nbytes, f"{self._path}: cut short while in use"


def open_reader(path: Path | None) -> PositionedReader | None:
    """A reader of the file; None without a file, and where the system has no pread()."""
    return PositionedReader(path) if path is not None and hasattr(os, "preadv") else None


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    """Hand the data to the operating system at once: it survives the death of this process."""
    file.write(data)
    file.flush()
