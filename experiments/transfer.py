"""Transfer: how much of a network to train, depending on the number of images per class.

ResNet-50 with ImageNet weights on 112-pixel images: only a new head, which is solved; the head, then layer4 and the
head; the head, then everything; and one stage after the other (gradual unfreezing). For comparison, ResNet-18 from
scratch. Each on 1, 2, 5, 10 and all images per class, drawn anew for each seed. Accuracy is measured on images that are
never trained on, after the last epoch. No epoch is selected, except that a phase starts from the best weights of the
phase before it.

    python experiments/transfer.py [--data DIR,DIR] [--weights FILE] [--work DIR] [--seeds 0,1,2]

Whole networks take most of the time and are trained with the first seed only. Runs that are complete in --work are not
trained again. Times are CPU seconds with warm stores, as in a second run.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from common import RESULTS, SHARED, last_epoch, panels, seconds, trained, write

from linnaeus.data.sources import open_source
from linnaeus.data.table import Table

SIZE = 112
COUNTS = (1, 2, 5, 10, 0)
"""Training images per class; 0 means all."""
EPOCHS = {1: 12, 2: 12, 5: 8, 10: 6, 0: 2}
"""Images per class -> epochs of fine-tuning, summed over its phases."""
SOLVED = {"train": ["head"], "head": "auto"}
METHODS = ("scratch", "head", "layer4", "all", "gradual")
LABELS = {
    "scratch": "ResNet-18 from scratch", "head": "head alone", "layer4": "head, then layer4", "all": "head, then all",
    "gradual": "stage after stage",
}  # fmt: skip
COLORS = dict(zip(METHODS, ("#888888", "#3a6ea5", "#2a9d8f", "#b5342c", "#c9a227"), strict=True))
TICKS = (10, 20, 50, 100, 200, 500)
CHEAP = ("head", "layer4")
"""Methods that are trained with every seed."""


def tuned(stages: list[str], epochs: int, lr: float) -> dict[str, Any]:
    """A phase of fine-tuning: a small learning rate, smaller in earlier stages, and frozen BatchNorm statistics."""
    return {
        "train": stages, "epochs": max(1, epochs), "batch": 16, "optimizer": "adamw", "lr": lr, "lr_decay": 0.5,
        "weight_decay": 1e-2, "norms": "frozen", "schedule": {"name": "cosine", "warmup": 0.2},
        "augment": {"hflip": 0.5},
    }  # fmt: skip


def phases(method: str, count: int) -> list[dict[str, Any]]:
    epochs = EPOCHS[count]
    if method == "scratch":
        onecycle = {"batch": 16, "optimizer": "adamw", "lr": 1e-3, "schedule": {"name": "onecycle"}}
        return [{"epochs": 8 if count == 0 else 25, **onecycle, "weight_decay": 1e-2, "augment": {"hflip": 0.5}}]
    if method == "head":
        return [SOLVED]
    if method == "layer4":
        return [SOLVED, tuned(["layer4", "head"], epochs, 2e-4)]
    if method == "all":
        return [SOLVED, tuned(["all"], epochs, 2e-4)]
    third = epochs // 3
    steps = (["layer4", "head"], ["layer3", "layer4", "head"], ["all"])
    return [SOLVED, *(tuned(stages, third, 2e-4 / 2**i) for i, stages in enumerate(steps))]


def recipe(method: str, count: int, seed: int, weights: str) -> dict[str, Any]:
    scratch = method == "scratch"
    model = {"name": "resnet18" if scratch else "resnet50", "weights": "none" if scratch else weights}
    data = {"resize": SIZE, "size": SIZE, "normalize": "imagenet" if scratch else "weights", "valid": "test"}
    return {"name": method, "seed": seed, "model": model, "data": data, "phase": phases(method, count)}


def few(data: Path, count: int, seed: int) -> Table:
    """The source with `count` training images of each class; its validation or test images become the test split."""
    table = open_source(data)
    measured = "valid" if len(table.where("valid")) else "test"
    draw, kept = np.random.default_rng(seed), []
    for label in range(len(table.classes)):
        where = np.array([i for i in table.where("train") if table.labels[i] == label])
        kept.append(where if count == 0 else draw.choice(where, min(count, len(where)), replace=False))
    rows = np.sort(np.concatenate([*kept, table.where(measured)]))
    split = np.where(np.isin(rows, table.where(measured)), "test", "train").astype("<U5")
    return replace(table.select(rows), split=split, source=f"{data}, {count} a class, {seed}")


def outcome(runs: list[Path]) -> dict[str, Any]:
    """Mean accuracy over the seeds after the last epoch, interval of the first seed, and mean CPU seconds."""
    each, n, interval = last_epoch(runs)
    return {
        "accuracy": round(mean(each), 2), "each": [round(a, 2) for a in each], "n": n, "interval": interval,
        "seconds": round(mean(seconds(run)["cpu"] for run in runs), 1),
    }  # fmt: skip


def draw(found: dict[str, dict[str, dict[str, Any]]], name: Path) -> None:
    """For each source, accuracy by the number of images per class and by CPU time."""
    with panels(name, 9, 3.6 * len(found), len(found)) as (_, axes):
        for row, (source, cells) in zip(axes, found.items(), strict=True):
            for method in METHODS:
                rows = [cells[f"{method}-{count}"] for count in COUNTS]
                places, values = range(len(COUNTS)), [r["accuracy"] for r in rows]
                row[0].plot(places, values, "o-", ms=4, color=COLORS[method], label=LABELS[method])
                row[1].plot([r["seconds"] for r in rows], values, "-", lw=0.7, color=COLORS[method], alpha=0.5)
                for r, size in zip(rows, (10, 20, 35, 60, 110), strict=True):
                    row[1].scatter(r["seconds"], r["accuracy"], s=size, color=COLORS[method])
            row[0].set_xticks(range(len(COUNTS)), [str(count or "all") for count in COUNTS])
            row[0].set_xlabel("training images per class")
            row[0].set_ylabel(f"{source}: accuracy, %")
            row[0].legend(frameon=False, fontsize=8)
            row[1].set_xscale("log")
            row[1].set_xticks(TICKS, [str(tick) for tick in TICKS], minor=False)
            row[1].minorticks_off()
            row[1].set_xlabel("CPU seconds   (larger dots: more images)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=f"{SHARED / 'flowers16'},{SHARED / 'food10'}")
    parser.add_argument("--weights", default=str(SHARED / "weights" / "resnet50-v1-imagenet.safetensors"))
    parser.add_argument("--work", type=Path, default=Path("runs/transfer"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", default=",".join(METHODS), help="methods to train now; the plot needs all of them")
    args = parser.parse_args()
    seeds, sources = [int(s) for s in args.seeds.split(",")], [Path(d) for d in args.data.split(",")]

    def place(source: Path, method: str, count: int, seed: int) -> Path:
        return args.work / source.name / f"{method}-{count}-{seed}"

    for method in args.methods.split(","):
        for source in sources:
            for count in COUNTS:
                for seed in seeds if method in CHEAP else seeds[:1]:
                    made = recipe(method, count, seed, args.weights)
                    trained(few(source, count, seed), made, place(source, method, count, seed))
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for source in sources:
        cells = found.setdefault(source.name, {})
        for method in METHODS:
            for count in COUNTS:
                runs = [place(source, method, count, s) for s in (seeds if method in CHEAP else seeds[:1])]
                if any(not (run / "metrics.json").exists() for run in runs):
                    return
                cells[f"{method}-{count}"] = outcome(runs)
    draw(found, RESULTS / "transfer.png")
    write("transfer", found)
    for source_name, cells in found.items():
        print(f"\n{source_name}\n| | {' | '.join(str(count or 'all') for count in COUNTS)} |\n|---|" + "---|" * 5)
        for method in METHODS:
            print(f"| {LABELS[method]} | {' | '.join(str(cells[f'{method}-{c}']['accuracy']) for c in COUNTS)} |")


if __name__ == "__main__":
    main()
