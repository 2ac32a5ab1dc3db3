"""Accuracy of training in bfloat16 against float32: the same recipe with several seeds, in both precisions in turns.

    python benchmarks/training_precision.py [--data DIR] [--model resnet20] [--size 32] [--epochs 8] [--seeds 5]

Prints the test accuracy of each run, and the mean difference with its 95 % interval (Student's t over the seeds).
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import numpy as np
from plain import SHARED, machine
from scipy import stats

import linnaeus
from linnaeus.console import Console
from linnaeus.recipe import Recipe

PRECISIONS = ("32", "bf16-mixed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "cifar10-12k")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    phase = {
        "epochs": arguments.epochs,
        "batch": 128,
        "optimizer": "sgd",
        "lr": 0.1,
        "weight_decay": 5e-4,
        "schedule": {"name": "onecycle"},
        "augment": {"pad_crop": 4, "hflip": 0.5},
    }
    recipe = {
        "model": {"name": arguments.model},
        "data": {"resize": arguments.size, "size": arguments.size},
        "phase": [phase],
    }
    print(f"{arguments.data.name}, {arguments.model}, {arguments.epochs} epochs; {machine('cpu')}", flush=True)
    accuracies: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(arguments.seeds):
            for precision, found in accuracies.items():
                started = time.process_time()
                spec = Recipe.model_validate({**recipe, "precision": precision, "seed": seed})
                out = Path(folder) / f"{precision}-{seed}"
                run = linnaeus.train(
                    arguments.data, spec, out=out, device="cpu", draw=False, console=Console(quiet=True)
                )
                figures = run.test or run.valid
                found.append(figures.accuracy)
                seconds = time.process_time() - started
                print(f"  seed {seed}  {precision:10}  {figures.correct} of {figures.n}  {seconds:.0f} s", flush=True)
    differences = np.subtract(accuracies["bf16-mixed"], accuracies["32"])
    means = ", ".join(f"{precision} {100 * np.mean(found):.2f} %" for precision, found in accuracies.items())
    line = f"mean accuracy: {means}; bfloat16 minus float32: {100 * differences.mean():+.2f} points"
    if len(differences) > 1:
        error = differences.std(ddof=1) / math.sqrt(len(differences))
        half = stats.t.ppf(0.975, len(differences) - 1) * error
        line += f", 95 % interval {100 * (differences.mean() - half):+.2f} to {100 * (differences.mean() + half):+.2f}"
    print(line)


if __name__ == "__main__":
    main()
