"""One epoch of fine-tuning ResNet-50: on stores, against the plain loop of the tutorials.

`layer4, head`: the stores are warm, so an epoch sees what layer3 gives. `all`: the pixel store is warm, and the whole
network trains. Both sides train the same stages with AdamW on the same images, without augmentation, and nothing is
evaluated. On a CPU the stores are used in each precision that `auto` chooses from. The sides take turns; the plain loop
is timed for `--steps` batches, and each side gives images a second, and its ratio to the last one.

    python benchmarks/finetune.py [--data DIR] [--weights FILE] [--workers 0,2] [--steps 4] [--turns 3]
                                   [--train "layer4,head;all"]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from plain import SHARED, WEIGHTS, epoch, loaders, machine

from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.data.table import Table
from linnaeus.device import steady_heap
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.precision import BF16, CHANNELS_LAST, FLOAT32
from linnaeus.models import Network
from linnaeus.models.weights.loading import load_weights
from linnaeus.recipe import Phase, Recipe
from linnaeus.stores.frozen import FrozenStages
from linnaeus.stores.samples import Samples
from linnaeus.training.optim import freeze, train_mode, training_stages
from linnaeus.training.phase import PhaseRun, TrainablePart
from linnaeus.training.setup.network import preprocessing_of
from linnaeus.training.setup.samples import load_samples
from linnaeus.training.step import Optimization
from linnaeus.training.streams import Streams

BATCH, LR = 32, 1e-4


def ours(
    table: Table, network: Network, samples: dict[str, Samples], plan: Recipe, engine: Engine, steps: int
) -> Callable[[], float]:
    """A function that trains `steps` batches of the plan's phase and returns images a second."""
    phase: Phase = plan.phase[0]
    stages = training_stages(network, phase.train)
    freeze(network, stages)
    network.to(engine.device)
    preprocessing = preprocessing_of(plan, 3, None)
    frozen = FrozenStages.on_engine(network, preprocessing, engine, Console(quiet=True))
    cut, train, valid = Streams(frozen, samples["train"], samples["valid"], plan.phase, plan.seed).of(0)
    net = TrainablePart(network, cut)
    optimization = Optimization(PhaseRun(phase, net, train, valid, len(table.classes)), engine)

    def run() -> float:
        train_mode(network, stages)
        with steady_heap():  # as train() has it; the other side has the heap as it is in every program
            started, seen = 0.0, 0
            for step, batch in enumerate(train.batches.epoch(0)):
                if step == 1:  # the first one fetched the memory, which a run does once and every turn here again
                    synchronize(engine)
                    started, seen = time.perf_counter(), 0
                optimization.step(batch, 0, None)
                seen += len(batch)
                if step == steps:
                    break
            synchronize(engine)
            return seen / (time.perf_counter() - started)

    return run


def plain(
    table: Table, network: Network, plan: Recipe, engine: Engine, workers: int, steps: int
) -> Callable[[], float]:
    """The same, by the plain loop: every image opened, and the whole network run."""
    stages = training_stages(network, plan.phase[0].train)
    freeze(network, stages)
    network.to(engine.device)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=LR)

    def run() -> float:
        loader, _ = loaders(table, 224, BATCH, workers)
        started = time.perf_counter()
        epoch(network, optimizer, loader, device=engine.device.type, most=steps)
        synchronize(engine)
        return min(steps * BATCH, len(table.where("train"))) / (time.perf_counter() - started)

    return run


def synchronize(engine: Engine) -> None:
    if engine.device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=SHARED / "flowers16")
    parser.add_argument("--weights", default=str(WEIGHTS))
    parser.add_argument("--workers", default="0,2", help="of the plain loop")
    parser.add_argument("--steps", type=int, default=4, help="batches of 32 in a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--train", default="layer4,head;all", help="what trains, one phase after the other")
    arguments = parser.parse_args()
    engine = Engine()
    cpu = engine.device.type == "cpu"
    precisions = [FLOAT32, CHANNELS_LAST, BF16] if cpu else [engine.precision]
    table = split_table(open_source(arguments.data), valid=0.1, test=0.0, seed=0)
    print(
        f"{arguments.data.name}: batches of {BATCH}, {arguments.turns} turns; {machine(engine.device.type)}", flush=True
    )

    def network() -> Network:
        return load_weights("resnet50", arguments.weights, classes=len(table.classes)).model

    with tempfile.TemporaryDirectory() as folder:
        os.environ["LINNAEUS_CACHE"] = folder
        for train in (stages.split(",") for stages in arguments.train.split(";")):
            phase = {"train": train, "epochs": 1, "batch": BATCH, "optimizer": "adamw", "lr": LR}
            plan = Recipe.model_validate(
                {"model": {"name": "resnet50"}, "data": {"resize": 256, "size": 224}, "phase": [phase]}
            )
            samples, *_ = load_samples(table, plan, preprocessing_of(plan, 3, None), False, Console(quiet=True))
            sides = {
                f"stores, {precision}": ours(
                    table, network(), samples, plan, engine.with_precision(precision), arguments.steps
                )
                for precision in precisions
            }
            for workers in map(int, filter(None, arguments.workers.split(","))):
                sides[f"plain loop, num_workers {workers}"] = plain(
                    table, network(), plan, engine, workers, arguments.steps
                )
            rates: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(arguments.turns):
                for name, run in sides.items():
                    rates[name].append(run())
            slowest = statistics.median(list(rates.values())[-1])
            print(f"{', '.join(train)}:")
            for name, found in rates.items():
                rate = statistics.median(found)
                spread = f"({min(found):.1f}-{max(found):.1f})"
                print(f"  {name:30} {rate:7.1f} images/s {spread}   {rate / slowest:.2f} x", flush=True)


if __name__ == "__main__":
    main()
