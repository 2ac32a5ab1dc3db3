"""Handwritten digits: the published network, a faster one, and two learning rate schedules.

`mnist-fast` is trained with five seeds. `mnist` and `mnist-plateau`, which differ only in the schedule, are compared on
a tenth of the training images with three seeds and, with --whole, once on all of them.

    python experiments/digits.py [--data DIR] [--work DIR] [--seeds 0,1,2,3,4] [--whole]

Runs that are complete in --work are not trained again.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from common import RESULTS, SHARED, history, metrics, panels, seconds, trained, write

from linnaeus.data.sources import open_source
from linnaeus.data.table import Table
from linnaeus.recipe import load_recipe

SHARE = 10
"""The comparison of schedules trains on one image in SHARE."""


def recipe(name: str, seed: int) -> dict[str, Any]:
    return load_recipe(name).model_dump() | {"seed": seed, "name": f"{name}-{seed}"}


def tenth(data: Path, seed: int) -> Table:
    """The source with a random tenth of its training images and all of its test images."""
    table = open_source(data)
    where = table.where("train")
    kept = np.random.default_rng(seed).choice(where, len(where) // SHARE, replace=False)
    chosen = table.select(np.sort(np.concatenate([kept, table.where("test")])))
    return replace(chosen, source=f"{data}, a tenth, {seed}")


def accuracies(runs: list[Path]) -> dict[str, Any]:
    tests = [100 * metrics(run)["test"]["accuracy"] for run in runs]
    return {
        "test": [round(t, 2) for t in tests],
        "mean": round(mean(tests), 3),
        "deviation": round(stdev(tests), 3) if len(tests) > 1 else None,
        "n": metrics(runs[0])["test"]["n"],
        "wall": [seconds(run)["wall"] for run in runs],
        "cpu": [seconds(run)["cpu"] for run in runs],
    }


def draw(runs: dict[str, Path], name: Path) -> None:
    """Learning rate, training loss and validation loss of the two schedules by epoch."""
    with panels(name, 8, 3.4, sharex=True) as (_, ((left, right),)):
        for (label, run), color in zip(runs.items(), ("#3a6ea5", "#c9a227"), strict=True):
            past = history(run)
            epochs = range(1, len(past["lr"]) + 1)
            left.step(epochs, past["lr"], where="mid", color=color, label=label)
            right.semilogy(epochs, past["train_loss"], "--", color=color, lw=1)
            right.semilogy(epochs, past["valid_loss"], color=color, label=label)
        left.set_yscale("log", base=2)
        left.set_ylabel("learning rate")
        right.set_ylabel("loss   (solid: validation, dashed: training)")
        for axis in (left, right):
            axis.set_xlabel("epoch")
            axis.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "mnist")
    parser.add_argument("--work", type=Path, default=Path("runs/digits"))
    parser.add_argument("--seeds", default="0,1,2,3,4", help="seeds of mnist-fast")
    parser.add_argument("--whole", action="store_true", help="also compare the schedules on all images (half an hour)")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    seeds = [int(s) for s in args.seeds.split(",")]
    schedules = ("mnist", "mnist-plateau")
    for name in schedules:
        runs = [trained(tenth(args.data, s), recipe(name, s), args.work / f"{name}-tenth-{s}") for s in range(3)]
        found[f"{name}, a tenth"] = accuracies(runs)
    for name in schedules if args.whole else ():
        found[name] = accuracies([trained(args.data, recipe(name, 0), args.work / f"{name}-0")])
    fast = [trained(args.data, recipe("mnist-fast", s), args.work / f"mnist-fast-{s}") for s in seeds]
    found["mnist-fast"] = accuracies(fast)
    of = "0" if args.whole else "tenth-0"
    draw({"step": args.work / f"mnist-{of}", "plateau": args.work / f"mnist-plateau-{of}"}, RESULTS / "digits.png")
    write("digits", found)
    for name, row in found.items():
        print(f"{name}: {row['mean']} ± {row['deviation']} % {row['test']}, seconds {row['wall']}, CPU {row['cpu']}")


if __name__ == "__main__":
    main()
