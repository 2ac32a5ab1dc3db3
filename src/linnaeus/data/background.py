"""Compute values in background threads before they are needed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Value = TypeVar("Value")
Progress = Callable[[int, int], None]  # progress(done, total)
PER_THREAD = 4  # values in work at once: they keep the threads busy, and more would only take memory


def in_background(make: Callable[[], Value]) -> Future[Value]:
    """Call `make()` in a thread of its own, which does not keep the process alive as that of an executor does."""
    future: Future[Value] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="linnaeus-ahead", daemon=True).start()
    return future


def ordered_map(
    compute: Callable[[int], Value],
    start: int,
    total: int,
    threads: int,
    progress: Progress | None = None,
    *,
    most: int | None = None,
) -> Iterator[Value]:
    """Yield compute(start) … compute(total - 1) in order, computed by threads a little ahead of the consumer.

    At most `most` values, by default PER_THREAD for each thread, are computed or waiting. Closing the iterator early
    ends the threads.
    """
    upcoming = iter(range(start, total))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="linnaeus-ahead")
    pending: deque[Future[Value]] = deque()
    try:
        pending.extend(pool.submit(compute, k) for k in islice(upcoming, most or PER_THREAD * threads))
        for done in range(start + 1, total + 1):
            yield pending.popleft().result()
            pending.extend(pool.submit(compute, k) for k in islice(upcoming, 1))
            if progress is not None:
                progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
