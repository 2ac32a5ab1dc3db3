"""Processes that decode images for the server.

Pillow holds the interpreter while it decodes JPEG2000 (0.4 s a megapixel), and reads chunks, markers and tags in Python
(seconds for a file of 30 MB of them). In the process of the server, every client would wait for it.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from linnaeus.serve.decoder import read_message, write_message

NICE = 10  # of the process for images that take long
# One thread, and freed memory goes back to the system.
ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
}

_lock = threading.Lock()
_idle = defaultdict[int, "list[DecoderProcess]"](list)


class DecoderProcess:
    """A process that decodes one image after the other. It ends with this one, however this one ends."""

    def __init__(self, nice: int):
        # The same modules as here; -P, because -m would search the current folder first.
        path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
        command = [sys.executable, "-P", "-m", "linnaeus.serve.decoder", str(nice)]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
        # In a session of its own: Ctrl-C and a closed terminal reach the server alone, which has requests to answer.
        with _terminal_signals_blocked():
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._requests, self._answers = self.process.stdin, self.process.stdout

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def ask(self, request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
        """The answer to a request. Raises EOFError if the process ends instead."""
        with suppress(BrokenPipeError):
            write_message(self._requests, request, data)
        answer = read_message(self._answers)
        if answer is None:
            raise EOFError
        return answer

    def stop(self) -> None:
        self.process.kill()
        with suppress(BrokenPipeError):
            self.process.communicate()


@contextmanager
def decoder_process(nice: int) -> Iterator[DecoderProcess]:
    """An idle process of this priority, or a new one. It ends if the block fails."""
    with _lock:
        idle = [process for process in _idle.pop(nice, []) if process.running]
        process = idle.pop() if idle else None
        _idle[nice] += idle
    process = process or DecoderProcess(nice)
    try:
        yield process
    except BaseException:
        process.stop()
        raise
    with _lock:
        _idle[nice].append(process)


@contextmanager
def _terminal_signals_blocked() -> Iterator[None]:
    """A process started in the block never gets the signals of the terminal, not even before its session is its own."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@atexit.register
def stop_idle_processes() -> None:
    with _lock:
        for process in (process for processes in _idle.values() for process in processes):
            process.stop()
        _idle.clear()
