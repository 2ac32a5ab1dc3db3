"""Archives as folders: the names in a zip or tar are checked and indexed once, and its files are read by their offset.

A file in an archive has a path like any other, `photos.zip/rose/1.jpg`, which `tree.py` leads here. None is unpacked,
so that no name in an archive can lead anywhere. A compressed tar, which cannot be read at random, is decompressed into
the cache first, as one tar (unpacking.py).
"""

from __future__ import annotations

import bz2
import os
import re
import stat
import weakref
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from linnaeus.data.archives.tar import Member, safe_members
from linnaeus.data.archives.unpacking import COMPRESSED, discard, unpacked
from linnaeus.data.archives.zipindex import BZIP2, DEFLATED, LOCAL_HEADER, data_offset, zip_entries
from linnaeus.data.version import CHANGED, is_same, version_of
from linnaeus.errors import UserError, visible

SUFFIXES = (".zip", ".tar", *COMPRESSED)
MOST_ENTRIES = 2_000_000  # more files make the index take over 1 GB of memory
MOST_BYTES = 1 << 30  # of one file; as of an image
LONGEST_NAME = 4096


class MemberError(UserError):
    """A file in an archive that is damaged; `reason` is the message without its path."""

    def __init__(self, path: str, reason: str):
        super().__init__(f"{path}: {reason}")
        self.reason = reason


@dataclass(eq=False)
class Archive:
    """The files of an archive by name; rows of the arrays are in the order of the archive."""

    place: str  # absolute path of the archive
    data: str  # the file that holds the bytes: the archive, or the tar that it was decompressed to
    stamp: tuple[int, ...]  # version of `data`; reading fails once it differs
    rows: np.ndarray  # (n,) of ROW
    position: dict[str, int]  # name of a file -> its row
    folders: dict[str, list[str]]  # name of a folder ("" for the top) -> the names in it, sorted
    notes: list[str] = field(default_factory=list)
    # `data`, where it is a copy in the cache: open, it keeps its bytes when the cache evicts it.
    copy: BinaryIO | None = None

    def stat(self, name: str) -> os.stat_result:
        """What os.stat says of a file; its time is its checksum, or that of the archive's version where it has none.

        Raises FileNotFoundError.
        """
        if name in self.folders:
            number = hash(name) & 0xFFFF_FFFF_FFFF
            return os.stat_result(
                (stat.S_IFDIR | 0o555, number, -1, 1, 0, 0, 0, 0, 0, 0), {"st_mtime_ns": 0, "st_ctime_ns": 0}
            )
        row = self.rows[self._row(name)]
        version = int(row["crc32"]) if row["crc32"] >= 0 else zlib.crc32(repr(self.stamp).encode())
        values = (stat.S_IFREG | 0o444, 0, -1, 1, 0, 0, int(row["size"]), 0, 0, 0)
        return os.stat_result(values, {"st_mtime_ns": version, "st_ctime_ns": 0})

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises FileNotFoundError, and MemberError if they are damaged."""
        row, path = self.rows[self._row(name)], os.path.join(self.place, name)
        if row["size"] > MOST_BYTES:
            raise MemberError(path, f"too large: {row['size']:,} bytes (at most {MOST_BYTES:,})")
        if self.copy is not None and hasattr(os, "pread"):  # elsewhere an open file cannot be removed
            return _decompressed(path, os.pread(self.copy.fileno(), int(row["packed"]), int(row["offset"])), row)
        with open(self.data, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            # Offsets of the index would point into other bytes once the file has been rewritten.
            if not is_same(version_of(status), self.stamp):
                raise UserError(f"{self.data}: {CHANGED}")
            offset = int(row["offset"])
            if row["method"] != IN_TAR:
                # The local header may have another length than the entry of the directory: extra fields differ.
                file.seek(offset)
                offset += data_offset(path, file.read(LOCAL_HEADER))
            file.seek(offset)
            packed = file.read(int(row["packed"]))
        return _decompressed(path, packed, row)

    def _row(self, name: str) -> int:
        try:
            return self.position[name]
        except KeyError:
            raise FileNotFoundError(2, os.strerror(2), os.path.join(self.place, name)) from None


ROW = np.dtype([("offset", "<i8"), ("packed", "<i8"), ("size", "<i8"), ("crc32", "<i8"), ("method", "i1")])
IN_TAR = -1  # the method of files in a tar


def _decompressed(path: str, packed: bytes, row: np.void) -> bytes:
    size, method = int(row["size"]), int(row["method"])
    if len(packed) != row["packed"]:
        raise MemberError(path, "truncated: the archive ends inside it")
    try:
        if method == DEFLATED:
            # One byte more than the directory states shows a size that is too small, without inflating a whole bomb.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, size + 1)
        elif method == BZIP2:
            data = bz2.BZ2Decompressor().decompress(packed, size + 1)
        else:
            data = packed
    except (zlib.error, OSError, EOFError, ValueError) as error:
        raise MemberError(path, f"damaged in the archive ({error})") from None
    # A negative checksum stands for none: tar files have no checksum of the content.
    if len(data) != size or (row["crc32"] >= 0 and zlib.crc32(data) != row["crc32"]):
        raise MemberError(path, "damaged in the archive: its bytes do not match their checksum")
    return data


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether the path names an archive, by its suffix, that is a file."""
    return os.fspath(path).lower().endswith(SUFFIXES) and os.path.isfile(path)


_PART = re.compile(rf"(?:{'|'.join(map(re.escape, SUFFIXES))})(?=[\\/]|$)", re.IGNORECASE)
_opened: dict[str, tuple[tuple[int, ...], Archive]] = {}


def find(path: str) -> tuple[Archive, str] | None:
    """The archive that a path leads into, and the name in it ("" for the archive itself); None for other paths."""
    if _PART.search(path) is None:
        return None
    path = os.path.abspath(path)
    for match in _PART.finditer(path):
        place, name = path[: match.end()], path[match.end() + 1 :].replace(os.sep, "/")
        if name and place in _opened:
            return _unchanged(place), name
        if os.path.isfile(place):
            return open_archive(place), name
    return None


def _unchanged(place: str) -> Archive:
    """An archive that is open. Raises UserError, once, if its file is another one by now: a table read from the old
    one would get its images from the new one."""
    with suppress(OSError):
        if is_same(version_of(os.stat(place)), _opened[place][0]):
            return open_archive(place)
    _opened.pop(place, None)
    raise UserError(f"{place}: {CHANGED}")


def open_archive(place: str) -> Archive:
    """The index of an archive, made once for each process as long as the file stays the same.

    Raises UserError if it is damaged, encrypted, or holds names that lead out of it.
    """
    place = os.path.abspath(place)
    try:
        status = os.stat(place)
        stamp = version_of(status)
        known = _opened.get(place)
        if known is None or known[0] != stamp:
            known = _opened[place] = (stamp, _indexed(place, stamp))
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); check the path and its permissions") from None
    return known[1]


def _indexed(place: str, stamp: tuple[int, ...]) -> Archive:
    if place.lower().endswith(".zip"):
        return _index(place, place, stamp, zip_entries(place, MOST_ENTRIES))
    # An uncompressed tar has random access as it is; a compressed one is decompressed into the cache first.
    if not place.lower().endswith(COMPRESSED):
        with open(place, "rb") as file:
            return _index_tar(place, place, stamp, file)
    copy = unpacked(place)
    try:
        status = os.fstat(copy.fileno())
        archive = _index_tar(place, copy.name, version_of(status), copy)
    except BaseException:
        # On Windows an open file cannot be removed, so the copy must not stay open after a failure.
        copy.close()
        discard(copy.name)
        raise
    archive.notes.insert(
        0, f"{place}: read from its decompressed copy in the cache, {copy.name} ({status.st_size / 1e6:,.0f} MB)"
    )
    archive.copy = copy
    weakref.finalize(archive, copy.close)
    return archive


def _index_tar(place: str, data: str, stamp: tuple[int, ...], file: BinaryIO) -> Archive:
    entries = (
        Member(m.name, m.offset_data, m.size, m.size, is_folder=m.isdir())
        for m in safe_members(place, file, "the archive")
        if not m.isdir() or m.name.strip("./")
    )
    return _index(place, data, stamp, entries)


def _index(place: str, data: str, stamp: tuple[int, ...], entries: Iterator[Member]) -> Archive:
    """Check and index the files of an archive. Raises UserError for names that are no names of files in a folder."""
    position: dict[str, int] = {}
    folders: dict[str, set[str]] = {"": set()}
    values = []
    legacy = []
    for entry in entries:
        name = _checked(place, entry.name)
        if name in position:
            raise UserError(f"{place}: holds {visible(name)!r} twice; which one is meant is ambiguous: pack it again")
        # Folders count too: a zip of a million empty folders would fill the memory as well.
        if len(position) + len(folders) > MOST_ENTRIES:
            raise UserError(f"{place}: holds more than {MOST_ENTRIES:,} files; unpack it, and give its folder")
        if entry.is_folder:
            folders.setdefault(name, set())
        else:
            position[name] = len(position)
            values.append((entry.offset, entry.packed, entry.size, entry.crc32, entry.method))
        if entry.is_legacy:
            legacy.append(name)
        while name:  # the folders above it; most often the first is known already
            above, _, last = name.rpartition("/")
            names = folders.setdefault(above, set())
            if last in names:
                break
            names.add(last)
            name = above
    # A name that is both would shadow its files, and no file system can hold it.
    both = sorted(position.keys() & folders.keys())
    if both:
        raise UserError(f"{place}: {visible(both[0])!r} is both a file and a folder in the archive; pack it again")
    by_name = {name: sorted(names) for name, names in folders.items()}
    notes = [*_encoding_note(place, legacy), *_case_note(place, position)]
    return Archive(place, data, stamp, np.array(values, ROW), position, by_name, notes)


def _checked(place: str, name: str) -> str:
    """The name of a file in an archive without `./`. Raises UserError for one that could lead out of a folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:[\\\\/]", name) or not parts:
        raise UserError(
            f"{place}: member {visible(name)[:200]!r} has a path that leads out of the archive; pack it again"
        )
    if "\0" in name or len(name) > LONGEST_NAME:
        raise UserError(f"{place}: member {visible(name)[:200]!r} has a name that no file can have; pack it again")
    return "/".join(parts)


def _encoding_note(place: str, names: list[str]) -> list[str]:
    if not names:
        return []
    return [
        f"{Path(place).name}: the encoding of {len(names)} names is not recorded, such as {visible(names[0])!r}; if "
        "they look wrong, pack the folder again with UTF-8 names (7-Zip: -mcu=on)"
    ]


def _case_note(place: str, position: dict[str, int]) -> list[str]:
    """Names that are one file where letters have no case: unpacking there would lose images."""
    seen: dict[str, str] = {}
    clashes = []
    for name in position:
        other = seen.setdefault(name.casefold(), name)
        if other is not name:
            clashes.append((visible(other), visible(name)))
    if not clashes:
        return []
    one, other = clashes[0]
    return [
        f"{Path(place).name}: {len(clashes)} names differ from others only in capitals, such as {one!r} and {other!r}; "
        "all are read, but Windows and macOS would unpack only one of each"
    ]
