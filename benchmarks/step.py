"""Host time of a training step: what the processor does while a GPU could compute.

    python benchmarks/step.py [--steps 98] [--batch 512]

The network is one multiplication, and the images are one pixel, so that the operations take hardly longer than their
calls; the host draws for as many samples as ever. Two ways to augment (crop and flip) are timed in turns: the numbers
drawn for every batch, and for the whole epoch at once. The time is that of the processor in this thread, so that other
programs do not count. --profile prints the functions that take the most time.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.augment.crops import EpochCrops, draw_crops
from linnaeus.augment.pipeline import Augmentation
from linnaeus.data.batches import Batches, InMemoryRows, Sampling
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.models import wrap
from linnaeus.recipe import Augment, Phase
from linnaeus.training.loop import BufferBackup
from linnaeus.training.loss import EpochTotals
from linnaeus.training.optim import train_mode
from linnaeus.training.phase import PhaseRun, Stream, TrainablePart
from linnaeus.training.schedule import Schedule
from linnaeus.training.step import Optimization
from linnaeus.training.streams import augmented

CPU = torch.device("cpu")
CLASSES = 2  # the softmax of ten takes longer than its call
SIDE = 1


class NoOperation(nn.Module):
    """One weight, so that there is something to train."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :1] * self.weight


def drawn_for_a_device(changes: Augmentation, draws: np.ndarray, epoch: int) -> EpochCrops:
    """What `changes` draws for an epoch, though there is no other device."""
    return draw_crops(changes.spec, (SIDE, SIDE), SIDE, changes.seed, epoch, draws, CPU)


def phase_run(steps: int, batch: int, epochs_at_once: bool) -> PhaseRun:
    """The phase, augmented in one of the two ways."""
    rows = InMemoryRows(torch.zeros(steps * batch, SIDE, SIDE, 3, dtype=torch.uint8))
    labels = np.arange(len(rows)) % CLASSES
    batches = Batches(rows, labels, batch=batch, device=CPU, sampling=Sampling(shuffle=True))
    changes = Augmentation(Augment(pad_crop=1, hflip=0.5), size=SIDE, mean=[0.5] * 3, std=[0.25] * 3, seed=0)

    if epochs_at_once:  # which `changes.draw_epoch` does for rows on a GPU
        batches.draw_epoch = partial(drawn_for_a_device, changes)
    stream = Stream(batches, partial(augmented, changes))
    spec = Phase.model_validate({"epochs": 1, "batch": batch, "lr": 0.1, "optimizer": "sgd"})
    return PhaseRun(spec, TrainablePart(wrap(NoOperation(), CLASSES)), stream, stream, CLASSES)


def epochs(run: PhaseRun) -> Iterator[float]:
    """Milliseconds of the host for a step, for one epoch after the other."""
    engine = Engine("cpu", "32")
    optimization = Optimization(run, engine)
    train_mode(run.net.model, run.stages)
    backup, schedule = BufferBackup(run.net), Schedule(optimization.optimizer, run.phase, len(run.train.batches))
    epoch = 0
    while True:
        totals, started = EpochTotals(CPU), time.thread_time()
        for step, batch in enumerate(run.train.batches.epoch(epoch)):
            schedule.before_step(step)
            backup.save()
            seed_step(0, epoch, step)
            sums = optimization.step(batch, epoch, None)
            totals.add(sums.loss, sums.correct, len(batch))
        yield 1e3 * (time.thread_time() - started) / len(run.train.batches)
        epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=98, help="steps of an epoch")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    ways = {way: epochs(phase_run(arguments.steps, arguments.batch, way == "epoch")) for way in ("batch", "epoch")}
    found: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):
        for way, measured in ways.items():
            found[way].append(next(measured))
    print(f"batch {arguments.batch}, {arguments.steps} steps, median of {arguments.repeats} epochs in turns")
    for way, values in found.items():
        middle = statistics.median(values)
        print(f"  drawn for the {way}: {middle:.2f} ms of the host a step ({min(values):.2f} to {max(values):.2f})")
    if arguments.profile:
        for way, measured in ways.items():
            profile = cProfile.Profile()
            profile.runcall(next, measured)
            print(f"\ndrawn for the {way}")
            pstats.Stats(profile).sort_stats("tottime").print_stats(10)


if __name__ == "__main__":
    main()
