"""A server of a run in a process of its own, and honest clients that measure how long its answers take.

The clients run in another process, on sockets without an HTTP library, so that they take little from what they measure.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

MIB = 1 << 20


@dataclass
class Load:
    """What the clients saw. Seconds, and counts."""

    n: int
    seconds: float
    p50: float
    p99: float
    longest: float
    errors: int
    refused: int

    @property
    def speed(self) -> float:
        return self.n / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.speed:.1f} images/s, n {self.n}, p50 {self.p50:.3f} s, p99 {self.p99:.3f} s, "
            f"longest {self.longest:.3f} s, {self.errors} errors, {self.refused} refused"
        )


@dataclass
class Served:
    """A running server."""

    address: str
    """host:port"""
    process: subprocess.Popen[str]
    log: list[str]
    """What it wrote to stderr."""

    def processes(self) -> list[Path]:
        """The folders in /proc of the server and of the processes that decode for it."""
        server = Path(f"/proc/{self.process.pid}")
        children = (child for path in server.glob("task/*/children") for child in path.read_text().split())
        return [server, *(Path(f"/proc/{child}") for child in children)]

    def memory(self) -> int:
        """Resident memory in bytes; what processes share counts once."""
        rollups = [(process / "smaps_rollup").read_text() for process in self.processes()]
        return 1024 * sum(int(size) for text in rollups for size in re.findall(r"^Pss:\s+(\d+)", text, re.MULTILINE))

    def wait_until_idle(self) -> None:
        """Until the work for clients that have left has ended, at most 30 s."""
        for _ in range(30):
            before = self.cpu_seconds()
            time.sleep(1)
            if self.cpu_seconds() - before < 0.1:
                break

    def cpu_seconds(self) -> float:
        """Processor time that the processes have used."""
        return cpu_seconds(self.processes())


def cpu_seconds(processes: Sequence[Path]) -> float:
    """Processor time that processes have used, given their folders in /proc."""
    stats = [(process / "stat").read_text().rpartition(")")[2].split() for process in processes]
    return sum(int(fields[11]) + int(fields[12]) for fields in stats) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(run: str) -> Iterator[Served]:
    """A server with its default limits, on a free port."""
    command = [sys.executable, "-m", "linnaeus", "serve", run, "--port", "0", "--like", "none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log = list[str]()
    address = ""
    for line in process.stderr:
        log.append(line.rstrip())
        if match := re.match(r"serving +http://(\S+)", line):
            address = match[1]
            break
    if not address:
        raise SystemExit("\n".join(["the server did not start", *log]))
    threading.Thread(target=lambda: log.extend(map(str.rstrip, process.stderr or [])), daemon=True).start()
    try:
        yield Served(address, process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"exit status {process.wait(90)}")


def measure(address: str, files: Sequence[Path], clients: int, seconds: float) -> Load:
    """The load of `clients` that send one image after another."""
    command = [sys.executable, __file__, address, str(clients), str(seconds), *map(str, files)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return Load(**json.loads(out.stdout.splitlines()[-1]))


async def _client(address: str, requests: list[bytes], number: int, end: float, took: list[float]) -> tuple[int, int]:
    """(errors, refused) of one client; the seconds of its answers are appended to `took`."""
    host, _, port = address.rpartition(":")
    errors = refused = 0
    writer = None
    while time.perf_counter() < end:
        number += 1
        started = time.perf_counter()
        try:
            async with asyncio.timeout(60):
                if writer is None:
                    reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(requests[number % len(requests)])
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                await reader.readexactly(int(re.search(rb"content-length: (\d+)", head)[1]))  # type: ignore[index]
                refused += b" 200 " not in head[:15]
        except (OSError, EOFError, TimeoutError):
            errors += 1
            writer = None
        took.append(time.perf_counter() - started)
    if writer is not None:
        writer.close()
    return errors, refused


async def _load(address: str, clients: int, seconds: float, files: list[Path]) -> Load:
    head = "POST /predict?top=1 HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: "
    bodies = [file.read_bytes() for file in files]
    requests = [f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies]
    took = list[float]()
    end = time.perf_counter() + seconds
    failures = await asyncio.gather(*(_client(address, requests, 7 * i, end, took) for i in range(clients)))
    p50, p99 = (float(np.percentile(took, q)) for q in (50, 99))
    errors, refused = map(sum, zip(*failures, strict=True))
    return Load(len(took), seconds, p50, p99, max(took), errors, refused)


if __name__ == "__main__":
    address, clients, seconds, *files = sys.argv[1:]
    print(json.dumps(asdict(asyncio.run(_load(address, int(clients), float(seconds), list(map(Path, files)))))))
