"""A value that is computed in the background until it is needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Ahead(Generic[Value]):
    """Calls `make()` in a thread of its own."""

    def __init__(self, make: Callable[[], Value]):
        self.make = make
        self.outcome: list[Value | BaseException] = []
        self.thread = threading.Thread(target=self._work, name="linnaeus-ahead", daemon=True)
        self.thread.start()

    def _work(self) -> None:
        try:
            self.outcome.append(self.make())
        except BaseException as error:
            self.outcome.append(error)

    def result(self) -> Value:
        """Wait for the value, or raise what `make` has raised."""
        self.thread.join()
        outcome = self.outcome[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome
