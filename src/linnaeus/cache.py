"""The cache: a folder of entries that are built once, shared by runs, and evicted least recently used first.

An entry is a folder `<kind>-<key>` of data files and a header. It is built in `<name>.partial` and renamed once it is
complete, so no other process sees half an entry. Processes that need the same entry at once wait for each other. The
header has its own checksum, and the length, time and checksum of every file. A process compares each file with its
checksum before the first use, since a failing disk may change bytes and keep the time: damaged entries are not used.
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

from linnaeus.console import Console
from linnaeus.environment import cache_budget, cache_dir
from linnaeus.errors import DiskError, UserError
from linnaeus.files import FULL, acquire, crc32_of, explained, sync

if TYPE_CHECKING:
    from filelock import BaseFileLock

HEADER = "header.json"
FORMAT = 1
_PARTIAL = ".partial"
_LOCKS = ".locks"
_TRASH = ".trash-"
_RESERVE = 64 << 20  # bytes of the disk that a build leaves free for logs and checkpoints


class OverBudgetError(UserError):
    """An entry does not fit the cache's budget even after all others are evicted. The caller streams instead."""


@dataclass(frozen=True)
class Entry:
    """One entry of the cache."""

    name: str
    path: Path
    bytes: int
    used: float  # time of the last use, in seconds since 1970
    # The description that its builder passed to `commit`; empty for an unfinished or damaged entry.
    about: dict[str, Any]
    unfinished: bool = False


def default_cache() -> Cache:
    """The user's cache: below LINNAEUS_CACHE or the system's folder for caches, at most LINNAEUS_CACHE_GB (50)."""
    return Cache(cache_dir() / "stores", cache_budget())


class Cache:
    """Entries under `root`, at most `budget` bytes in total. The folder is created on first use."""

    def __init__(self, root: Path, budget: int):
        self.root = Path(root)
        self.budget = budget

    def find(self, name: str, by_row: Collection[str] = ()) -> Entry | None:
        """The entry, marked as used now; None where it is missing or damaged, which a warning says.

        The files `by_row` are not read here unless their time differs: whoever reads their rows checks each.
        """
        path = self.root / _checked(name)
        header = _read_header(path)
        if header is None:
            return None
        for file, expected in header["files"].items():
            if not _is_intact(path / file, expected, file in by_row):
                if (path / file).is_file():  # otherwise another process has removed it
                    Console().warn(
                        f"{path / file}: damaged on the disk; the store is ignored and built again when needed"
                    )
                    self.remove(Entry(name, path, 0, 0.0, {}))
                return None
        with suppress(OSError):  # a shared cache may be read-only
            os.utime(path / HEADER)
        return Entry(name, path, _size(path), time.time(), header["about"])

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold the lock of `name`, waiting for other threads and processes. A process that dies releases it."""
        lock = self._acquire(name, wait=True)
        assert lock is not None
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """The folder to build `name` in, with the files that an interrupted build left there. Hold the lock.

        If the disk or the budget is full, the folder is removed; after any other error it stays for the next build.
        Raises DiskError if the disk is full, fails, or the cache was removed meanwhile.
        """
        partial = self.root / (_checked(name) + _PARTIAL)
        try:
            partial.mkdir(parents=True, exist_ok=True)
            yield partial
        except UserError:
            self.discard(name)
            raise
        except OSError as error:
            if error.errno not in FULL:
                removed = DiskError(f"{self.root}: was removed while it was in use; run the command again")
                raise (explained(error, partial) if partial.exists() else removed) from None
            self.discard(name)
            raise self._disk_is_full() from None

    def commit(self, name: str, about: Mapping[str, Any], crc32: Mapping[str, int] | None = None) -> Entry:
        """Turn the folder of `building` into the entry, atomically and durably, replacing an entry of that name.

        `about` is JSON that `find` and `entries` return. `crc32` has the known checksums, by file name; other files
        are read to compute theirs.
        """
        partial, path = self.root / (_checked(name) + _PARTIAL), self.root / name
        files = {}
        for file in sorted(partial.iterdir()):
            if file.name != HEADER:
                sync(file)
                known = crc32 or {}
                checksum = known[file.name] if file.name in known else crc32_of(file)
                status = file.stat()
                files[file.name] = {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "crc32": checksum}
                _seen.add(_state(status))  # nothing to compare with: it was written just now
        text = json.dumps({"format": FORMAT, "files": files, "about": dict(about)}, ensure_ascii=False)
        header = partial / HEADER
        header.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}", encoding="utf-8")
        sync(header)
        self._remove(path)
        partial.rename(path)
        sync(self.root)
        return Entry(name, path, _size(path), time.time(), dict(about))

    def discard(self, name: str) -> None:
        """Remove the unfinished build of `name`."""
        shutil.rmtree(self.root / (_checked(name) + _PARTIAL), ignore_errors=True)

    def room(self, name: str, needed: int, keep: Collection[str] = ()) -> None:
        """Make room for `needed` more bytes of `name`: evict the least recently used entries, but none of `keep`.

        Raises OverBudgetError if the budget is too small, and DiskError if the disk is.
        """
        entries = self.entries()
        used = sum(entry.bytes for entry in entries)
        fixed = sum(entry.bytes for entry in entries if entry.name in keep or entry.name == name)
        if fixed + needed > self.budget:
            raise OverBudgetError(f"{fixed + needed:,} bytes exceed the cache's budget of {self.budget:,}")
        if self._free() + used - fixed < needed + _RESERVE:
            raise self._disk_is_full(needed)  # before entries are evicted in vain
        self.remove_trash()
        for entry in sorted(entries, key=lambda entry: entry.used):
            if used + needed <= self.budget and self._free() >= needed + _RESERVE:
                return
            if entry.name != name and entry.name not in keep and self.remove(entry):
                used -= entry.bytes
        if self._free() < needed + _RESERVE:
            raise self._disk_is_full(needed)
        if used + needed > self.budget:
            raise OverBudgetError(f"{used + needed:,} bytes exceed the cache's budget of {self.budget:,}")

    def entries(self) -> list[Entry]:
        """All entries, the most recently used first. Only headers are checked, not files."""
        entries = []
        for path in self.root.iterdir() if self.root.is_dir() else ():
            name = path.name.removesuffix(_PARTIAL)
            if not _NAME.fullmatch(name) or not path.is_dir():
                continue
            unfinished = path.name.endswith(_PARTIAL)
            header = None if unfinished else _read_header(path)
            with suppress(OSError):  # removed meanwhile
                used = (path if header is None else path / HEADER).stat().st_mtime
                entries.append(Entry(name, path, _size(path), used, (header or {}).get("about", {}), unfinished))
        return sorted(entries, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Remove all entries except those that are being built. Returns the bytes freed."""
        freed = sum(entry.bytes for entry in self.entries() if self.remove(entry))
        self.remove_trash()
        return freed

    def remove_trash(self) -> list[Path]:
        """Delete entries that were removed while a process died or had their files open. Returns those that stay."""
        trash = list(self.root.glob(f"{_TRASH}*"))
        for path in trash:
            shutil.rmtree(path, ignore_errors=True)
        return [path for path in trash if path.exists()]

    def remove(self, entry: Entry) -> bool:
        """Remove an entry, unless a process is building it. A process that has it open keeps its data (POSIX)."""
        with suppress(OSError):
            lock = self._acquire(entry.name, wait=False)
            if lock is not None:
                try:
                    self._remove(entry.path)
                    return not entry.path.exists()
                finally:
                    lock.release()
        return False

    def _remove(self, path: Path) -> None:
        """Rename, then delete, so that no other process sees half an entry."""
        if path.exists():
            trash = self.root / f"{_TRASH}{path.name}-{os.getpid()}-{time.monotonic_ns()}"
            with suppress(FileNotFoundError):
                path.rename(trash)
            shutil.rmtree(trash, ignore_errors=True)

    def _acquire(self, name: str, *, wait: bool) -> BaseFileLock | None:
        # Lock files stay: they are empty, and most names are locked again.
        path = self.root / _LOCKS / _checked(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return acquire(path, wait=wait)
        except OSError as error:
            if error.errno in FULL:
                raise self._disk_is_full() from None
            raise DiskError(
                f"{self.root}: the cache cannot be written ({error.strerror}); set LINNAEUS_CACHE to another folder"
            ) from None

    def _free(self) -> int:
        self.root.mkdir(parents=True, exist_ok=True)  # somebody may have removed it by hand
        return shutil.disk_usage(self.root).free

    def _disk_is_full(self, needed: int = 0) -> DiskError:
        problem = f"the disk has no room for {(needed + _RESERVE) / 1e9:.1f} GB more" if needed else "the disk is full"
        return DiskError(
            f"{self.root}: {problem}; free some space, run `linnaeus data cache --clear`, or set LINNAEUS_CACHE to a "
            "folder on another disk"
        )


_NAME = re.compile(r"[a-z]+-[0-9a-f]{8,64}")


def _checked(name: str) -> str:
    assert _NAME.fullmatch(name), f"{name!r} is not <kind>-<hex key>"
    return name


def _read_header(path: Path) -> dict[str, Any] | None:
    """The content of the header; None where it is missing, damaged or of another format."""
    try:
        checksum, _, text = (path / HEADER).read_text(encoding="utf-8").partition("\n")
        if hashlib.sha256(text.encode()).hexdigest() != checksum:
            return None
        header = json.loads(text)
    except (OSError, ValueError):
        return None
    return header if header.get("format") == FORMAT else None


def known_checksum(file: Path) -> int | None:
    """The CRC-32 of a file of an entry, from the header; None where there is no valid header."""
    header = _read_header(file.parent)
    return None if header is None or file.name not in header["files"] else int(header["files"][file.name]["crc32"])


_seen: set[tuple[int, ...]] = set()  # the files whose content this process has compared with their checksums


def _state(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def _is_intact(file: Path, expected: dict[str, int], by_row: bool) -> bool:
    """Whether a file is as it was committed; `by_row`: its content is read only if its time differs, as in a copy."""
    try:
        status = file.stat()
        if status.st_size != expected["bytes"]:
            return False
        if _state(status) in _seen or (by_row and status.st_mtime_ns == expected["mtime_ns"]):
            return True
        if crc32_of(file) != expected["crc32"]:
            return False
        _seen.add(_state(status))
        return True
    except OSError:
        return False


def _size(path: Path) -> int:
    total = 0
    with suppress(OSError):  # another process may remove it
        for file in path.iterdir():
            total += file.stat().st_size
    return total
