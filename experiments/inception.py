"""Inception v1: what the 1x1 reductions save in each module, and what the auxiliary heads contribute.

Counts the multiply-adds of each module of table 1 (Szegedy et al. 2014, arXiv:1409.4842) with reductions, by formula
and by the counter of `linnaeus models`, and without them (figure 2a), by formula and by torch's counter. Then trains
the network from scratch on 64-pixel images, with and without auxiliary heads, with the same seeds.

    python experiments/inception.py [--data DIR] [--work DIR] [--epochs 8] [--seeds 0,1] [--size 64]

Runs that are complete in --work are not trained again. `--seeds ""` only counts.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from common import RESULTS, SHARED, history, last_epoch, panels, seconds, trained, write
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from linnaeus.models import create
from linnaeus.models.layers import layer_table

TABLE_1 = {  # channels in, #1x1, #3x3 reduce, #3x3, #5x5 reduce, #5x5, pool proj, side
    "3a": (192, 64, 96, 128, 16, 32, 32, 28),
    "3b": (256, 128, 128, 192, 32, 96, 64, 28),
    "4a": (480, 192, 96, 208, 16, 48, 64, 14),
    "4b": (512, 160, 112, 224, 24, 64, 64, 14),
    "4c": (512, 128, 128, 256, 24, 64, 64, 14),
    "4d": (512, 112, 144, 288, 32, 64, 64, 14),
    "4e": (528, 256, 160, 320, 32, 128, 128, 14),
    "5a": (832, 256, 160, 320, 32, 128, 128, 7),
    "5b": (832, 384, 192, 384, 48, 128, 128, 7),
}
COLORS = {True: "#3a6ea5", False: "#c9a227"}


class Naive(nn.Module):
    """An Inception module without reductions (figure 2a): every kernel sees all channels of the input.

    (N, c_in, H, W) -> (N, c1 + c3 + c5 + pool, H, W). With `pool` = 0, as in the figure, the pooling branch has no
    projection and contributes c_in channels.
    """

    def __init__(self, c_in: int, c1: int, c3: int, c5: int, pool: int):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(c_in, c, k, padding=k // 2, bias=False) for c, k in ((c1, 1), (c3, 3), (c5, 5))
        )
        last = nn.Conv2d(c_in, pool, 1, bias=False) if pool else nn.Identity()
        self.branches.append(nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), last))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def by_hand(c_in: int, c1: int, r3: int, c3: int, r5: int, c5: int, pool: int, side: int) -> tuple[int, int]:
    """Multiply-adds of the module and of the same module without reductions: k * k * c_in * c_out * positions each."""
    around = c_in * c1 + c_in * pool
    reduced = around + c_in * r3 + 9 * r3 * c3 + c_in * r5 + 25 * r5 * c5
    naive = around + 9 * c_in * c3 + 25 * c_in * c5
    return reduced * side**2, naive * side**2


def costs() -> dict[str, dict[str, int]]:
    """Module -> multiply-adds with and without reductions. Raises AssertionError if formula and counters disagree."""
    with torch.device("meta"):
        rows = layer_table(create("inception_v1", 1000), 224)
    found: dict[str, dict[str, int]] = {}
    for name, (c_in, c1, r3, c3, r5, c5, pool, side) in TABLE_1.items():
        reduced, naive = by_hand(c_in, c1, r3, c3, r5, c5, pool, side)
        counted = sum(row.multiply_adds for row in rows if row.name.startswith(f"inception{name}."))
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            Naive(c_in, c1, c3, c5, pool)(torch.empty(1, c_in, side, side))
        if counted != reduced or counter.get_total_flops() != 2 * naive:
            raise AssertionError(f"{name}: {reduced:,} by hand, {counted:,} counted; {naive:,} and its double in flops")
        found[name] = {"with": reduced, "without": naive, "channels": c1 + c3 + c5 + pool}
    return found


def passed_on() -> list[int]:
    """Channels after each module if the pooling branch has no projection (figure 2a): the width keeps growing."""
    channels, found = 192, []
    for _, c1, _, c3, _, c5, _, _ in TABLE_1.values():
        channels += c1 + c3 + c5
        found.append(channels)
    return found


def recipe(aux: bool, epochs: int, size: int, seed: int) -> dict[str, Any]:
    phase = {
        "epochs": epochs, "batch": 32, "optimizer": "adamw", "lr": 2e-3, "weight_decay": 1e-2,
        "schedule": {"name": "onecycle"}, "augment": {"hflip": 0.5, "crop_scale": [0.5, 1.0]},
    }  # fmt: skip
    model = {"name": "inception_v1", "arguments": {"aux": aux}}
    data = {"resize": size, "size": size, "normalize": "imagenet"}
    return {"name": "inception", "seed": seed, "model": model, "data": data, "phase": [phase]}


def draw(runs: dict[bool, list[Path]], name: Path) -> None:
    """Validation loss and accuracy by epoch, one line per seed."""
    with panels(name, 8, 3.2) as (_, ((left, right),)):
        for aux, folders in runs.items():
            for i, folder in enumerate(folders):
                past = history(folder)
                epochs = range(1, len(past["valid_loss"]) + 1)
                label = None if i else f"{'with' if aux else 'without'} auxiliary heads"
                left.plot(epochs, past["valid_loss"], color=COLORS[aux], label=label)
                right.plot(epochs, [100 * a for a in past["valid_accuracy"]], color=COLORS[aux], label=label)
        left.set_ylabel("validation loss")
        right.set_ylabel("validation accuracy, %")
        for axis in (left, right):
            axis.set_xlabel("epoch")
            axis.legend(frameon=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--work", type=Path, default=Path("runs/inception"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", default="0,1")
    parser.add_argument("--size", type=int, default=64)
    args = parser.parse_args()
    modules = costs()
    print("| module | with reductions | without | times |\n|---|---|---|---|")
    for name, row in modules.items():
        print(f"| {name} | {row['with']:,} | {row['without']:,} | {row['without'] / row['with']:.1f} |")
    total = {kind: sum(row[kind] for row in modules.values()) for kind in ("with", "without")}
    print(f"| all | {total['with']:,} | {total['without']:,} | {total['without'] / total['with']:.1f} |")
    print("channels without a projection of the pool:", passed_on(), flush=True)
    runs: dict[bool, list[Path]] = {True: [], False: []}
    for seed in (int(s) for s in args.seeds.split(",") if s):
        for aux in runs:
            folder = args.work / f"{'aux' if aux else 'plain'}-{seed}"
            runs[aux].append(trained(args.data, recipe(aux, args.epochs, args.size, seed), folder))
    outcome = {}
    for aux, folders in runs.items() if args.seeds else ():
        each, n, interval = last_epoch(folders)
        outcome["with" if aux else "without"] = {
            "accuracy": [round(a, 1) for a in each], "n": n, "interval": interval,
            "loss": [history(folder)["valid_loss"][-1] for folder in folders],
            "cpu": round(mean(seconds(folder)["cpu"] for folder in folders)),
        }  # fmt: skip
    if outcome:
        draw(runs, RESULTS / "inception.png")
    write("inception", {"modules": modules, "passed_on": passed_on(), "heads": outcome, "epochs": args.epochs})
    print(outcome)


if __name__ == "__main__":
    main()
