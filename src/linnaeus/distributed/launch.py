"""`--devices N`: start N processes of this command on this machine, and end them all when one fails.

torchrun does the same across machines. Here there is one machine, so that a port of its own and `waitpid` suffice.
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
from types import FrameType
from typing import IO

from linnaeus.distributed.environment import PARENT
from linnaeus.errors import LostError

GRACE = 10.0
"""Seconds that the others have to end by themselves when one has failed; then they are asked, then killed."""
POLL = 0.1
SHOWN = 30  # last lines of what a process that failed had to say


def launch(count: int, arguments: Sequence[str], advice: str) -> int:
    """Run `linnaeus ARGUMENTS` in `count` processes. Returns the exit status: that of the first which failed.

    The first process has this one's streams. What others write is shown if they are the ones that fail. `advice`: what
    to do where the system ended one.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each(count))), PARENT: str(os.getpid()),
    }  # fmt: skip
    children: list[subprocess.Popen[bytes]] = []
    said: list[IO[bytes] | None] = []
    asked: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        _signal(children, number)

    # Children have sessions of their own: Ctrl-C reaches them by us alone, and once.
    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(count):
            output = tempfile.TemporaryFile() if rank else None  # noqa: SIM115 - closed with the process
            said.append(output)
            env = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "linnaeus", *arguments]
            given = subprocess.DEVNULL if rank else None
            child = subprocess.Popen(
                command, env=env, stdin=given, stdout=output, stderr=output, start_new_session=True
            )
            children.append(child)
        failed = _wait(children)
    finally:
        _signal(children, signal.SIGKILL)
        for child in children:
            child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0 if failed is None else _explain(failed, children, said[failed], None if asked else advice)


def threads_each(count: int) -> int:
    """Threads of computation for each of `count` processes that share this machine's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // count)


def _wait(children: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all; which one failed by itself, or None. When one has, the others are brought to an end."""
    failed: list[int] = []  # in the order in which they were seen, as long as nobody was asked to end
    since, asked = 0.0, False
    while True:
        running = [child for child in children if child.poll() is None]
        if not asked:
            failed += [i for i, child in enumerate(children) if child.returncode and i not in failed]
        if not running:
            # One that only noticed that another was gone, or repeats what another said, has nothing to tell.
            own = [i for i in failed if children[i].returncode != LostError.status]
            return next(iter(own or failed), None)
        if failed:
            since = since or time.monotonic()
            waited = time.monotonic() - since
            if waited > 2 * GRACE:
                _signal(children, signal.SIGKILL)
            elif waited > GRACE and not asked:
                asked = True
                _signal(children, signal.SIGTERM)
        time.sleep(POLL)


def _signal(children: list[subprocess.Popen[bytes]], number: int) -> None:
    for child in children:
        if child.poll() is None:
            child.send_signal(number)


def _explain(rank: int, children: list[subprocess.Popen[bytes]], said: IO[bytes] | None, advice: str | None) -> int:
    """Say which process failed and what it had to say; the exit status. No `advice`: it was asked to end."""
    code, many = children[rank].returncode, len(children)
    if code < 0 and advice is not None:
        why = "the system may have been out of memory; " if code == -signal.SIGKILL else ""
        name = signal.Signals(-code).name
        print(f"error: process {rank} of {many} was ended by {name}; {why}{advice}", file=sys.stderr)
    if said is not None and children[0].returncode != code:  # else the first one has said the same
        said.seek(0)
        lines = said.read().decode(errors="replace").splitlines()[-SHOWN:]
        for line in lines:
            print(f"process {rank} of {many}: {line}", file=sys.stderr)
    return code if code > 0 else 1
