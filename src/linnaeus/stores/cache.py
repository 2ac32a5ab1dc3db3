"""A folder of entries that are built once, used by many runs, and thrown away oldest first.

An entry is a folder `<kind>-<key>` of data files and a header. It is built in `<name>.partial` and renamed when whole,
so it is either there or not. Processes that want the same entry at once wait for each other. The header carries its
own checksum, and the length, time and checksum of every file, so that a cut or altered entry is not used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linnaeus.errors import UserError
from linnaeus.files import FULL, acquire, crc32_of, sync

if TYPE_CHECKING:
    from filelock import BaseFileLock

HEADER = "header.json"
FORMAT = 1
_PARTIAL = ".partial"
_LOCKS = ".locks"
_TRASH = ".trash-"
_RESERVE = 64 << 20  # bytes of the disk that a build leaves free, so that logs and checkpoints still fit


class OverBudgetError(Exception):
    """An entry would not fit the cache's budget, even with all others gone. The caller streams instead."""


@dataclass(frozen=True)
class Entry:
    """What the cache holds under one name."""

    name: str
    path: Path
    bytes: int
    used: float
    """Time of the last use, in seconds since 1970."""
    about: dict[str, Any]
    """What its builder wrote about it; empty for an unfinished or damaged entry."""
    unfinished: bool = False


class Cache:
    """Entries under `root`, together at most `budget` bytes. The folder is made on first use."""

    def __init__(self, root: Path, budget: int):
        self.root = Path(root)
        self.budget = budget

    def find(self, name: str) -> Entry | None:
        """The entry, if it is whole, marked as used now."""
        path = self.root / _checked(name)
        header = _read_header(path)
        if header is None or not all(_is_whole(path / file, found) for file, found in header["files"].items()):
            return None
        with suppress(OSError):  # a cache that others own may be read-only
            os.utime(path / HEADER)
        return Entry(name, path, _size(path), time.time(), header["about"])

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Keep other threads and processes out of `name`, waiting until they are done. Released when a process dies."""
        lock = self._acquire(name, wait=True)
        assert lock is not None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """The folder to build `name` in, with what an earlier try left there. Hold the lock.

        A full disk, or budget, removes the folder; anything else that goes wrong leaves it for the next try.
        Raises UserError where the disk is full.
        """
        partial = self.root / (_checked(name) + _PARTIAL)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            yield partial
        except (OverBudgetError, UserError):
            self.discard(name)
            raise
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.discard(name)
            raise self._disk_is_full() from None

    def commit(self, name: str, about: Mapping[str, Any], crc32: Mapping[str, int] | None = None) -> Entry:
        """Turn the folder of `building` into the entry: whole on the disk, or not at all. Replaces one of that name.

        `about` is JSON that `find` and `entries` give back. `crc32` saves reading the files whose checksum is known.
        """
        partial, path = self.root / (_checked(name) + _PARTIAL), self.root / name
        files = {}
        for file in sorted(partial.iterdir()):
            if file.name != HEADER:
                sync(file)
                known = (crc32 or {}).get(file.name)
                found = file.stat()
                checksum = crc32_of(file) if known is None else known
                files[file.name] = {"bytes": found.st_size, "mtime_ns": found.st_mtime_ns, "crc32": checksum}
        text = json.dumps({"format": FORMAT, "files": files, "about": dict(about)}, ensure_ascii=False)
        header = partial / HEADER
        header.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf-8")
        sync(header)
        self._remove(path)
        partial.rename(path)
        sync(self.root)
        return Entry(name, path, _size(path), time.time(), dict(about))

    def discard(self, name: str) -> None:
        """Throw away what `building` has of `name`."""
        shutil.rmtree(self.root / (_checked(name) + _PARTIAL), ignore_errors=True)

    def room(self, name: str, needed: int, keep: Collection[str] = ()) -> None:
        """Make room for `needed` more bytes of `name`: throw the least recently used away, but none of `keep`.

        Raises OverBudgetError where the budget is too small for it, and UserError where the disk is.
        """
        entries = self.entries()
        held = sum(entry.bytes for entry in entries)
        fixed = sum(entry.bytes for entry in entries if entry.name in keep or entry.name == name)
        if fixed + needed > self.budget:
            raise OverBudgetError(f"{fixed + needed:,} bytes are over the cache's budget of {self.budget:,}")
        if self._free() + held - fixed < needed + _RESERVE:
            raise self._disk_is_full(needed)  # before anything is thrown away for nothing
        for trash in self.root.glob(f"{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        for entry in sorted(entries, key=lambda entry: entry.used):
            if held + needed <= self.budget and self._free() >= needed + _RESERVE:
                return
            if entry.name != name and entry.name not in keep and self._evict(entry):
                held -= entry.bytes
        if self._free() < needed + _RESERVE:
            raise self._disk_is_full(needed)
        if held + needed > self.budget:
            raise OverBudgetError(f"{held + needed:,} bytes are over the cache's budget of {self.budget:,}")

    def entries(self) -> list[Entry]:
        """Everything in the cache, the most recently used first. Files are not checked, only headers."""
        found = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            name = path.name.removesuffix(_PARTIAL)
            if not _NAME.fullmatch(name) or not path.is_dir():
                continue
            unfinished = path.name.endswith(_PARTIAL)
            header = None if unfinished else _read_header(path)
            try:
                used = (path if header is None else path / HEADER).stat().st_mtime
            except OSError:
                continue  # gone since
            found.append(Entry(name, path, _size(path), used, {} if header is None else header["about"], unfinished))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Throw everything away, except what is being built right now. Returns the bytes freed."""
        freed = sum(entry.bytes for entry in self.entries() if self._evict(entry))
        for trash in self.root.glob(f"{_TRASH}*"):
            shutil.rmtree(trash, ignore_errors=True)
        return freed

    def _evict(self, entry: Entry) -> bool:
        """Remove an entry, unless somebody is building it. A process that has it open keeps its data (POSIX)."""
        try:
            lock = self._acquire(entry.name, wait=False)
            if lock is None:
                return False
            try:
                self._remove(entry.path)
                return not entry.path.exists()
            finally:
                lock.release()
        except OSError:
            return False

    def _remove(self, path: Path) -> None:
        """Rename, then delete: nobody sees half an entry."""
        if path.exists():
            trash = self.root / f"{_TRASH}{path.name}-{os.getpid()}-{time.monotonic_ns()}"
            with suppress(FileNotFoundError):
                path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _acquire(self, name: str, *, wait: bool) -> BaseFileLock | None:
        # Lock files stay: removing one while another process waits for it would let two in.
        path = self.root / _LOCKS / _checked(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return acquire(path, wait=wait)
        except OSError as error:
            if error.errno in FULL:
                raise self._disk_is_full() from None
            raise UserError(
                f"{self.root}: the cache cannot be written ({error.strerror}); set LINNAEUS_CACHE to another folder"
            ) from None

    def _free(self) -> int:
        return shutil.disk_usage(self.root).free

    def _disk_is_full(self, needed: int = 0) -> UserError:
        what = f"the disk is too full for {needed / 1e9:.1f} GB more" if needed else "the disk is full"
        return UserError(
            f"{self.root}: {what}; free some, run `linnaeus data cache --clear`, or set LINNAEUS_CACHE to another disk"
        )


_NAME = re.compile(r"[a-z]+-[0-9a-f]{8,64}")


def _checked(name: str) -> str:
    assert _NAME.fullmatch(name), f"{name!r} is not <kind>-<hex key>"
    return name


def _read_header(path: Path) -> dict[str, Any] | None:
    """What the header says, or None where it is missing, damaged or of another version."""
    try:
        checksum, _, text = (path / HEADER).read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            return None
        header = json.loads(text)
    except (OSError, ValueError):
        return None
    return header if header.get("format") == FORMAT else None


def known_checksum(file: Path) -> int | None:
    """The CRC-32 of a file of an entry, as its header has it; None where there is no such header."""
    header = _read_header(file.parent)
    return None if header is None or file.name not in header["files"] else int(header["files"][file.name]["crc32"])


def _is_whole(file: Path, expected: dict[str, int]) -> bool:
    """Length and time are compared at every use; the contents only where the time differs, as after a copy."""
    try:
        found = file.stat()
        if found.st_size != expected["bytes"]:
            return False
        return found.st_mtime_ns == expected["mtime_ns"] or crc32_of(file) == expected["crc32"]
    except OSError:
        return False


def _size(path: Path) -> int:
    total = 0
    with suppress(OSError):  # it may go away under us
        for file in path.iterdir():
            total += file.stat().st_size
    return total
