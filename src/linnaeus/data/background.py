"""A value that is computed in the background until it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Value = TypeVar("Value")


def ahead(make: Callable[[], Value]) -> Future[Value]:
    """Call `make()` in a thread of its own, which does not keep the process alive as that of an executor does."""
    future: Future[Value] = Future()

    def work() -> None:
        try:
            future.set_result(make())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="linnaeus-ahead", daemon=True).start()
    return future
