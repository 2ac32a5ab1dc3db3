"""Freed memory stays with the process inside a block and is given back after the last one."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from linnaeus import device as heap
from linnaeus.device import steady_heap

glibc = pytest.mark.skipif(heap._glibc() is None, reason="the C library is not glibc")

TOOLS = """
import resource
import threading
from pathlib import Path

import torch

from linnaeus.device import steady_heap

MEGABYTES = 128
PAGES = MEGABYTES * 1024 * 1024 // resource.getpagesize()


def faults(turns=4):
    # Pages that had to be fetched while a block was taken, written and freed, after it was often enough before: the
    # allocator keeps the first seven small rests of aligned blocks to itself, so that each time a new one is taken.
    for _ in range(20):
        torch.zeros(MEGABYTES * 1024 * 256).fill_(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        torch.zeros(MEGABYTES * 1024 * 256).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
"""


def run(code: str) -> None:
    """In a process of its own: what a heap looks like depends on all that happened in it before."""
    done = subprocess.run(
        [sys.executable, "-c", TOOLS + textwrap.dedent(code)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


@glibc
def test_a_freed_block_is_used_again_only_inside() -> None:
    run(
        """
        assert faults() > 3 * PAGES
        with steady_heap():
            assert faults() < PAGES // 2
            held = resident()
        assert resident() < held - PAGES // 2
        """
    )


@glibc
def test_the_last_block_gives_the_memory_back() -> None:
    """Nested, in threads, and left by an exception."""
    run(
        """
        inner, outer = threading.Event(), threading.Event()

        def other():
            with steady_heap():
                inner.set()
                outer.wait(60)

        thread = threading.Thread(target=other)
        with steady_heap():
            try:
                with steady_heap():
                    raise RuntimeError
            except RuntimeError:
                pass
            assert faults() < PAGES // 2
            thread.start()
            assert inner.wait(60)
        assert faults() < PAGES // 2
        held = resident()
        outer.set()
        thread.join()
        assert resident() < held - PAGES // 2
        """
    )


def test_without_glibc_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "_glibc", lambda: None)
    before = heap._holders
    with steady_heap():
        assert heap._holders == before + 1
    assert heap._holders == before
