"""Call functions of third-party libraries that may never return, with a time limit."""

from __future__ import annotations

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any


class TimeLimit:
    """Runs calls in a separate thread, one at a time, and stops waiting for a call that exceeds the time limit.

    The thread is then abandoned: it is a daemon, so that it does not delay the end of the process.
    """

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # One thread and one context: trackers keep their current run in either.
        self._context = contextvars.copy_context()
        threading.Thread(target=self._work, name="linnaeus-tracker", daemon=True).start()

    def call(self, act: Callable[[], Any]) -> Any:
        """The result of `act`, or its exception. Raises TimeoutError when it takes longer than `seconds`."""
        outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                outcome.put((self._context.run(act), None))
            except BaseException as error:
                outcome.put((None, error))

        self._calls.put(run)
        try:
            result, error = outcome.get(timeout=self.seconds)
        except queue.Empty:
            raise TimeoutError(f"no answer within {self.seconds:g} seconds") from None
        if error is not None:
            raise error
        return result

    def _work(self) -> None:
        while True:
            self._calls.get()()
