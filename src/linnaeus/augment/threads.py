"""Divide the samples of a batch among threads, instead of using threads inside each operation.

An operation on one image takes some 50 microseconds: too little to be worth sharing, and where other programs use the
cores as well, threads that wait for one another after each operation made augmentation 30 times slower.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Lock
from typing import TypeVar

import torch

T = TypeVar("T")

_pools: dict[int, ThreadPoolExecutor] = {}
_lock = Lock()
if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=_pools.clear)  # threads do not survive a fork


def share(items: Sequence[T], work: Callable[[Sequence[T]], None], threads: int) -> None:
    """Call `work` on parts of `items`, one part per thread; in this thread if there is only one part.

    An exception in any part is raised here, after all have ended.
    """
    threads = min(threads, len(items))
    if threads <= 1:
        work(items)
        return
    inference = torch.is_inference_mode_enabled()  # inference mode is thread-local

    def part(i: int) -> None:
        with torch.inference_mode(inference):
            work(items[i::threads])

    tasks = [_pool(threads).submit(part, i) for i in range(threads)]
    errors = [error for task in tasks if (error := task.exception())]
    if errors:
        raise errors[0]


def _pool(threads: int) -> ThreadPoolExecutor:
    """A pool whose threads run each torch operation on a single thread."""
    with _lock:
        if threads in _pools:
            return _pools[threads]
        before = torch.get_num_threads()
        started = Barrier(threads + 1)

        def start() -> None:
            torch.set_num_threads(1)  # also changes the default of threads that start later
            started.wait()

        pool = ThreadPoolExecutor(threads, thread_name_prefix="augment", initializer=start)
        for _ in range(threads):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(before)  # restores that default
        _pools[threads] = pool
        return pool
