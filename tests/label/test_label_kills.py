"""Servers that are killed: what was acknowledged is on the disk, in the journal and in the CSV, whenever they die."""

from __future__ import annotations

import array
import csv
import os
import random
import signal
import time
from pathlib import Path

import pytest
from forking import fork
from killing import dying, in_child

from linnaeus.label.journal import Answer
from linnaeus.label.labels_csv import LabelStore

if hasattr(os, "fork"):
    import fcntl
    import termios

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")


def answer_until_killed(folder: Path, name: str, seed: int, pipe: int) -> None:
    """Start a server, label its images repeatedly, and report each answer before and after sending it."""
    store, generator = LabelStore.open(folder, folder / "labels.csv"), random.Random(seed)
    while True:
        path, label = f"{name}{generator.randrange(40)}.jpg", f"class {generator.randrange(5)}"
        os.write(pipe, f"? {path},{label}\n".encode())
        number = store.answer([Answer(path, label)])
        os.write(pipe, f"! {path},{label}\n".encode())
        if generator.random() < 0.2:
            before = next((s.label for s in reversed(store.journal._states[path][:-1])), None)
            restored = before.label if before is not None else ""
            os.write(pipe, f"? {path},{restored}\n".encode())
            store.undo(number)
            os.write(pipe, f"! {path},{restored}\n".encode())


def start(folder: Path, name: str, seed: int) -> tuple[int, int]:
    """(process, pipe with its reports)."""
    reading, writing = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(reading)
            answer_until_killed(folder, name, seed, writing)
        finally:
            os._exit(99)
    os.close(writing)
    return pid, reading


def check(folder: Path, allowed: dict[str, set[str]]) -> None:
    """`allowed`: the labels that an image may have: the last one acknowledged, or the one on its way."""
    store = LabelStore.open(folder, folder / "labels.csv")
    shown = {}
    if store.journal.records:  # killed before the first answer otherwise
        with store.csv.open(newline="") as file:
            shown = {row["path"]: row["label"] for row in csv.DictReader(file)}
    for path, labels in allowed.items():
        label = store.journal.labels.get(path)
        assert ("" if label is None else label.label) in labels, path
        assert shown.get(path, "") == ("" if label is None else label.label), path
    assert set(shown) == set(store.journal.labels)
    assert [path for path in folder.iterdir() if path.name.startswith(".linnaeus-tmp")] == []


def wait_for(pipes: list[int], size: int) -> None:
    """Return when the servers have said `size` bytes in all: a time would say little on a machine that does more."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        waiting = 0
        for pipe in pipes:
            count = array.array("i", [0])
            fcntl.ioctl(pipe, termios.FIONREAD, count)
            waiting += count[0]
        if waiting >= size:
            return
        time.sleep(0.001)
    raise AssertionError("the servers have stopped")


def kill_servers(folder: Path, kills: int) -> int:
    """Kill two servers of one folder `kills` times. Returns the number of answers that were acknowledged."""
    generator, allowed, answers = random.Random(0), dict[str, set[str]](), 0
    for seed in range(kills // 2):
        servers = [start(folder, name, 2 * seed + k) for k, name in enumerate(("a", "b"))]
        if seed % 3:  # otherwise they may die while they open the folder
            wait_for([reading for _, reading in servers], generator.randrange(1000))
        time.sleep(generator.random() * 0.01)
        for pid, _ in servers:
            os.kill(pid, signal.SIGKILL)
        for pid, reading in servers:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
            with os.fdopen(reading) as file:
                for line in file:
                    kind, (path, label) = line[0], line[2:].rstrip("\n").split(",")
                    allowed[path] = {label} if kind == "!" else allowed.get(path, {""}) | {label}
                    answers += kind == "!"
        check(folder, allowed)
    return answers


def test_killed_servers_lose_nothing_that_was_answered(tmp_path: Path):
    assert kill_servers(tmp_path, 8) > 0


@pytest.mark.long
def test_a_hundred_kills_lose_nothing_that_was_answered(tmp_path: Path):
    assert kill_servers(tmp_path, 100) > 200


@pytest.mark.parametrize("name", ["fsync", "write", "replace", "open"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_kill_at_any_step_of_an_answer_leaves_a_folder_that_opens(tmp_path: Path, name: str, nth: int):
    store = LabelStore.open(tmp_path, tmp_path / "labels.csv")
    store.answer([Answer("a.jpg", "rose")])

    def work() -> None:
        dying(os, name, nth)
        again = LabelStore.open(tmp_path, tmp_path / "labels.csv")
        again.answer([Answer("a.jpg", "tulip"), Answer("b.jpg", "tulip")])

    assert in_child(work) in (0, -signal.SIGKILL)
    check(tmp_path, {"a.jpg": {"rose", "tulip"}, "b.jpg": {"", "tulip"}})
    again = LabelStore.open(tmp_path, tmp_path / "labels.csv")
    assert len({again.journal.labels["a.jpg"].label == "tulip", "b.jpg" in again.journal.labels}) == 1, "all or nothing"
