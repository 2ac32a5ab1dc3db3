"""What tells a file from another one at the same path, without reading it."""

from __future__ import annotations

import os

CHANGED = "was changed or replaced while it was read; run the command again"


def version_of(status: os.stat_result) -> tuple[int, ...]:
    """Length, times and inode of a file, which differ once it was changed, replaced or exchanged for another one.

    Length and time of modification are not enough: `cp -p`, `rsync -t` and `touch -d` set the time, and images without
    compression have one length. The time of change (on Windows: of creation) cannot be set, and the inode tells files
    apart that were exchanged by renaming. In return, `chmod`, a new hard link or a backup that restores the time of
    access make a file another one, and so does a copy of it on another machine: it is read again, to the same result.
    """
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino


def is_same(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two versions are of the same content, read by one process: the time of change alone, which a new hard
    link or `chmod` sets, must not stop it."""
    return (*one[:2], one[3]) == (*other[:2], other[3])
