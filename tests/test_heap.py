"""Memory that stays with the process, and goes when nobody holds it."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest
import torch

from linnaeus import heap
from linnaeus.heap import steady_heap

glibc = pytest.mark.skipif(heap._glibc() is None, reason="the C library is not glibc")
MEGABYTES = 128
PAGES = MEGABYTES * 1024 * 1024 // resource.getpagesize()


def faults(turns: int = 4) -> int:
    """Pages that had to be fetched while a block was taken, written and freed, `turns` times, after as many before."""
    for _ in range(2 * turns):
        torch.zeros(MEGABYTES * 1024 * 256).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        torch.zeros(MEGABYTES * 1024 * 256).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


@glibc
def test_a_freed_block_is_used_again_only_inside() -> None:
    assert faults() > 3 * PAGES
    with steady_heap():
        assert faults() < PAGES // 2
        held = resident()
    assert resident() < held - PAGES // 2
    assert faults() > 3 * PAGES


@glibc
def test_the_last_one_gives_it_back() -> None:
    """Nested, in threads, and left by an exception."""
    inner, outer = threading.Event(), threading.Event()

    def other() -> None:
        with steady_heap():
            inner.set()
            outer.wait(30)

    thread = threading.Thread(target=other)
    with steady_heap():
        with pytest.raises(RuntimeError), steady_heap():
            raise RuntimeError
        assert faults() < PAGES // 2
        thread.start()
        inner.wait(30)
    assert faults() < PAGES // 2
    held = resident()
    outer.set()
    thread.join()
    assert resident() < held - PAGES // 2


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    with steady_heap():
        assert heap._holders == 1
    assert heap._holders == 0
