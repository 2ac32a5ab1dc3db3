"""Rows on disk: appended one by one, with a journal that says which are whole, then an index.

While it grows: `rows.bin`, `journal.bin` (16 bytes a row: height, width, CRC-32 of all rows so far, CRC-32 of these)
and `reasons.jsonl` for images that could not be read. When whole: `rows.bin`, `index.npy` and `failed.json`.
"""

from __future__ import annotations

import json
import struct
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from linnaeus.data.decode import UnreadableError

ROWS = "rows.bin"
INDEX = "index.npy"
FAILED = "failed.json"
_JOURNAL = "journal.bin"
_REASONS = "reasons.jsonl"
_RECORD = struct.Struct("<iiII")

INDEX_DTYPE = np.dtype([("height", "<i4"), ("width", "<i4"), ("signature", "<u8")])
"""A row of the index. The signature tells an image again; 0 fits none, so the image is tried again."""


@dataclass(frozen=True)
class Index:
    """What a finished store knows about its rows."""

    shapes: np.ndarray
    """(n, 2) int32: height and width"""
    signatures: np.ndarray
    """(n,) uint64"""
    failed: dict[int, str]

    def offsets(self, channels: int) -> np.ndarray:
        """(n,) int64: where each row starts."""
        sizes = self.shapes.prod(axis=1, dtype=np.int64) * channels
        return np.cumsum(sizes) - sizes


class RowWriter:
    """Rows appended to a folder. What an earlier try left there is checked and kept, up to the first bad byte."""

    def __init__(self, folder: Path, channels: int):
        self.folder = folder
        self.bytes = 0
        self.crc32 = 0
        self.failed: dict[int, str] = {}
        self.passing: set[int] = set()
        self._sizes = array("i")  # height, width, height, width, ...
        for name in (ROWS, _JOURNAL, _REASONS):
            (folder / name).touch()
        self._rows = (folder / ROWS).open("r+b")
        self._journal = (folder / _JOURNAL).open("r+b")
        self._reasons = (folder / _REASONS).open("r+b")
        self._recover(channels)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._rows, self._journal, self._reasons):
            file.close()

    @property
    def done(self) -> int:
        """Rows that are whole, failed ones included."""
        return len(self._sizes) // 2

    def append(self, row: np.ndarray | UnreadableError) -> None:
        """Add the next row, (h, w, C) uint8, or why there is none."""
        if isinstance(row, UnreadableError):
            self._note(row.reason, row.passing)
            line = json.dumps({"reason": row.reason, "passing": row.passing}).encode() + b"\n"
            _write(self._reasons, line)
            height, width, checksum = 0, 0, zlib.crc32(line)
        else:
            flat = np.ascontiguousarray(row).reshape(-1).data
            height, width = row.shape[:2]
            checksum = self.crc32 = zlib.crc32(flat, self.crc32)
            self.bytes += len(flat)
            _write(self._rows, flat)
        self._sizes.extend((height, width))
        head = struct.pack("<iiI", height, width, checksum)
        _write(self._journal, head + struct.pack("<I", zlib.crc32(head)))  # last, so that what it names is there

    def finish(self, signatures: np.ndarray) -> dict[str, int]:
        """Write the index and remove the journal. Returns the CRC-32 of the rows, by file name."""
        self.__exit__()
        known = signatures.copy()
        known[list(self.passing)] = 0
        shapes = np.array(self._sizes, dtype=np.int32).reshape(-1, 2)
        write_index(self.folder, Index(shapes, known, self.failed))
        for name in (_JOURNAL, _REASONS):
            (self.folder / name).unlink()
        return {ROWS: self.crc32}

    def _note(self, reason: str, passing: bool) -> None:
        self.failed[self.done] = reason
        if passing:
            self.passing.add(self.done)

    def _recover(self, channels: int) -> None:
        """Read what is there, and cut everything behind the last whole row."""
        while len(record := self._journal.read(_RECORD.size)) == _RECORD.size:
            height, width, checksum, own = _RECORD.unpack(record)
            if zlib.crc32(record[:-4]) != own:
                break
            if height == 0:
                line = self._reasons.readline()
                if zlib.crc32(line) != checksum:
                    break
                self._note(**json.loads(line))
            else:
                row = self._rows.read(height * width * channels)
                if len(row) != height * width * channels or zlib.crc32(row, self.crc32) != checksum:
                    break
                self.crc32 = checksum
                self.bytes += len(row)
            self._sizes.extend((height, width))
        whole = (
            (self._rows, self.bytes),
            (self._journal, self.done * _RECORD.size),
            (self._reasons, self._length_of_reasons()),
        )
        for file, length in whole:
            file.seek(length)
            file.truncate()

    def _length_of_reasons(self) -> int:
        self._reasons.seek(0)
        return sum(len(self._reasons.readline()) for _ in self.failed)


def write_index(folder: Path, index: Index) -> None:
    table = np.empty(len(index.shapes), INDEX_DTYPE)
    table["height"], table["width"], table["signature"] = index.shapes[:, 0], index.shapes[:, 1], index.signatures
    np.save(folder / INDEX, table)
    (folder / FAILED).write_text(json.dumps(index.failed, ensure_ascii=False), encoding="utf-8")


def read_index(folder: Path) -> Index:
    """Raises OSError or ValueError where it is not whole."""
    table = np.load(folder / INDEX)
    if table.dtype != INDEX_DTYPE:
        raise ValueError(f"{folder / INDEX}: {table.dtype}")
    shapes = np.stack([table["height"], table["width"]], axis=1).astype(np.int32)
    failed = json.loads((folder / FAILED).read_text(encoding="utf-8"))
    return Index(shapes, table["signature"].astype(np.uint64), {int(row): reason for row, reason in failed.items()})


def map_rows(folder: Path) -> np.ndarray:
    """(bytes,) uint8, read-only and memory-mapped."""
    path = folder / ROWS
    return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)


def _write(file: BinaryIO, data: bytes | memoryview) -> None:
    """To the system at once: what was written survives this process."""
    file.write(data)
    file.flush()
