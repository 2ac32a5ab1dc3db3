"""Several processes predict and evaluate like one: the same output, to the byte, written once."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_command
from killing import dying
from several import several
from tiny import mini, write_images, write_tiny_model

from linnaeus.distributed.engine import join_process_group
from linnaeus.distributed.group import SINGLE_PROCESS
from linnaeus.inference.classifier import BATCH, Classifier, load
from linnaeus.inference.distributed import predictions
from linnaeus.inference.runners import Scores, TorchRunner

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")

EACH = 25
"""Images of each of three classes: with two that cannot be read, three batches, of which the last is short."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and images, of which two cannot be read."""
    here = tmp_path_factory.mktemp("place")
    network = mini()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))  # so that answers differ from image to image
    write_tiny_model(here / "m.safetensors", network)
    write_images(here / "pics", each=EACH)
    (here / "pics" / "0" / "0 3.png").write_bytes(b"no image")
    (here / "pics" / "2" / "2 9.png").write_bytes((here / "pics" / "2" / "2 8.png").read_bytes()[:150])
    return here


@pytest.fixture
def here(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of this test alone, with links to that model and those images."""
    for name in ("m.safetensors", "pics"):
        (tmp_path / name).symlink_to(place / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(rank: int, *arguments: object, stdin: str = "") -> list[Any]:
    """The command line in this process: [status, stdout, stderr]."""
    names = [f"said-{os.getpid()}-{stream}" for stream in ("in", "out", "err")]
    Path(names[0]).write_text(stdin)
    for number, name in enumerate(names):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if number else 0)), number)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, closefd=False) for number, mode in enumerate("rww"))  # noqa: SIM115
    status = run_command(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    return [status, Path(names[1]).read_text(), Path(names[2]).read_text()]


PREDICT = ("predict", "m.safetensors", "pics", "gone.png", "--device", "cpu")
SAYING: dict[str, tuple[object, ...]] = {
    "table": (),
    "csv": ("--format", "csv", "--top", 2),
    "jsonl": ("--format", "jsonl", "--top", 9),
    "a grid": ("--grid", "grid.png"),
    "a folder with nothing": ("nothing",),
    "a grid of another kind": ("--grid", "grid.gif"),
}


def test_the_output_is_the_same_to_the_byte(here: Path):
    """Both streams and the exit status, for two and three processes; only the first one prints."""
    (here / "nothing").mkdir()

    def work(rank: int) -> list[Any]:
        return [command(rank, *PREDICT, *more) for more in SAYING.values()]

    (alone,) = several(1, work)
    drawn = (here / "grid.png").read_bytes()
    assert [status for status, _, _ in alone] == [1, 1, 1, 1, 2, 2]
    assert "3 of 76 images could not be read" in alone[0][2]
    assert alone[4][1] == alone[0][1]  # what comes before a folder with nothing is answered
    for world in (2, 3):
        (here / "grid.png").unlink()
        first, *others = several(world, work)
        for name, one, many in zip(SAYING, alone, first, strict=True):
            assert many == one, name
        for other in others:
            assert [status for status, _, _ in other] == [0, 0, 0, 0, 0, 70]
            assert {(out, err) for _, out, err in other} == {("", "")}
        assert (here / "grid.png").read_bytes() == drawn


def test_every_number_of_images_in_order(place: Path):
    """Fewer images than processes, none, whole rounds and one more: each once, in order, with the bits of one."""
    sizes = [0, 1, 2, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH - 1, 3 * BATCH, 3 * BATCH + 1, 6 * BATCH, 7 * BATCH + 5]
    pool = sorted(str(path) for path in (place / "pics").rglob("*.png"))

    def work(rank: int) -> list[Any]:
        group = SINGLE_PROCESS if rank < 0 else join_process_group("cpu")
        classifier = load(place / "m.safetensors", device="cpu")
        found = []
        for n in sizes:
            images = (pool[i * 7 % len(pool)] for i in range(n)) if group.is_main else iter(())
            given = predictions(classifier, group, images)
            found.append(
                [[p.path, p.error, None if p.error else list(map(float.hex, p.ranked(3)[0][1:]))] for p in given]
            )
        return found

    expected = work(-1)
    assert [len(each) for each in expected] == sizes
    for world in (2, 3):
        first, *others = several(world, work)
        assert first == expected
        assert others == [[[]] * len(sizes)] * (world - 1)


def test_only_a_few_rounds_are_handed_out_ahead(place: Path):
    """However many images there are; a process that stops early lets the others end, between rounds and after them."""

    def work(rank: int) -> int:
        group, classifier, asked = join_process_group("cpu"), load(place / "m.safetensors", device="cpu"), 0

        def endless() -> Iterator[str]:
            nonlocal asked
            while True:
                asked += 1
                yield str(place / "pics" / "1" / "1 1.png")

        few = 2 * BATCH + 3
        for images, taken in ((endless(), 4 * BATCH + 1), (islice(endless(), few), 5), (islice(endless(), few), few)):
            asked = 0
            with closing(predictions(classifier, group, images)) as found:
                for done, prediction in enumerate(islice(found, taken), start=1):
                    assert prediction.error is None
                    assert asked - done <= 3 * 2 * BATCH
        return asked

    assert several(2, work) == [2 * BATCH + 3, 0]


@pytest.mark.parametrize("name", ["o.csv", "o.jsonl"])
def test_a_file_of_answers_is_continued(name: str, here: Path):
    """Whatever a kill leaves of it, two processes complete it to the bytes that one process writes."""
    (alone,) = several(1, lambda rank: command(rank, *PREDICT, "--out", name))
    whole = (here / name).read_bytes()
    assert alone[0] == 1

    def work(rank: int) -> list[Any]:
        found = []
        for cut in (3, 40, len(whole) // 2, len(whole)):
            if rank == 0:
                Path(name).write_bytes(whole[:cut])
            join_process_group("cpu").all_gather(None)
            said = command(rank, *PREDICT, "--out", name)
            if rank == 0:
                found.append([said[0], said[2].splitlines()[-1], _alike(Path(name).read_bytes(), whole)])
        return found

    first, other = several(2, work)
    assert first == [[1, "warning: 3 of 76 images could not be read", True]] * 4
    assert other == []


def _alike(one: bytes, other: bytes) -> bool:
    """The same answers in the same order; of probabilities the last digit of 32 bits depends on the batch."""
    lines = [text.decode().splitlines() for text in (one, other)]
    return len(lines[0]) == len(lines[1]) and all(a[:40] == b[:40] for a, b in zip(*lines, strict=True))


@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_dies_ends_the_other_and_the_same_command_goes_on(victim: int, here: Path):
    """kill -9 of the process that writes, and of the other: complete lines remain, the next start adds the rest."""
    whole = several(1, lambda rank: command(rank, *PREDICT, "--out", "whole.jsonl"))
    assert whole[0][0] == 1

    def work(rank: int) -> list[Any]:
        if rank == victim:
            dying(Classifier, "answers", 2 if victim == 0 else 1)
        return command(rank, *PREDICT, "--out", "o.jsonl")

    found = several(2, work)
    assert found[victim] == -signal.SIGKILL
    assert found[1 - victim][0] == 70
    assert found[1 - victim][2].splitlines()[-1] == (
        "error: another process of this command has ended; run the same command again to continue o.jsonl"
    )
    first, _ = several(2, lambda rank: command(rank, *PREDICT, "--out", "o.jsonl"))
    assert first[0] == 1
    assert _alike((here / "o.jsonl").read_bytes(), (here / "whole.jsonl").read_bytes())


def test_wrong_input_of_several_processes_is_reported_once(here: Path):
    """A file that is no model, one that cannot be written, and a wrong number of processes."""
    cases: dict[str, tuple[object, ...]] = {
        "no such model file": ("predict", "gone", "pics"),
        "cannot be written": (*PREDICT, "--out", "gone/o.csv"),
        "holds other columns": (*PREDICT, "--out", "mine.csv"),
    }
    (here / "mine.csv").write_text("my,own,table\n1,2,3\n")
    first, other = several(2, lambda rank: [command(rank, *arguments) for arguments in cases.values()])
    for words, said in zip(cases, first, strict=True):
        assert said[0] == 2
        assert words in said[2]
        assert said[2].count("\n") == 1
    assert other == [[70, "", ""]] * 3
    both = several(2, lambda rank: command(rank, *PREDICT, "--devices", 3))
    assert all("already runs in 2 processes on this machine" in said[2] for said in both)


def test_evaluation_is_divided(here: Path):
    """Each image is answered once, by one of the processes; the figures are those of one."""
    write_images(here / "data" / "test", each=13, seed=5)
    arguments = ("evaluate", "m.safetensors", "data", "--tta", "--device", "cpu")

    def work(rank: int) -> list[Any]:
        seen, real = 0, TorchRunner.scores

        def counted(self: TorchRunner, images: torch.Tensor) -> Scores:
            nonlocal seen
            seen += len(images)
            return real(self, images)

        TorchRunner.scores = counted  # type: ignore[method-assign]
        return [*command(rank, *arguments, "--json", "e.json"), seen]

    (alone,) = several(1, work)
    expected = json.loads((here / "e.json").read_text())["test"]
    (here / "e.json").unlink()
    first, other = several(2, work)
    assert [alone[3], first[3] + other[3]] == [3 * 39] * 2  # plain, and two views
    assert min(first[3], other[3]) > 39
    assert first[:3] == alone[:3]
    assert other[:3] == [0, "", ""]
    found = json.loads((here / "e.json").read_text())["test"]
    assert found["confusion"] == expected["confusion"]
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    assert found["tta"]["mirror"]["loss"] == pytest.approx(expected["tta"]["mirror"]["loss"], abs=1e-6)


def started(*command: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *map(str, command)],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )


@pytest.mark.long
def test_torchrun_and_devices_read_paths_on_standard_input(here: Path):
    """The first process reads them; the answers are those of one process."""
    paths = "".join(f"pics/{c}/{c} {i}.png\n" for i in range(EACH) for c in range(3))
    arguments = ("predict", "m.safetensors", "-", "--format", "jsonl", "--device", "cpu")
    alone = started("linnaeus", *arguments, stdin=paths)
    assert alone.returncode == 1
    assert alone.stdout.count("\n") == 3 * EACH
    many = started("linnaeus", *arguments, "--devices", 2, stdin=paths)
    assert (many.returncode, many.stdout, many.stderr) == (alone.returncode, alone.stdout, alone.stderr)
    run = ("torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "linnaeus")
    many = started(*run, *arguments, stdin=paths)
    assert many.returncode == 1  # for two of them cannot be read
    assert many.stdout == alone.stdout
    assert all(line in many.stderr.splitlines() for line in alone.stderr.splitlines())


@pytest.mark.long
def test_a_closed_pipe_ends_all_processes_silently(here: Path):
    """`linnaeus predict … --devices 2 | head -1` ends without a word."""
    (here / "paths.txt").write_text("pics/0/0 0.png\n" * 3000)
    found = []
    for more in ("", "--devices 2"):
        line = f"{sys.executable} -m linnaeus predict m.safetensors - {more} < paths.txt | head -1; echo $PIPESTATUS"
        result = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=300)
        found.append((result.stdout, result.stderr))
    assert found[0] == found[1]
    assert found[1][0].splitlines()[0].endswith("pics/0/0 0.png")
    assert found[1][1] == ""


@pytest.mark.long
def test_memory_stays_flat(place: Path):
    """The growth between the 2,000th and the 8,000th image of two processes is less than the answers would take."""

    def work(rank: int) -> int:
        def resident() -> int:
            return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

        group, classifier, before = join_process_group("cpu"), load(place / "m.safetensors", device="cpu"), 0
        images = (str(place / "pics" / "1" / f"1 {i % EACH}.png") for i in range(8000))
        count = 0
        for count, _ in enumerate(predictions(classifier, group, images), 1):
            before = resident() if count == 2000 else before
        assert count == (8000 if rank == 0 else 0)
        return resident() - before if rank == 0 else 0

    assert several(2, work, 300)[0] < 6e6


def leave(rank: int) -> list[bool]:
    """Whether there is a process group, before and after the functions that run when a process exits."""
    atexit._clear()  # those of the process that was forked
    join_process_group("cpu").all_gather(rank)
    joined = torch.distributed.is_initialized()
    atexit._run_exitfuncs()
    return [joined, torch.distributed.is_initialized()]


def test_a_process_leaves_its_group_before_the_interpreter_shuts_down():
    """Otherwise a thread of gloo may free a tensor then, which aborts the process: in 5 of 90 trials."""
    assert several(2, leave) == [[True, False]] * 2
