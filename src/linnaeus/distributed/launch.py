"""`--devices N`: start N processes of this command on this machine, and end all of them when one fails.

`torchrun` starts processes on several machines. On one machine it is not used because it ends the other processes the
moment one fails, often before rank 0 has printed the error, and because it replaces the exit status and prints a
traceback of its own. Here every process has time to report, and the command keeps its exit status.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import FrameType
from typing import IO

from linnaeus.console import echo_error
from linnaeus.device import available_cores
from linnaeus.distributed.environment import PARENT
from linnaeus.errors import LostError, UserError

GRACE = 10.0
"""Seconds that the remaining processes have to end by themselves after one has failed, before SIGTERM; after as many
more seconds they are killed."""
MOST_PROCESSES = 16  # processes of one machine that may exceed its cores: one for each GPU of the largest machines
KILL = getattr(signal, "SIGKILL", signal.SIGTERM)
"""Ends a process at once. Windows has no SIGKILL: there SIGTERM does, as `Popen.terminate`."""
_FORWARDED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
PAUSE, CONTINUE = (getattr(signal, name, None) for name in ("SIGTSTP", "SIGCONT"))
"""Ctrl-Z and its end; Windows has neither."""
POLL_INTERVAL = 0.1  # seconds between two looks at the processes
SHOWN_LINES = 30  # lines of output that are shown of a failed process


@dataclass
class Child:
    """One started process, and the file that holds its output; rank 0 writes to the streams of this process."""

    process: subprocess.Popen[bytes]
    output: IO[bytes] | None


def launch(count: int, arguments: Sequence[str], advice: str) -> int:
    """Run `linnaeus ARGUMENTS` in `count` processes and return the exit status of the first that failed, or 0.

    The output of ranks above 0 is shown only if they fail. `advice` says what to do after a process was killed.
    Raises UserError for so many processes that they would take the memory of the machine.
    """
    most = max(MOST_PROCESSES, available_cores())
    if count > most:
        raise UserError(f"--devices {count}: at most {most} processes run on this machine; give the number of its GPUs")
    environment = _shared_environment(count)
    children: list[Child] = []
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        _signal(children, number)
        if CONTINUE is not None:  # a process that was stopped would not see it, and the others would wait
            _signal(children, CONTINUE)

    def pause(number: int, frame: FrameType | None) -> None:
        _signal(children, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        _signal(children, signal.SIGCONT)

    # The children run in sessions of their own, so that Ctrl-C reaches each exactly once, through this process.
    # What is ignored, as under nohup, stays ignored.
    handling = {**dict.fromkeys(_FORWARDED, forward), **({} if PAUSE is None else {PAUSE: pause})}
    wanted = [number for number in handling if signal.getsignal(number) != signal.SIG_IGN]
    handlers = {number: signal.signal(number, handling[number]) for number in wanted}
    try:
        for rank in range(count):
            if received:
                # Again, because the last process may have been started while it arrived.
                _signal(children, received[0])
                break
            children.append(_start(rank, arguments, environment))
        failed = _wait(children)
    finally:
        # Whoever is left when one has failed would wait for it forever.
        _signal(children, KILL)
        for child in children:
            child.process.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if received and len(children) < count:
        return 128 + received[0]
    # After a signal of the user no advice is needed.
    return 0 if failed is None else _report_failure(failed, children, None if received else advice)


def threads_per_process(count: int) -> int:
    """Number of compute threads for each of `count` processes that share the cores of this machine."""
    return max(1, available_cores() // count)


def _shared_environment(count: int) -> dict[str, str]:
    """The variables that torchrun sets, with a free port on this machine, and the number of threads."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_per_process(count))),
        PARENT: str(os.getpid()),
        **({"USE_LIBUV": "0"} if os.name == "nt" else {}),  # torch is built without libuv for Windows
    }


def _start(rank: int, arguments: Sequence[str], environment: dict[str, str]) -> Child:
    output = tempfile.TemporaryFile() if rank else None  # noqa: SIM115 - closed with the process
    process = subprocess.Popen(
        [sys.executable, "-m", "linnaeus", *arguments],
        env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        stdin=subprocess.DEVNULL if rank else None,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    return Child(process, output)


def _wait(children: list[Child]) -> int | None:
    """Wait until all processes have ended; return the rank of the one that failed first, or None."""
    failed: list[int] = []  # in the order of failing; a process that ends after our SIGTERM has not failed
    first_failure, terminated = 0.0, False
    while True:
        running = [child for child in children if child.process.poll() is None]
        if not terminated:
            failed += [rank for rank, child in enumerate(children) if child.process.returncode and rank not in failed]
        if not running:
            # A process that only lost its peer, or repeats the error of another, has nothing to report.
            causes = [rank for rank in failed if children[rank].process.returncode != LostError.status]
            return next(iter(causes or failed), None)
        if failed:
            first_failure = first_failure or time.monotonic()
            waited = time.monotonic() - first_failure
            if waited > 2 * GRACE:
                _signal(children, KILL)
            elif waited > GRACE and not terminated:
                terminated = True
                _signal(children, signal.SIGTERM)
        time.sleep(POLL_INTERVAL)


def _signal(children: list[Child], number: int) -> None:
    if os.name == "nt" and number == signal.SIGINT:
        return  # the console has sent Ctrl-C to every process, and Popen cannot
    for child in children:
        if child.process.poll() is None:
            child.process.send_signal(number)


def _report_failure(rank: int, children: list[Child], advice: str | None) -> int:
    """Print which process failed and the end of its output; return the exit status of the command.

    `advice` is None if the processes ended because this command received a signal.
    """
    status, count, output = children[rank].process.returncode, len(children), children[rank].output
    if status < 0 and advice is not None:
        reason = "the machine may have run out of memory; " if status == -KILL else ""
        name = signal.Signals(-status).name
        echo_error(f"error: process {rank} of {count} was ended by {name}; {reason}{advice}")
    # If rank 0 ended with the same status it has already printed the same error.
    if output is not None and children[0].process.returncode != status:
        output.seek(0)
        for line in output.read().decode(errors="replace").splitlines()[-SHOWN_LINES:]:
            echo_error(f"process {rank} of {count}: {line}")
    if status < 0 and advice is None:
        return 128 - status  # of a process that had not yet begun to handle signals
    return status if status > 0 else 1
