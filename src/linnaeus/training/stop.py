"""Ctrl-C and SIGTERM: a run ends between two steps, where it can be written down; anywhere else, at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from linnaeus.errors import JobError


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it some seconds before they kill."""


class StoppedError(JobError):
    """The run was stopped by SIGTERM. Its exit status is that of a process that a SIGTERM ended: 128 + 15."""

    status = 143


class Stop:
    """Somebody's wish that the run should end."""

    def __init__(self) -> None:
        self.wanted: int | None = None
        """The signal that came."""
        self.patient = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C and SIGTERM. Only the main thread can, and only what nobody else has taken is taken."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        ours = [number for number, old in before.items() if old in (signal.SIG_DFL, signal.default_int_handler)]
        for number in ours:
            signal.signal(number, self._handle)
        try:
            yield
        finally:
            for number in ours:
                signal.signal(number, before[number])

    @contextmanager
    def between_steps(self) -> Iterator[None]:
        """Meanwhile the first signal leaves a wish, `wanted`; a second one ends the run at once."""
        self.patient = True
        try:
            yield
        finally:
            self.patient = False

    def end(self, number: int | None) -> None:
        """End the run by a signal, if there is one: the wish of this process, or of another one."""
        if number is not None:
            self.wanted = None
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.patient and self.wanted is None:
            self.wanted = number
        else:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
