"""Two machines: two network namespaces of this machine, joined by a virtual cable, with one process in each."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import train
from tiny import write_idx, write_images, write_recipe, write_tiny_model

from linnaeus.runs.lock import LOCK

pytestmark = pytest.mark.long

NET = "10.213.77"
PORT = 29577
LIMIT = 60.0
"""Seconds within which one machine must end after the process of the other was killed."""


@dataclass(frozen=True)
class Machine:
    """A network namespace that reaches only the other one, through `interface`."""

    name: str
    interface: str
    rank: int
    cache: Path

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Start `torchrun -m linnaeus ARGUMENTS` as one of two machines with one process each."""
        command = [
            "ip",
            "netns",
            "exec",
            self.name,
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            2,
            "--node-rank",
            self.rank,
            "--nproc-per-node",
            1,
            "--master-addr",
            f"{NET}.1",
            "--master-port",
            PORT,
            "-m",
            "linnaeus",
            *arguments,
        ]
        variables = {"GLOO_SOCKET_IFNAME": self.interface, "LINNAEUS_CACHE": str(self.cache), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*map(str, command)],
            env={**os.environ, **variables},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def ip(*words: object) -> None:
    done = subprocess.run(["ip", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[list[Machine]]:
    """Two machines; the test is skipped without iproute2 or the permission to create networks."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2: apt-get install iproute2")
    both = [Machine(f"lin{os.getpid()}-{k}", f"veth-lin{k}", k, tmp_path / f"cache {k}") for k in range(2)]
    try:
        try:
            for machine in both:
                ip("netns", "add", machine.name)
            one, other = ((machine.interface, "netns", machine.name) for machine in both)
            ip("link", "add", "name", *one, "type", "veth", "peer", "name", *other)
            for machine in both:
                ip("-n", machine.name, "addr", "add", f"{NET}.{machine.rank + 1}/24", "dev", machine.interface)
                for name in ("lo", machine.interface):
                    ip("-n", machine.name, "link", "set", name, "up")
        except OSError as error:
            pytest.skip(f"needs permission to create networks: {error}")
        yield both
    finally:
        for machine in both:
            subprocess.run(["ip", "netns", "del", machine.name], capture_output=True, check=False)


def ended(running: list[subprocess.Popen[str]], limit: float = 240.0) -> list[tuple[int, str, str]]:
    """Wait for all; return exit status and streams of each."""
    results = []
    try:
        for one in running:
            out, err = one.communicate(timeout=limit)
            results.append((one.returncode, out, err))
    finally:
        for one in running:
            one.kill()
    return results


def rows(run: Path) -> list[list[float]]:
    lines = [line.split(",")[:-1] for line in (run / "history.csv").read_text().splitlines()[1:]]
    return [[float(cell or 0) for cell in line] for line in lines]


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Any]:
    return {"source": write_idx(tmp_path / "idx", train=70, test=13), "out": tmp_path / "run"}


def test_two_machines_train_as_one_process(machines: list[Machine], given: dict[str, Any], tmp_path: Path):
    """The history is the same; only rank 0 writes and prints."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3}, {"train": ["block3", "head"]}, precision="32")
    arguments = ("train", given["source"], "--recipe", recipe, "--out", given["out"], "--device", "cpu")
    first, other = ended([machine.start(*arguments) for machine in machines])
    assert (first[0], other[0]) == (0, 0), first[2] + other[2]
    assert "2 processes on 2 machines" in first[1]
    assert other[1] == ""
    train(given["source"], recipe, tmp_path / "alone")
    assert len(rows(given["out"])) == 5
    assert np.abs(np.array(rows(given["out"])) - np.array(rows(tmp_path / "alone"))).max() < 1e-5


def test_two_machines_predict_as_one_process(machines: list[Machine], tmp_path: Path, say):
    model, images = write_tiny_model(tmp_path / "m.safetensors"), write_images(tmp_path / "pics", each=30)
    arguments = ("predict", model, images, "--format", "jsonl", "--device", "cpu")
    first, other = ended([machine.start(*arguments) for machine in machines])
    assert (first[0], other[0], other[1]) == (0, 0, "")
    assert first[1] == say(*arguments).out


def test_a_machine_whose_process_dies_ends_the_other_and_the_run_can_be_resumed(
    machines: list[Machine], given: dict[str, Any], tmp_path: Path
):
    """Within a minute and with one line; the next start resumes."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 2000})
    arguments = (
        "train",
        given["source"],
        "--recipe",
        recipe,
        "--out",
        given["out"],
        "--device",
        "cpu",
        "--checkpoint-every",
        "2steps",
        "--resume",
    )
    running = [machine.start(*arguments) for machine in machines]
    while not (given["out"] / "checkpoint" / "checkpoint.json").exists():
        assert [one.poll() for one in running] == [None, None]
        time.sleep(0.2)
    worker = int(Path(f"/proc/{running[1].pid}/task/{running[1].pid}/children").read_text().split()[0])
    os.kill(worker, signal.SIGKILL)
    since = time.monotonic()
    first, other = ended(running)
    assert time.monotonic() - since < LIMIT
    assert min(first[0], other[0]) > 0
    errors = [line for line in first[2].splitlines() if line.startswith("error: ")]
    again = f"--resume continues from the last checkpoint: linnaeus train {given['out']} --resume"
    assert errors == [f"error: another process of this run has ended; {again}"]
    running = [machine.start(*arguments) for machine in machines]
    assert running[0].stdout is not None
    for wanted in ("resumed   in phase 1, after ", "epoch "):
        while wanted not in (line := running[0].stdout.readline()):
            assert line, f"{wanted} was not printed"
    for one in running:
        one.terminate()
    first, other = ended(running, LIMIT)
    assert "error: stopped by SIGTERM; " in first[2], first[2] + other[2]
    assert not (given["out"] / LOCK).exists()
    assert len(rows(given["out"])) > 0
