"""Memory that is freed and wanted again a moment later stays with the process.

glibc gives every block above 32 MB back to the system when it is freed, and takes it anew, page by page, when it is
wanted: for a network's maps, in every batch. On CPU that is a third of the time of ResNet-50, training and answering
(`docs/LOG.md` has the figures). It costs memory, in training a quarter: blocks of many sizes leave holes, and of
aligned ones, which torch's are, glibc's small caches keep up to seven from growing together again. Where there is no
glibc nothing happens here.
"""

from __future__ import annotations

import ctypes
import platform
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

# Parameters of mallopt(3).
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4

# What the two thresholds grow to by themselves in a process that frees blocks of 32 MB. They no longer move once they
# were set, so this is what is left behind.
LARGEST_MMAP_THRESHOLD = 32 << 20
GROWN_TRIM_THRESHOLD = 2 * LARGEST_MMAP_THRESHOLD

_lock = threading.Lock()
_holders = 0


@contextmanager
def steady_heap() -> Iterator[None]:
    """While it lasts, memory that is freed is kept for the next one who asks, whatever its size.

    May be nested and held by several threads: what the last one leaves is given back to the system at once.
    """
    _hold(1)
    try:
        yield
    finally:
        _hold(-1)


def _hold(change: int) -> None:
    global _holders
    with _lock:
        before, _holders = _holders, _holders + change
        if before == 0 or _holders == 0:
            _keep(_holders > 0)


def _keep(keep: bool) -> None:
    libc = _glibc()
    if libc is None:
        return
    if keep:
        libc.mallopt(TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(MMAP_MAX, 0)
    else:
        libc.mallopt(MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(TRIM_THRESHOLD, GROWN_TRIM_THRESHOLD)
        libc.mallopt(MMAP_MAX, 65536)
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    """The C library, where it is glibc and has what is needed; else None."""
    if platform.system() != "Linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None
