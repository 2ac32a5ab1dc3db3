"""Faults in system calls: a fork of this process runs under strace, which kills it or makes one of its calls fail.

strace sees what the libraries do as well, whatever language they are written in. Calls are counted in the main thread,
which does all the writing.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from forking import fork

CALLS = (
    *("openat", "write", "pwrite64", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("mkdir", "mkdirat", "rmdir", "chmod", "fchmodat", "ftruncate", "sendfile", "copy_file_range"),
)
"""Everything that changes a file or a folder; a name that a processor's kernel lacks starts with `?` for strace."""
FAULTS = ("SIGKILL", "ENOSPC", "EIO", "EINTR")
_LINE = re.compile(r"(?P<call>\w+)\((?P<rest>.*)")


@dataclass(frozen=True)
class Point:
    """One system call of a recorded process."""

    call: str
    number: int
    """Among the calls of this name, from 1."""
    about: str
    """Its arguments, as strace prints them."""

    def __str__(self) -> str:
        return f"{self.call} {self.number} {self.about[:160]}"


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    """Exit status, or minus the signal."""
    said: str
    """What it wrote to stdout and stderr."""


def require_strace() -> None:
    """Skip the test where strace is missing or may not trace."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt-get install strace")
    if subprocess.run(["strace", "-q", "-o", os.devnull, "true"], check=False, capture_output=True).returncode:
        pytest.skip("needs a system that lets strace trace")


def traced(work: Callable[[], object], folder: Path, *options: str) -> Ended:
    """Run `work` in a fork under strace with `options`; its output and the log of strace lie in `folder`."""
    log, output = folder / "strace.log", folder / "output.txt"
    for path in (log, output):
        path.unlink(missing_ok=True)
    pid = fork()
    if pid == 0:
        _run_stopped(work, output)
    os.waitpid(pid, os.WUNTRACED)
    calls = ",".join(f"?{call}" for call in CALLS)
    command = ["strace", "-q", "-y", "-s", "300", "-o", str(log), "-e", f"trace={calls}", *options, "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as strace:
        while "TracerPid:\t0" in Path(f"/proc/{pid}/status").read_text():
            time.sleep(0.002)
        os.kill(pid, signal.SIGCONT)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        strace.wait()
    return Ended(status, output.read_text(errors="replace") if output.exists() else "")


def _run_stopped(work: Callable[[], object], output: Path) -> None:
    """In the fork: wait for strace, then run `work` as a command, and never return."""
    status = 99
    try:
        handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.kill(os.getpid(), signal.SIGSTOP)
        work()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def points(log: Path, *roots: Path) -> list[Point]:
    """The recorded calls that change something below one of `roots`."""
    counts: Counter[str] = Counter()
    found = []
    for line in log.read_text(errors="replace").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        call, rest = match["call"], match["rest"]
        counts[call] += 1
        reads = call == "openat" and "O_WRONLY" not in rest and "O_RDWR" not in rest and "O_DIRECTORY" not in rest
        if not reads and any(str(root) in rest for root in roots):
            found.append(Point(call, counts[call], rest))
    return found


def options(point: Point, fault: str) -> tuple[str, str]:
    """The options of strace that make `fault` happen at `point`: a kill before the call, or its failure."""
    effect = f"signal={fault}" if fault.startswith("SIG") else f"error={fault}"
    return "-e", f"inject={point.call}:{effect}:when={point.number}"


def chosen(recorded: list[Point], count: int | None) -> list[tuple[Point, str]]:
    """`count` pairs of a point and a fault, evenly spread over the points; None gives every pair."""
    if count is None:
        return [(point, fault) for point in recorded for fault in FAULTS]
    return [(recorded[k * len(recorded) // count], FAULTS[k % len(FAULTS)]) for k in range(count)]


def check_one_line(ended: Ended, what: str) -> None:
    """A process that failed says so in one line with a file and a next step."""
    assert "Traceback" not in ended.said, f"{what}\n{ended.said}"
    errors = [line for line in ended.said.splitlines() if line.startswith("error: ")]
    assert ended.status in (1, 2), f"{what}: status {ended.status}\n{ended.said}"
    assert len(errors) == 1, f"{what}\n{ended.said}"
    assert ";" in errors[0], f"{what}\n{ended.said}"
