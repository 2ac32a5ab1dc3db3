"""`linnaeus serve` under load: images a second against what decoding and the network give without a server.

Where both share the cores a server can reach 1 / (1/decode + 1/network). Decoding (threads, as many as cores) and the
network (batches as the server makes them) are measured before and after the load, in turns, and averaged, so that a
machine that is busy with something else slows both sides. The processor's time an image is compared too: it hardly
depends on what else runs. The load is 16 clients that send one image after another
for a minute, by wrk (`apt-get install wrk`), in C, so that it takes little from what is measured; without wrk by httpx2
in a process of its own, which takes more. Then once more beside clients that mean no good: garbage, bombs, half
requests, and 500 connections that say nothing.

    python benchmarks/serve.py RUN [--data DIR] [--seconds 60] [--clients 16] [--bombs DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cli.options import fastest_model, load_model
from linnaeus.console import Console
from linnaeus.inference.classifier import Classifier
from linnaeus.serve.limits import Limits

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES = 64  # that the clients send, in turns
IDLE = 500
BATCH = Limits().batch
TURN = 1.0  # seconds of decoding, then of the network

WRK = """
local bodies = {}
for line in io.lines(os.getenv("IMAGES")) do
  local file = io.open(line, "rb")
  bodies[#bodies + 1] = file:read("*a")
  file:close()
end
local at = 0
function request()
  at = at % #bodies + 1
  return wrk.format("POST", "/predict?top=1", {["Content-Type"] = "image/jpeg"}, bodies[at])
end
function done(summary, latency, requests)
  local e = summary.errors
  local form = 'RESULT {"n": %d, "seconds": %f, "p50": %f, "p99": %f, "most": %f, "errors": %d, "refused": %d}\\n'
  io.write(string.format(form,
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e6, latency:percentile(99) / 1e6,
    latency.max / 1e6, e.connect + e.read + e.write + e.timeout, e.status))
end
"""


@dataclass
class Load:
    """What the clients saw. Seconds, and counts."""

    n: int
    seconds: float
    p50: float
    p99: float
    most: float
    errors: int
    refused: int

    @property
    def speed(self) -> float:
        return self.n / self.seconds

    def __str__(self) -> str:
        return (
            f"{self.speed:.1f} pictures/s, n {self.n}, p50 {self.p50:.3f} s, p99 {self.p99:.3f} s, "
            f"longest {self.most:.3f} s, {self.errors} errors, {self.refused} refused"
        )


def alone(classifier: Classifier, images: list[bytes], seconds: float = 5.0) -> np.ndarray:
    """Without a server, in turns: images a second decoded by threads, and classified in batches; then the processor's
    seconds that an image takes of each. (4,) float64."""
    batch = np.stack([classifier.preprocessing.load(each) for each in images[:BATCH]])
    n, took, cpu = np.zeros(2), np.zeros(2), np.zeros(2)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        works = (
            lambda: len(list(pool.map(classifier.preprocessing.load, images))),
            lambda: len(classifier.probabilities(batch)),
        )
        while took.sum() < 2 * seconds:
            for i, work in enumerate(works):
                started, used = time.perf_counter(), time.process_time()
                while time.perf_counter() - started < TURN:
                    n[i] += work()
                took[i] += time.perf_counter() - started
                cpu[i] += time.process_time() - used
    return np.concatenate([n / took, cpu / n])


def used_by(address: str) -> float:
    """The processor's seconds that the server has used, as it says itself."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=60) as answer:
        found = re.search(r"^process_cpu_seconds_total (\S+)", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return float(found[1])


@contextmanager
def served(run: str) -> Iterator[str]:
    """host:port of a server of the run, with everything as a user gets it."""
    command = [sys.executable, "-m", "linnaeus", "serve", run, "--port", "0", "--like", "none"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        print("   ", line.rstrip())
        if found := re.match(r"serving +http://(\S+)", line):
            break
    else:
        raise SystemExit("the server did not start")
    threading.Thread(target=lambda: [print("   ", line.rstrip()) for line in process.stderr or []], daemon=True).start()
    try:
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"exit status {process.wait(90)}")


def wrk(address: str, files: list[Path], clients: int, seconds: float) -> Load:
    with tempfile.TemporaryDirectory() as folder:
        script, listed = Path(folder, "load.lua"), Path(folder, "images.txt")
        script.write_text(WRK)
        listed.write_text("\n".join(map(str, files)) + "\n")
        command = [
            "wrk",
            "-t1",
            f"-c{clients}",
            f"-d{seconds:.0f}s",
            "--timeout",
            "30s",
            "-s",
            str(script),
            f"http://{address}",
        ]
        out = subprocess.run(
            command, env={**os.environ, "IMAGES": str(listed)}, capture_output=True, text=True, check=True
        )
        return Load(**json.loads(out.stdout.partition("RESULT ")[2]))


def by_httpx(address: str, files: list[Path], clients: int, seconds: float) -> Load:
    command = [sys.executable, __file__, "--client", address, str(clients), str(seconds), *map(str, files)]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    return Load(**json.loads(out.stdout.splitlines()[-1]))


async def ask_for_a_while(address: str, clients: int, seconds: float, files: list[str]) -> dict[str, Any]:
    import httpx2

    bodies = [Path(each).read_bytes() for each in files]
    took: list[float] = []
    bad = {"errors": 0, "refused": 0}
    end = time.perf_counter() + seconds

    async def one(number: int) -> None:
        async with httpx2.AsyncClient(base_url=f"http://{address}", timeout=30) as client:
            while time.perf_counter() < end:
                number += 1
                started = time.perf_counter()
                try:
                    answer = await client.post(
                        "/predict?top=1", content=bodies[number % len(bodies)], headers={"Content-Type": "image/jpeg"}
                    )
                    bad["refused"] += answer.status_code != 200
                except httpx2.HTTPError:
                    bad["errors"] += 1
                took.append(time.perf_counter() - started)

    await asyncio.gather(*(one(7 * i) for i in range(clients)))
    p50, p99 = (float(np.percentile(took, q)) for q in (50, 99))
    return {"n": len(took), "seconds": seconds, "p50": p50, "p99": p99, "most": max(took), **bad}


@contextmanager
def abuse(address: str, bombs: list[bytes]) -> Iterator[dict[str, int]]:
    """Idle connections, and four threads: garbage, half requests, bombs, and bodies that are too large."""
    host, _, port = address.rpartition(":")
    over = threading.Event()
    done = {"garbage": 0, "half": 0, "bombs": 0, "large": 0}

    def connect() -> socket.socket:
        return socket.create_connection((host, int(port)), timeout=30)

    def post(body: bytes, length: int | None = None) -> bytes:
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: "
        return f"{head}{length or len(body)}\r\n\r\n".encode() + body

    def garbage() -> None:
        with connect() as s:
            s.sendall(os.urandom(2000))

    halves: list[socket.socket] = []

    def half() -> None:
        halves.append(connect())
        halves[-1].sendall(post(b"x" * 5000, 100_000))
        if len(halves) > 50:
            halves.pop(0).close()

    def bomb() -> None:
        with connect() as s:
            s.sendall(post(bombs[done["bombs"] % len(bombs)]))
            s.recv(1000)

    def large() -> None:
        with connect() as s:
            s.sendall(post(b"x" * 1000, 10**12))
            s.recv(1000)

    def repeat(name: str, act: Any, pause: float) -> None:
        while not over.wait(pause):
            with suppress(OSError):
                act()
                done[name] += 1

    idle = [connect() for _ in range(IDLE)]
    acts = (("garbage", garbage, 0.02), ("half", half, 0.05), ("bombs", bomb, 0.1), ("large", large, 0.1))
    threads = [threading.Thread(target=repeat, args=each) for each in acts]
    for each in threads:
        each.start()
    try:
        yield done
    finally:
        over.set()
        for each in threads:
            each.join()
        for connection in idle + halves:
            connection.close()


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        where, clients, seconds, *named = sys.argv[2:]
        print(json.dumps(asyncio.run(ask_for_a_while(where, int(clients), float(seconds), named))))
        return
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder, or a model file")
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16" / "valid", help="a folder of JPEGs")
    parser.add_argument("--bombs", type=Path, default=SHARED / "dirty", help="a folder of files that break decoders")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    files = sorted(given.data.rglob("*.jpg"))
    files = files[:: max(1, len(files) // IMAGES)][:IMAGES]
    bombs = [p.read_bytes() for p in sorted(given.bombs.rglob("*")) if p.is_file() and p.stat().st_size < 5_000_000]
    images = [each.read_bytes() for each in files]
    console = Console(quiet=True)
    classifier = load_model(fastest_model(given.run, "cpu", None, console), "cpu", None)
    load = wrk if shutil.which("wrk") else by_httpx
    print(f"{classifier.path}, {given.clients} clients, {given.seconds:.0f} s by {load.__name__}")
    size = sum(map(len, images)) / len(files) / 1000
    print(f"{len(files)} JPEGs of {size:.0f} kB; the machine's own load is {os.getloadavg()[0]:.1f}", flush=True)
    with served(given.run) as address:
        load(address, files, given.clients, 5)
        speeds = [alone(classifier, images)]
        for name in ("clients alone", "beside abuse"):
            before = used_by(address)
            if name == "beside abuse":
                with abuse(address, bombs) as done:
                    found = load(address, files, given.clients, given.seconds)
                print(f"abuse     {done}, and {IDLE} idle connections")
            else:
                found = load(address, files, given.clients, given.seconds)
            used = (used_by(address) - before) / found.n
            speeds.append(alone(classifier, images))
            decode, network, *cpu = np.mean(speeds[-2:], axis=0)
            bound = 1 / (1 / decode + 1 / network)
            print(f"{name}: {found}")
            share = f"{found.speed / bound:.0%}"
            print(f"    decode {decode:.1f}/s, network {network:.1f}/s, together {bound:.1f}/s: {share}")
            said = f"{1000 * cpu[0]:.1f} ms decode + {1000 * cpu[1]:.1f} ms network alone, {1000 * used:.1f} ms served"
            print(f"    processor an image: {said}: {sum(cpu) / used:.0%}", flush=True)


if __name__ == "__main__":
    main()
