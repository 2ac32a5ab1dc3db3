"""Files and folders as readers see them: on the disk, or in an archive, whose path stands for a folder.

The functions behave as those of `os`, and cost no more for files on the disk: an archive is looked for only where the
operating system finds nothing.
"""

from __future__ import annotations

import io
import os
import stat as modes
from dataclasses import dataclass
from typing import Any

from linnaeus.data.archives.archive import find
from linnaeus.data.version import version_of

Place = str | os.PathLike[str]
NOT_THERE = (NotADirectoryError, FileNotFoundError)  # the second on Windows


@dataclass(frozen=True)
class Entry:
    """A file or folder in an archive, as os.scandir gives those on the disk."""

    name: str
    path: str
    folder: bool

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self.folder

    def is_file(self) -> bool:
        return not self.folder

    def is_symlink(self) -> bool:
        return False


def stat(path: Place) -> os.stat_result:
    """As os.stat. For a file in an archive st_mtime_ns is its checksum, where the archive has one."""
    try:
        return os.stat(path)
    except NOT_THERE:
        place = find(os.fspath(path))
        if place is None:
            raise
        return place[0].stat(place[1])


def version(path: Place) -> tuple[int, ...]:
    """Differs once a file was changed, replaced or exchanged for another. Raises OSError where there is none."""
    return version_of(stat(path))


def is_file(path: Place) -> bool:
    try:
        return modes.S_ISREG(stat(path).st_mode)
    except (OSError, ValueError):
        return False


def is_folder(path: Place) -> bool:
    """Whether a path is a folder, on the disk or in an archive; an archive itself is a file."""
    try:
        return modes.S_ISDIR(stat(path).st_mode)
    except (OSError, ValueError):
        return False


def size(path: Place) -> int:
    """Bytes, or -1 for a file that is not there."""
    try:
        return stat(path).st_size
    except (OSError, ValueError):
        return -1


def open_binary(path: Place) -> io.BufferedReader | io.BytesIO:
    try:
        return io.BufferedReader(io.FileIO(path), 1 << 16)
    except NOT_THERE:
        place = find(os.fspath(path))
        if place is None:
            raise
        return io.BytesIO(place[0].read(place[1]))


def read(path: Place) -> bytes:
    with open_binary(path) as file:
        return file.read()


def scan(path: Place) -> list[Any]:
    """The entries of a folder, or at the top of an archive: os.DirEntry, or Entry, sorted by name."""
    try:
        with os.scandir(path) as entries:
            return sorted(entries, key=_name)
    except NOT_THERE:
        # Only where the file system knows nothing, a path may lead into an archive.
        place = find(os.fspath(path))
        if place is None or place[1] not in place[0].folders:
            raise
        archive, name = place
        inside = f"{name}/" if name else ""
        return [
            Entry(entry, os.path.join(path, entry), inside + entry in archive.folders)
            for entry in archive.folders[name]
        ]


def _name(entry: Any) -> str:
    return entry.name


def names(path: Place) -> set[str]:
    """The names in a folder, or at the top of an archive."""
    return {entry.name for entry in scan(path)}


def is_reachable(path: Place, folder: Place) -> bool:
    """Whether a list in `folder` may name `path`: one in an archive, which a stranger may have made, only its files."""
    place = find(os.fspath(folder))
    if place is None:
        return True
    return os.path.abspath(path).startswith(place[0].place + os.sep)
