"""A kill, and a failure, at every system call of everything that writes: training, stores, predictions, exports …

After any of them the same command, started again, ends with the same bits as an undisturbed one, and what failed says
so in one line. Each test tries a sample of the pairs of a system call and a fault. All of them take an hour:
`make test-faults`.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_command
from faults import check_one_line, chosen, options, points, require_strace, traced
from killing import check_same
from tiny import settings, write_images, write_recipe, write_tiny_model

from linnaeus.training import run as training_run  # noqa: F401 - loaded before the forks

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
    pytest.mark.usefixtures("undrawn_runs"),
]


@dataclass(frozen=True)
class Job:
    """A command that writes into a folder of its own, and the check that two such folders have the same result."""

    command: Callable[[Path], list[object]]
    check: Callable[[Path, Path], None]

    def work(self, root: Path) -> Callable[[], None]:
        """The command as a function for a fork; its cache lies in the same folder."""

        def run() -> None:
            os.environ["LINNAEUS_CACHE"] = str(root / "cache")
            sys.exit(run_command(*self.command(root)))

        return run


def try_faults(job: Job, folder: Path, count: int | None) -> int:
    """Try `count` pairs of a system call and a fault, or all of them. Returns how many were tried."""
    require_strace()
    whole = folder / "whole"
    whole.mkdir()
    ended = traced(job.work(whole), folder)
    assert ended.status == 0, ended.said
    recorded = points(folder / "strace.log", whole)
    assert len(recorded) > 5
    tried = 0
    for point, fault in chosen(recorded, count):
        root, what = folder / "case", f"{fault} at {point}"
        root.mkdir()
        ended = traced(job.work(root), folder, *options(point, fault))
        if fault == "SIGKILL":
            assert ended.status < 0, what
        elif ended.status:
            check_one_line(ended, what)
        ended = traced(job.work(root), folder)
        # What is complete already is not written again: shards.
        assert ended.status == 0 or "already exists" in ended.said, f"{what}, then: {ended.said}"
        try:
            job.check(root, whole)
        except AssertionError as error:
            raise AssertionError(what) from error
        left = [path for pattern in (".linnaeus-tmp-*", ".tmp??????") for path in root.rglob(pattern)]
        assert left == [], what
        shutil.rmtree(root)
        tried += 1
    return tried


def training(tmp_path: Path) -> Job:
    """Two phases over a pixel store; the second one, of the head, over an activation store."""
    source = write_images(tmp_path / "pictures", each=8)
    recipe = write_recipe(
        tmp_path / "r.toml", {"epochs": 1, "batch": 8}, {"train": ["head"], "epochs": 2, "batch": 8},
        **settings(split={"valid": 0.25}), best="loss",
    )  # fmt: skip

    def command(root: Path) -> list[object]:
        options = ["--device", "cpu", "-q", "--checkpoint-every", "1steps", "--resume"]
        return ["train", source, "--recipe", recipe, "--out", root / "run", *options]

    return Job(command, lambda root, whole: check_same(root / "run", whole / "run"))


def same_files(*names: str) -> Callable[[Path, Path], None]:
    def check(root: Path, whole: Path) -> None:
        for name in names:
            assert (root / name).read_bytes() == (whole / name).read_bytes(), name

    return check


def shards(tmp_path: Path) -> Job:
    source = write_images(tmp_path / "pictures", each=4)

    def check(root: Path, whole: Path) -> None:
        names = sorted(path.name for path in (whole / "out").iterdir())
        assert sorted(path.name for path in (root / "out").iterdir()) == names
        same_files(*(f"out/{name}" for name in names))(root, whole)

    return Job(lambda root: ["data", "shard", source, "--out", root / "out"], check)


def predictions(tmp_path: Path, form: str) -> Job:
    """The last digits may differ: the images that were left form other batches."""
    model = write_tiny_model(tmp_path / "model.safetensors")
    source = write_images(tmp_path / "pictures", each=4)

    def answers(root: Path) -> list[Any]:
        text = (root / f"out.{form}").read_text()
        if form == "csv":
            return list(csv.reader(text.splitlines()))
        lines = [json.loads(line) for line in text.splitlines()]
        for line in lines:
            line["top"] = [{**answer, "probability": round(answer["probability"], 5)} for answer in line["top"]]
        return lines

    def check(root: Path, whole: Path) -> None:
        assert answers(root) == answers(whole)

    return Job(lambda root: ["predict", model, source, "--out", root / f"out.{form}", "--device", "cpu", "-q"], check)


def torchvision_export(tmp_path: Path) -> Job:
    from linnaeus.modelfile.safetensors import ModelFile, write_model
    from linnaeus.models import create
    from linnaeus.preprocess import Preprocessing

    torch.manual_seed(0)
    network = create("resnet18", 3, 3, stem="imagenet")
    model = tmp_path / "model.safetensors"
    write_model(
        model, network.state_dict(), ModelFile(network.arch, ("a", "b", "c"), ("a", "b", "c"), Preprocessing(64, 64))
    )

    def check(root: Path, whole: Path) -> None:
        one, other = (torch.load(path / "out.pth", weights_only=True) for path in (root, whole))
        assert all(torch.equal(one[name], other[name]) for name in other)
        assert (root / "MODEL_CARD.md").exists()

    return Job(lambda root: ["export", model, "--to", "torchvision", "--out", root / "out.pth"], check)


def sweep(tmp_path: Path) -> Job:
    pytest.importorskip("optuna", reason="needs the extra sweep")
    source = write_images(tmp_path / "pictures", each=8)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, **settings(split={"valid": 0.25}))
    space = tmp_path / "space.toml"
    space.write_text('"phase.1.lr" = { choices = [1e-3, 1e-2] }\n')

    def command(root: Path) -> list[object]:
        options = ["--space", space, "--trials", 2, "--device", "cpu", "-q"]
        return ["sweep", source, "--recipe", recipe, "--out", root / "sweep", *options]

    def results(root: Path) -> list[list[str]]:
        rows = [line.split(",") for line in (root / "sweep" / "trials.csv").read_text().splitlines()]
        drop = {rows[0].index("trial"), rows[0].index("seconds")}
        return sorted([cell for i, cell in enumerate(row) if i not in drop] for row in rows)

    def check(root: Path, whole: Path) -> None:
        assert results(root) == results(whole)
        assert list((root / "sweep" / "trials").glob(".*")) == []

    return Job(command, check)


JOBS: dict[str, tuple[Callable[..., Job], tuple[Any, ...], int, int]] = {
    # name: maker, its arguments, how many pairs the quick and the long test try; 0: even one takes too long
    "training": (training, (), 2, 11),
    "shards": (shards, (), 6, 30),
    "predictions as CSV": (predictions, ("csv",), 4, 20),
    "predictions as JSON lines": (predictions, ("jsonl",), 4, 20),
    "export": (torchvision_export, (), 2, 11),
    "sweep": (sweep, (), 0, 3),
}


@pytest.mark.parametrize("name", [name for name, (_, _, count, _) in JOBS.items() if count])
def test_a_few_faults(name: str, tmp_path: Path):
    make, arguments, count, _ = JOBS[name]
    assert try_faults(make(tmp_path, *arguments), tmp_path, count) == count


@pytest.mark.long
@pytest.mark.parametrize("name", JOBS)
def test_more_faults(name: str, tmp_path: Path, request: pytest.FixtureRequest):
    make, arguments, _, count = JOBS[name]
    everything = request.config.getoption("every_fault")
    assert try_faults(make(tmp_path, *arguments), tmp_path, None if everything else count) >= count
