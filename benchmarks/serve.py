"""`linnaeus serve` under load, and under attack.

Under load: images a second against what decoding and the network give without a server. Where both share the cores a
server can reach 1 / (1/decode + 1/network). Decoding (threads, as many as cores) and the network (batches as the server
makes them) are measured before and after the load, in turns, and averaged, so that a machine that is busy with
something else slows both sides. The processor's time an image is compared too: it hardly depends on what else runs.

Under attack (--attack): the p99 of the same clients beside each attack of `serve_attacks`, in turns with the p99
without one, then beside all of them together, the processors that server and attackers take, and the memory that the
server keeps. Attackers take processors that the server and its clients would have; with --sink, the clients are also
measured while the same attackers send to a server that does nothing, beside the real one.

    python benchmarks/serve.py RUN [--data DIR] [--seconds 60] [--clients 16] [--attack [NAME ...]] [--sink]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from serve_attacks import ATTACKS
from serve_load import MIB, Served, cpu_seconds, measure, served

from linnaeus.cli.options import chosen_model, load_model
from linnaeus.console import Console
from linnaeus.inference.classifier import Classifier
from linnaeus.serve.limits import Limits

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
IMAGES = 64  # that the clients send, in turns
BATCH = Limits().batch
TURN = 1.0  # seconds of decoding, then of the network
QUIET = 3.0  # seconds of load without an attack, before each of them


def alone(classifier: Classifier, images: list[bytes], seconds: float = 5.0) -> np.ndarray:
    """Without a server, in turns: images a second decoded by threads, and classified in batches; then the processor's
    seconds that an image takes of each. (4,) float64."""
    batch = np.stack([classifier.preprocessing.load(each) for each in images[:BATCH]])
    n, took, cpu = np.zeros(2), np.zeros(2), np.zeros(2)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        works = (
            lambda: len(list(pool.map(classifier.preprocessing.load, images))),
            lambda: len(classifier.answers(batch)),
        )
        while took.sum() < 2 * seconds:
            for i, work in enumerate(works):
                started, used = time.perf_counter(), time.process_time()
                while time.perf_counter() - started < TURN:
                    n[i] += work()
                took[i] += time.perf_counter() - started
                cpu[i] += time.process_time() - used
    return np.concatenate([n / took, cpu / n])


def under_load(classifier: Classifier, files: list[Path], clients: int, seconds: float, server: Served) -> None:
    images = [file.read_bytes() for file in files]
    before = alone(classifier, images)
    used = server.cpu_seconds()
    load = measure(server.address, files, clients, seconds)
    used = (server.cpu_seconds() - used) / load.n
    decode, network, *cpu = np.mean([before, alone(classifier, images)], axis=0)
    bound = 1 / (1 / decode + 1 / network)
    print(f"clients alone: {load}")
    print(f"    decode {decode:.1f}/s, network {network:.1f}/s, together {bound:.1f}/s: {load.speed / bound:.0%}")
    text = f"{1000 * cpu[0]:.1f} ms decode + {1000 * cpu[1]:.1f} ms network alone, {1000 * used:.1f} ms served"
    print(f"    processor an image: {text}: {sum(cpu) / used:.0%}", flush=True)


@contextmanager
def attacked(address: str, names: Sequence[str], bombs: Path) -> Iterator[list[Path]]:
    """The attacks of these names, each in a process of its own. Yields the folders in /proc of these."""
    script = str(Path(__file__).with_name("serve_attacks.py"))
    commands = [[sys.executable, script, name, address, str(bombs)] for name in names]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        time.sleep(0.5)
        yield [Path(f"/proc/{process.pid}") for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextmanager
def sink() -> Iterator[str]:
    """The address of a server that does nothing: `serve_sink` in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("serve_sink.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def under_attack(server: Served, files: list[Path], groups: list[list[str]], options: argparse.Namespace) -> None:
    before = server.memory()
    for names in groups:
        quiet = measure(server.address, files, options.clients, QUIET)
        if options.sink:
            with sink() as address, attacked(address, names, options.bombs):
                floor = measure(server.address, files, options.clients, options.seconds)
            print(f"{'':16} p99 {floor.p99:.3f} s beside the same attackers of a server that does nothing")
        lines = len(server.log)
        with attacked(server.address, names, options.bombs) as attackers:
            used = np.array([server.cpu_seconds(), cpu_seconds(attackers)])
            started = time.perf_counter()
            load = measure(server.address, files, options.clients, options.seconds)
            used = np.array([server.cpu_seconds(), cpu_seconds(attackers)]) - used
            cores = used / (time.perf_counter() - started)
        server.wait_until_idle()
        kept = (server.memory() - before) / MIB
        name = names[0] if len(names) == 1 else "all together"
        print(f"{name:16} p99 without {quiet.p99:.3f} s, ratio {load.p99 / quiet.p99:.1f}: {load}")
        print(f"{'':16} processors: {cores[0]:.2f} server, {cores[1]:.2f} attackers; memory {kept:+.0f} MiB, ", end="")
        print(f"{len(server.log) - lines} lines in the log, load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder, or a model file")
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16" / "valid", help="a folder of JPEG or PNG")
    parser.add_argument("--bombs", type=Path, default=SHARED / "dirty", help="a folder of files that break decoders")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--attack", nargs="*", metavar="NAME", choices=list(ATTACKS), help="attacks; without, all")
    parser.add_argument("--sink", action="store_true", help="also the p99 beside attacks on a server that does nothing")
    options = parser.parse_args()
    files = sorted(path for path in options.data.rglob("*") if path.suffix in (".jpg", ".png"))
    files = files[:: max(1, len(files) // IMAGES)][:IMAGES]
    print(f"{len(files)} images, {options.clients} clients, {options.seconds:.0f} s, load {os.getloadavg()[0]:.1f}")
    with served(options.run) as server:
        measure(server.address, files, options.clients, 5)
        if options.attack is None:
            classifier = load_model(chosen_model(options.run, "cpu", None, None, Console(quiet=True)), "cpu", None)
            under_load(classifier, files, options.clients, options.seconds, server)
        else:
            groups = [[name] for name in options.attack or ATTACKS]
            groups += [] if options.attack else [list(ATTACKS)]
            under_attack(server, files, groups, options)


if __name__ == "__main__":
    main()
