"""Accuracy of training in bfloat16 against float32: the same recipe with several seeds, in both precisions in turns.

    python benchmarks/training_precision.py [--data DIR] [--model resnet20] [--size 32] [--epochs 8] [--seeds 5]
    python benchmarks/training_precision.py --data flowers16 --model resnet50 --weights FILE --size 128 --epochs 2

With weights, a head is solved on the frozen network first, and then everything is fine-tuned. Prints the validation
accuracy after the last epoch of each run, and that of the saved model on the test images where there are any, with the
mean difference and its 95 % interval (Student's t over the seeds).
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from plain import SHARED, machine
from scipy import stats

import linnaeus
from linnaeus.console import Console
from linnaeus.recipe import Recipe
from linnaeus.runs.history import read_history

PRECISIONS = ("32", "bf16-mixed")


def phases(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The phases of a recipe from scratch or, with weights, of fine-tuning."""
    if arguments.weights == "none":
        training = {"batch": 128, "optimizer": "sgd", "lr": 0.1, "weight_decay": 5e-4, "schedule": {"name": "onecycle"}}
        return [{**training, "epochs": arguments.epochs, "augment": {"pad_crop": 4, "hflip": 0.5}}]
    everything = {"train": ["all"], "batch": 32, "optimizer": "adamw", "lr": 1e-4, "schedule": {"name": "cosine"}}
    return [{"train": ["head"], "head": "auto"}, {**everything, "epochs": arguments.epochs, "augment": {"hflip": 0.5}}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "cifar10-12k")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    recipe = {
        "model": {"name": arguments.model, "weights": arguments.weights},
        "data": {"resize": arguments.size, "size": arguments.size},
        "phase": phases(arguments),
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
                last = read_history(out / "history.csv")[-1].valid_accuracy  # the saved model may be that before it
                found.append(run.test.accuracy if run.test else last)
                seconds = time.process_time() - started
                test = f"  test {run.test.correct} of {run.test.n}" if run.test else ""
                print(f"  seed {seed}  {precision:10}  valid {100 * last:.2f} %{test}  {seconds:.0f} s", flush=True)
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
