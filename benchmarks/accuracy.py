"""Whether the stores cost accuracy: the same epochs on stores and by the plain loop of the tutorials.

ResNet-50 from the same weights with the same new head, the same optimizer, batches and epochs, no augmentation; only
the order of the images differs. The plain loop is run twice: as in tutorials, where the BatchNorms of the frozen part
are in training mode and drift, and with the frozen part in evaluation mode, which is what stores assume. Validation
accuracy is that of the last epoch, on the split that seed 0 gives, for all; seconds are those of the whole way,
decoding and frozen part included, with cold stores for the first of ours.

    python benchmarks/accuracy.py [--data DIR] [--weights FILE] [--plan "head:5;layer4,head:2;all:1"]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from plain import SHARED, WEIGHTS, epoch, loaders, machine

from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.data.table import Table
from linnaeus.distributed.engine import Engine
from linnaeus.metrics.intervals import wilson
from linnaeus.models.weights.loading import load_weights
from linnaeus.recipe import Recipe
from linnaeus.stores.frozen import FrozenStages
from linnaeus.training.optim import build_optimizer, freeze, training_stages
from linnaeus.training.phases import Phases
from linnaeus.training.setup.network import preprocessing_of
from linnaeus.training.setup.samples import load_samples
from linnaeus.training.streams import Streams

BATCH = 32
RATES = {"head": 1e-3}  # for what starts anew; 1e-4 for what is trained already


def recipe(train: list[str], epochs: int) -> Recipe:
    phase = {"train": train, "epochs": epochs, "batch": BATCH, "optimizer": "adamw", "lr": RATES.get(train[0], 1e-4)}
    return Recipe.model_validate(
        {"model": {"name": "resnet50"}, "data": {"resize": 256, "size": 224}, "phase": [phase]}
    )


def on_stores(table: Table, weights: str, plan: Recipe, engine: Engine) -> tuple[int, float]:
    """(right on validation after the last epoch, seconds)."""
    console = Console(quiet=True)
    torch.manual_seed(plan.seed)
    loaded = load_weights("resnet50", weights, classes=len(table.classes))
    preprocessing = preprocessing_of(plan, 3, (tuple(loaded.normalization["mean"]), tuple(loaded.normalization["std"])))
    started = time.perf_counter()
    samples, *_ = load_samples(table, plan, preprocessing, False, console)
    frozen = FrozenStages.on_engine(loaded.model, preprocessing, engine, console)
    streams = Streams(frozen, samples["train"], samples["valid"], plan.phase, plan.seed)
    phases = Phases(plan, streams, len(table.classes), engine)
    phases.run()
    right = phases.recorder.rows[-1].valid_accuracy
    return round(right * len(samples["valid"])), time.perf_counter() - started


def by_plain_loop(table: Table, weights: str, plan: Recipe, engine: Engine, still: bool = False) -> tuple[int, float]:
    """(right on validation after the last epoch, seconds). `still`: the frozen stages stay in evaluation mode."""
    torch.manual_seed(plan.seed)
    network = load_weights("resnet50", weights, classes=len(table.classes)).model.to(engine.device)
    phase = plan.phase[0]
    trained = training_stages(network, phase.train)
    freeze(network, trained)
    frozen = [m for name, m in network.named_modules() if name and network.stage_of(name) not in trained]
    optimizer = build_optimizer(network, phase)
    train, valid = loaders(table, 224, BATCH, 0)
    started, right = time.perf_counter(), 0.0
    for number in range(phase.epochs):
        last = number == phase.epochs - 1
        right = epoch(
            network, optimizer, train, valid if last else None, engine.device.type, still=frozen if still else None
        )
    return round(right * len(table.where("valid"))), time.perf_counter() - started


SIDES: dict[str, Callable[[Table, str, Recipe, Engine], tuple[int, float]]] = {
    "stores": on_stores,
    "plain": by_plain_loop,
    "plain-still": partial(by_plain_loop, still=True),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--plan", default="head:5;layer4,head:2;all:1")
    arguments = parser.parse_args()
    engine = Engine()
    table = split_table(open_source(arguments.data), valid=0.1, test=0.0, seed=0)
    n = len(table.where("valid"))
    print(f"{arguments.data.name}: {len(table.where('train'))} images, {n} of validation", end="; ")
    print(machine(engine.device.type), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LINNAEUS_CACHE"] = folder
        for part in arguments.plan.split(";"):
            stages, _, epochs = part.partition(":")
            plan = recipe(stages.split(","), int(epochs))
            for side in arguments.sides.split(","):
                right, seconds = SIDES[side](table, arguments.weights, plan, engine)
                low, high = wilson(right, n)
                print(
                    f"  {stages:12} {epochs} epochs  {side:12}  {right / n:.1%} ({right} of {n}, 95 % interval "
                    f"{low:.1%} to {high:.1%})  {seconds:6.0f} s",
                    flush=True,
                )


if __name__ == "__main__":
    main()
