"""Runs killed at random instants and resumed until they end: does each end with the bits of the run that was not?

A run of two phases (augmentation, mixing, a moving average; then a head on stored activations) on 240 made-up images,
with a checkpoint after every second step and a cache of its own, so that its stores are killed while they are written
too. Images and report, which have no part in it, are left out. Each process is a fork of this one, killed by SIGKILL
after a random part of the time that a whole run takes.

    python benchmarks/kills.py [--kills N] [--seed N] [--folder DIR]

Exit status 1 if any run ends differently, in weights, history or metrics; its folder is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from PIL import Image
from safetensors.torch import load_file

from linnaeus.console import Console
from linnaeus.report import page
from linnaeus.training.finish import finalize
from linnaeus.training.run import train

SIDE, CLASSES, EACH = 24, 4, 60
RECIPE: dict[str, Any] = {
    "best": "loss",
    "model": {"name": "mini_resnet", "arguments": {"widths": [6, 8, 12]}},
    "data": {"resize": SIDE, "size": SIDE, "channels": 1, "normalize": "data", "split": {"valid": 0.2, "test": 0.1}},
    "phase": [
        {
            "epochs": 3, "batch": 32, "lr": 3e-3, "ema": 0.8, "mixup": 0.2,
            "augment": {"rotate": 15, "erase": 0.3}, "schedule": {"name": "cosine"},
        },
        {"train": ["head"], "epochs": 3, "batch": 32, "lr": 1e-2, "schedule": {"name": "plateau", "patience": 0}},
    ],
}  # fmt: skip


def make_images(folder: Path) -> None:
    """Noise with a bright square, in a corner by class."""
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for i in range(EACH):
            image = generator.integers(0, 140, (SIDE, SIDE), dtype=np.uint8)
            top, left = (label // 2) * 12, (label % 2) * 12
            image[top : top + 10, left : left + 10] += 90
            Image.fromarray(image).save(folder / str(label) / f"{i}.png")


def started(folder: Path, out: str, cache: str) -> int:
    """The process of a run, which begins or goes on."""
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            os.environ["LINNAEUS_CACHE"] = str(folder / cache)
            with open(os.devnull, "w") as nowhere:  # noqa: PTH123
                sys.stderr = nowhere
                finalize.write_plots, page.write_report = (lambda *_: ""), lambda *_, **__: Path()  # type: ignore
                train(
                    folder / "pictures", str(folder / "recipe.toml"), out=folder / out, resume=True,
                    checkpoint_every="2steps", device="cpu", console=Console(quiet=True),
                )  # fmt: skip
            status = 0
        except BaseException as error:
            print(f"{out}: {type(error).__name__}: {error}", flush=True)
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """The exit status of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def where(run: Path) -> str:
    """How far a run that was killed had come."""
    checkpoint = run / "checkpoint"
    if not (checkpoint / "run.json").exists():
        return "the end" if (run / "metrics.json").exists() else "before it began"
    if not (checkpoint / "checkpoint.json").exists():
        return "before a checkpoint"
    phase = json.loads((checkpoint / "checkpoint.json").read_text().partition("\n")[2])["phase"]
    return f"phase {phase}" if phase <= len(RECIPE["phase"]) else "the final figures"


def same(run: Path, whole: Path) -> bool:
    """Whether two runs have the same weights, history and metrics, but for the seconds."""
    tensors = [load_file(path / "model.safetensors") for path in (run, whole)]
    histories = [
        [line.rpartition(",")[0] for line in (path / "history.csv").read_text().splitlines()] for path in (run, whole)
    ]
    metrics = [json.loads((path / "metrics.json").read_text()) for path in (run, whole)]
    for found in metrics:
        del found["seconds"]
    return (
        tensors[0].keys() == tensors[1].keys()
        and all(bool((tensors[0][name] == tensors[1][name]).all()) for name in tensors[0])
        and histories[0] == histories[1]
        and metrics[0] == metrics[1]
        and not (run / "checkpoint").exists()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder without it")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="kills-"))
    make_images(folder / "pictures")
    (folder / "recipe.toml").write_text(tomli_w.dumps(RECIPE))
    began = time.perf_counter()
    assert ended(started(folder, "whole", "cache")) == 0, "the run that is not killed must end well"
    whole = time.perf_counter() - began
    draw, kills, runs, different = random.Random(given.seed), 0, 0, 0
    places: Counter[str] = Counter()
    while kills < given.kills:
        out, cache = f"run-{runs}", f"cache-{runs}"
        runs += 1
        while kills < given.kills:
            pid = started(folder, out, cache)
            time.sleep(draw.uniform(0, whole))
            os.kill(pid, signal.SIGKILL)
            status = ended(pid)
            if status == 0:  # it was over before
                break
            kills += 1
            places[where(folder / out)] += 1
            assert status == -signal.SIGKILL, f"{out}: exit status {status}"
        if status != 0:
            assert ended(started(folder, out, cache)) == 0, f"{out} must end well"
        if same(folder / out, folder / "whole"):
            shutil.rmtree(folder / out)
        else:
            different += 1
            print(f"{folder / out} differs from {folder / 'whole'}")
        shutil.rmtree(folder / cache, ignore_errors=True)
    print(f"{kills} kills in {runs} runs, {runs - different} of them to the same bits; a whole run takes {whole:.1f} s")
    print("killed in: " + ", ".join(f"{place} {count}" for place, count in sorted(places.items())))
    if different:
        raise SystemExit(1)
    if given.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
