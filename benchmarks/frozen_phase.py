"""Twenty epochs of a new head on a frozen ResNet-50: stores against the plain loop of the tutorials.

Both sides see the same images without augmentation, train the same new head with Adam, and evaluate after every
epoch. Timed is the way from the table of files to the trained head: decoding, the frozen network, the epochs. Not
timed are imports, the trial that chooses an executor (though the export to ONNX is, where that was chosen), and
reports. The plain loop is timed for one epoch and multiplied.

    python benchmarks/frozen_phase.py [--data DIR] [--weights FILE] [--epochs 20] [--workers 0,2] [--share N]

`--share 8` takes every eighth image: minutes instead of a quarter of an hour, but a fixed cost then weighs more.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
from plain import SHARED, WEIGHTS, epoch, loaders, machine, some

from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.data.table import Table
from linnaeus.distributed.engine import Engine
from linnaeus.models.weights.loading import load_weights
from linnaeus.recipe import Recipe
from linnaeus.stores.frozen import TRIAL_IMAGES, FrozenStages
from linnaeus.training.phases import Phases
from linnaeus.training.setup.network import preprocessing_of
from linnaeus.training.setup.samples import load_samples
from linnaeus.training.streams import Streams

BATCH, LR = 64, 1e-3


def recipe(epochs: int) -> Recipe:
    phase = {"train": ["head"], "epochs": epochs, "batch": BATCH, "optimizer": "adam", "lr": LR}
    return Recipe.model_validate(
        {"model": {"name": "resnet50"}, "data": {"resize": 256, "size": 224}, "phase": [phase]}
    )


def stored(table: Table, weights: str, plan: Recipe, engine: Engine) -> tuple[float, float, dict[str, str]]:
    """(seconds, best share right on validation, executors) of a run on whatever stores there are."""
    console = Console(quiet=True)
    torch.manual_seed(plan.seed)
    loaded = load_weights("resnet50", weights, classes=len(table.classes))
    normalization = tuple(loaded.normalization["mean"]), tuple(loaded.normalization["std"])
    preprocessing = preprocessing_of(plan, 3, normalization)
    started = time.perf_counter()
    samples, *_ = load_samples(table, plan, preprocessing, False, console)
    frozen = FrozenStages.on_engine(loaded.model, preprocessing, engine, console)
    streams = Streams(frozen, samples["train"], samples["valid"], plan.phase, plan.seed)
    best = Phases(plan, streams, len(table.classes), engine).run()
    assert best.figures is not None
    return time.perf_counter() - started, best.figures.accuracy, frozen.made_by


def choose_first(table: Table, weights: str, plan: Recipe, engine: Engine) -> None:
    """The trial of executors, which a machine remembers."""
    model = load_weights("resnet50", weights, classes=len(table.classes)).model.to(engine.device)
    frozen = FrozenStages.on_engine(model, preprocessing_of(plan, 3, None), engine, Console(quiet=True))
    images = torch.randn(TRIAL_IMAGES, 3, 224, 224, device=engine.device)
    frozen.executor("head", images, len(table.where("train")))


def plain_epoch(table: Table, weights: str, workers: int, device: str) -> tuple[float, float]:
    """(seconds, share right on validation) of one epoch of the plain loop."""
    network = load_weights("resnet50", weights, classes=len(table.classes)).model.to(device)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith("fc."))
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=LR)
    started = time.perf_counter()
    right = epoch(network, optimizer, *loaders(table, 224, BATCH, workers), device)
    return time.perf_counter() - started, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", default="0,2", help="of the plain loop; '' leaves it out")
    parser.add_argument("--share", type=int, default=1)
    arguments = parser.parse_args()
    engine = Engine()
    device = engine.device.type
    table = some(split_table(open_source(arguments.data), valid=0.1, test=0.0, seed=0), arguments.share)
    counts = {split: len(table.where(split)) for split in ("train", "valid")}
    print(f"{arguments.data.name}: {counts}, {arguments.epochs} epochs; {machine(device)}", flush=True)
    plan = recipe(arguments.epochs)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LINNAEUS_CACHE"] = folder
        choose_first(table, arguments.weights, plan, engine)
        runs = {"cold stores": stored(table, arguments.weights, plan, engine)}
        plains = {
            int(workers): plain_epoch(table, arguments.weights, int(workers), device)
            for workers in filter(None, arguments.workers.split(","))
        }
        for turn in ("warm stores", "warm stores, again", "warm stores, a third time"):
            runs[turn] = stored(table, arguments.weights, plan, engine)
    for name, (seconds, accuracy, executors) in runs.items():
        made = ", ".join(sorted(set(executors.values())))
        print(f"  {name:26} {seconds:8.2f} s   best validation accuracy {accuracy:.2%}   ({made})")
    for workers, (seconds, accuracy) in plains.items():
        print(f"  plain loop, num_workers {workers}  {seconds:8.1f} s an epoch, {accuracy:.2%} after it; ", end="")
        print(f"{seconds * arguments.epochs:.0f} s for {arguments.epochs} (multiplied)")
        for name, (ours, *_) in runs.items():
            print(f"    {name:26} {seconds * arguments.epochs / ours:8.0f} x")


if __name__ == "__main__":
    main()
