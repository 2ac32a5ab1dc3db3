"""Keep freed memory in the process instead of returning it to the operating system.

glibc returns every freed block above 32 MB and maps it again, page by page, at the next allocation: for the feature
maps of a network, in every batch. On CPU that takes a third of the time of ResNet-50, in training and inference
(`docs/LOG.md` has the measurements). Keeping the memory costs up to a quarter more of it in training, since blocks of
many sizes leave holes. Without glibc this module does nothing.
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

# The values that both thresholds reach by themselves in a process that frees blocks of 32 MB. Once set, they no longer
# adapt, so these are the values to leave behind.
LARGEST_MMAP_THRESHOLD = 32 << 20
GROWN_TRIM_THRESHOLD = 2 * LARGEST_MMAP_THRESHOLD

_lock = threading.Lock()
_holders = 0


@contextmanager
def steady_heap() -> Iterator[None]:
    """Inside the block, freed memory of any size is kept for the next allocation.

    Blocks may be nested and held by several threads; when the last one ends, free memory is returned to the system.
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
    """The C library if it is glibc with the needed functions; else None."""
    if platform.system() != "Linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if all(hasattr(libc, name) for name in ("gnu_get_libc_version", "mallopt", "malloc_trim")) else None
