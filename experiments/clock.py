"""Training speed on CIFAR-10, compared with the loop of a typical tutorial, and the time to an accuracy of 94 %.

Both sides train ResNet-20, or another network, on 32x32 images with random crops and flips, batches of 128 and SGD with
Nesterov momentum. Linnaeus keeps the images on the device and augments a batch at a time there. The plain loop is a
`DataLoader` over PIL images with torchvision v2 transforms, one image at a time. The two take turns in one process,
`--steps` batches each.

With --target, the recipe `small` is then trained, and the time until it reaches that test accuracy is recorded.

    python experiments/clock.py [--data DIR] [--net resnet20] [--steps 20] [--turns 3] [--target 0.94]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from common import ROOT, SHARED, history, trained, write
from torch.utils.data import DataLoader, Dataset

from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.data.table import Table
from linnaeus.device import steady_heap
from linnaeus.distributed.engine import Engine
from linnaeus.models import create
from linnaeus.recipe import Recipe, load_recipe
from linnaeus.stores.frozen import FrozenStages
from linnaeus.training.optim import train_mode
from linnaeus.training.phase import PhaseRun, TrainablePart
from linnaeus.training.setup.network import preprocessing_of
from linnaeus.training.setup.samples import load_samples
from linnaeus.training.step import Optimization
from linnaeus.training.streams import Streams

sys.path.insert(0, str(ROOT / "tests"))

from reference import torchvision

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def plan(net: str) -> Recipe:
    """The recipe `small` for a network."""
    found = load_recipe("small").model_dump()
    found["model"]["name"] = net
    found["data"]["valid"] = "test"
    return Recipe.model_validate(found)


class Images(Dataset):
    """The dataset of a typical tutorial: one PIL image at a time, with torchvision's transforms."""

    def __init__(self, table: Table):
        torchvision()
        import torchvision.transforms.v2 as v2
        from PIL import Image

        assert table.images is not None
        where = table.where("train")
        self.images = [Image.fromarray(table.images[i]) for i in where]
        self.labels = table.labels[where]
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4),
                v2.RandomHorizontalFlip(),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[i]), int(self.labels[i])


def synchronize(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


def ours(table: Table, recipe: Recipe, engine: Engine, steps: int) -> Callable[[], float]:
    """A function that trains `steps` batches with Linnaeus and returns images per second."""
    torch.manual_seed(0)
    phase, network = recipe.phase[0], create(recipe.model.name, len(table.classes)).to(engine.device)
    preprocessing = preprocessing_of(recipe, 3, (MEAN, STD))
    samples, *_ = load_samples(table, recipe, preprocessing, False, Console(silent=True))
    frozen = FrozenStages.on_engine(network, preprocessing, engine, Console(silent=True))
    cut, train, valid = Streams(frozen, samples["train"], samples["valid"], recipe.phase, 0).of(0)
    net = TrainablePart(network, cut)
    optimization = Optimization(PhaseRun(phase, net, train, valid, len(table.classes)), engine)
    epoch = 0

    def run() -> float:
        nonlocal epoch
        train_mode(network, list(network.stages))
        with steady_heap():
            started, seen = time.perf_counter(), 0
            for batch in train.batches.epoch(epoch):
                optimization.step(batch, epoch, None)
                seen += len(batch)
                if seen >= steps * phase.batch:
                    break
            synchronize(engine)
            epoch += 1
            return seen / (time.perf_counter() - started)

    return run


def plain(table: Table, recipe: Recipe, engine: Engine, steps: int, workers: int) -> Callable[[], float]:
    """The same with the plain loop."""
    torch.manual_seed(0)
    phase, network = recipe.phase[0], create(recipe.model.name, len(table.classes)).to(engine.device).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    images = Images(table)

    def run() -> float:
        loader = DataLoader(images, batch_size=phase.batch, shuffle=True, num_workers=workers)
        started, seen = time.perf_counter(), 0
        for x, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(x.to(engine.device)), labels.to(engine.device)).backward()
            optimizer.step()
            seen += len(x)
            if seen >= steps * phase.batch:
                break
        synchronize(engine)
        return seen / (time.perf_counter() - started)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "cifar10-12k")
    parser.add_argument("--work", type=Path, default=Path("runs/clock"))
    parser.add_argument("--net", default="resnet20")
    parser.add_argument("--workers", default="0,2", help="DataLoader workers of the plain loop")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.0, help="test accuracy to reach; 0: measure the speed only")
    args = parser.parse_args()
    engine, recipe = Engine(), plan(args.net)
    table = split_table(open_source(args.data), valid=0.1, test=0.0, seed=0, valid_is_test=True)
    sides = {"ours": ours(table, recipe, engine, args.steps)}
    for workers in map(int, args.workers.split(",")):
        sides[f"plain loop, num_workers {workers}"] = plain(table, recipe, engine, args.steps, workers)
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(args.turns + 1):  # the first turn warms up
        for name, run in sides.items():
            rate = run()
            if turn:
                rates[name].append(rate)
    best = statistics.median(rates["ours"])
    found: dict[str, Any] = {"device": engine.describe(engine.precision), "net": args.net, "rates": {}}
    for name, values in rates.items():
        middle = statistics.median(values)
        found["rates"][name] = {"median": round(middle, 1), "range": [round(min(values), 1), round(max(values), 1)]}
        print(f"{name:28} {middle:8.1f} images/s ({min(values):.1f}-{max(values):.1f})   {best / middle:.2f} x")
    if args.target:
        past = history(trained(args.data, recipe.model_dump(), args.work / args.net))
        clock = 0.0
        for accuracy, took in zip(past["valid_accuracy"], past["seconds"], strict=True):
            clock += took
            if accuracy >= args.target:
                break
        found["to"] = {"accuracy": accuracy, "target": args.target, "seconds": round(clock, 1)}
        print(f"{100 * accuracy:.2f} % after {clock:.0f} s")
    write("clock", found)


if __name__ == "__main__":
    main()
