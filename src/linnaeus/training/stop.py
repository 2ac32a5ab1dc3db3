"""Ctrl-C, SIGTERM, SIGHUP and SIGXCPU: training stops after a step with a checkpoint, other commands stop at once."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from linnaeus.errors import JobError

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU") if hasattr(signal, name))
"""Ctrl-C; what batch systems send some seconds before they kill a process; what a terminal sends when it is closed; the
soft limit of processor time (`ulimit -S -t`)."""


A_MOMENT = 0.05  # seconds after which a signal that was dropped is raised again


class Terminated(KeyboardInterrupt):
    """SIGTERM, SIGHUP or SIGXCPU."""

    def __init__(self, number: int = signal.SIGTERM):
        super().__init__()
        self.number = number


class StoppedError(JobError):
    """The run was stopped by a signal. The exit status is that of a process that the signal ended."""

    def __init__(self, number: int, message: str):
        super().__init__(message)
        self.number = number
        self.status = status_of(number)


def status_of(number: int) -> int:
    """The exit status that a shell shows for a process that signal `number` ended: 130, 143, 129 or 152."""
    return 128 + number


class StopSignals:
    """Signals that ask this run to stop."""

    def __init__(self) -> None:
        self.pending: int | None = None  # number of the signal that arrived and has not been obeyed
        self.deferred = False  # whether the first signal is only noted, so that the run can stop between two steps
        self.raised: int | None = None  # number of the signal that was raised as an exception and has not been handled

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle these signals in this block.

        Only the main thread can, and handlers that the calling program has installed stay.

        A signal that arrives while a library runs Python code from C or Rust can come out of it as another exception:
        safetensors reports a file that is cut short. Any exception that follows a signal is that signal.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, hook = {number: signal.getsignal(number) for number in STOPPING}, sys.unraisablehook
        # A program that handles the signal itself keeps its handler.
        unhandled = [number for number, old in before.items() if _is_default(old)]
        for number in unhandled:
            signal.signal(number, self._handle)
        sys.unraisablehook = lambda unraisable: self._repeat() if self._is_lost(unraisable) else hook(unraisable)
        try:
            yield
        except Exception as error:
            if self.raised is None or isinstance(error, StoppedError):  # which says so itself
                raise
            raise _exception(self.raised) from error
        finally:
            sys.unraisablehook = hook
            for number in unhandled:
                signal.signal(number, before[number])

    @contextmanager
    def deferring(self) -> Iterator[None]:
        """In this block the first signal only sets `pending`; a second one ends the run at once."""
        self.deferred = True
        try:
            yield
        finally:
            self.deferred = False

    def obey(self, number: int | None) -> None:
        """End the run by signal `number`, which this or another process received; None does nothing."""
        if number is not None:
            self.pending = None
            raise _exception(number)

    def _is_lost(self, unraisable: sys.UnraisableHookArgs) -> bool:
        """Whether the exception of a signal was dropped, as Python does in destructors and callbacks from C."""
        return self.raised is not None and isinstance(unraisable.exc_value, KeyboardInterrupt)

    def _repeat(self) -> None:
        """Raise the last signal again, a moment later: here the exception would be dropped once more."""
        number, self.raised = self.raised, None
        assert number is not None
        timer = threading.Timer(A_MOMENT, _thread.interrupt_main, (number,))
        timer.daemon = True
        timer.start()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == getattr(signal, "SIGXCPU", None):
            _allow_the_rest()
        if self.deferred and self.pending is None:
            self.pending = number
        else:
            self.raised = number
            raise _exception(number)


def _allow_the_rest() -> None:
    """Raise the soft limit of processor time to the hard one: the signal would be repeated while this process ends."""
    import resource  # absent on Windows, as the signal is

    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))


def _exception(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)


def _is_default(handler: object) -> bool:
    """Whether a signal handler is Python's own, or that of an enclosing `listening`."""
    return handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(
        getattr(handler, "__self__", None), StopSignals
    )
