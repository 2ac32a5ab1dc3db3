"""fit(): the one training loop, a generator of epochs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from linnaeus.data.batches import Batch
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.errors import JobError
from linnaeus.inference.forward import answer
from linnaeus.metrics.classification import Figures, figures
from linnaeus.models import Network
from linnaeus.recipe import Phase
from linnaeus.training.ema import Average
from linnaeus.training.optim import build_optimizer, train_mode, training_stages
from linnaeus.training.schedule import Schedule
from linnaeus.training.snapshot import Snapshot, Standing
from linnaeus.training.step import Criterion, Stream, Totals, not_finite, optimizer_step

Taken = tuple[Tensor, Tensor | None]
"""(sum of the losses, number right) of a step, on the device."""


class Above(nn.Module):
    """What a phase runs of a network: all of it, or what lies above the cut."""

    model: Network

    def __init__(self, model: Network, start: str | None = None):
        super().__init__()
        self.model, self.start = model, start

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.start is None else self.model.run(x, start=self.start)


@dataclass
class Step:
    """One step of the optimizer, told to whoever watches."""

    epoch: int
    step: int
    steps: int
    samples: int
    means: Callable[[], tuple[float, float | None]]
    """(mean loss, share right or None) of the epoch so far. On a GPU, asking waits for it."""
    snapshot: Callable[[], Snapshot]
    """Where the phase stands after this step, to go on from there in another process."""


@dataclass
class Epoch:
    """One epoch of training, evaluated."""

    epoch: int
    """From 1, inside the phase."""
    lr: float
    train_loss: float
    """Mean over the samples, of the main head, in training mode and with augmentation."""
    train_accuracy: float | None
    """As train_loss; None where images are mixed and have no one label."""
    valid: Figures
    seconds: float
    model: Network
    """What was evaluated: the network, or its moving average. Save it before asking for the next epoch."""
    snapshot: Callable[[], Snapshot] | None = None
    """Where the phase stands after this epoch; None where there was nothing to repeat."""


def fit(
    net: Above,
    phase: Phase,
    train: Stream,
    valid: Stream,
    engine: Engine,
    *,
    classes: int,
    seed: int = 0,
    first_epoch: int = 0,
    micro: int | None = None,
    better: Callable[[Figures], bool] | None = None,
    resume: Snapshot | None = None,
    shrink: Callable[[int], None] = lambda micro: None,
    watch: Callable[[Step], None] = lambda step: None,
) -> Iterator[Epoch]:
    """Train `net` in place by `phase`, yielding once an epoch.

    The command prints what is yielded, a test collects it; any of them may evaluate or save between. `first_epoch`
    counts the epochs of earlier phases, so that no two epochs of a run draw the same random numbers. `micro` is the
    number of samples that go through the network at once. `better` says whether an epoch is the best yet (early stop).
    Where the memory does not suffice on the way, it is halved, and `shrink` told; the effective batch stays.
    With `resume` it goes on where that was taken, and does as if it had never been stopped, to the bit.
    Raises JobError if the loss is not finite, or not even one sample fits the memory.
    """
    stages = training_stages(net.model, phase.train)
    bare = build_optimizer(net.model, phase)
    wrapped, optimizer = engine.setup(net, bare)
    schedule = Schedule(optimizer, phase, len(train.batches))
    average = Average(net, phase.ema) if phase.ema else None
    criterion = Criterion(phase, train.batches.labels, classes, engine.device)
    now = Standing(net, bare, schedule, average, engine, Totals(engine.device), micro)
    if resume is not None:
        now.put_back(resume)

    while now.epoch < phase.epochs and not (phase.early_stop and now.since_best >= phase.early_stop):
        started = time.perf_counter() - now.seconds
        train_mode(net.model, stages, phase.norms)
        statistics = Statistics(net)
        epoch, drawn = now.epoch, first_epoch + now.epoch
        for batch in train.batches.epoch(drawn, now.step):
            schedule.before_step(epoch * len(train.batches) + now.step)

            def take(micro: int | None, batch: Batch = batch, drawn: int = drawn) -> Taken:
                seed_step(seed, drawn, now.step, engine.rank)
                return optimizer_step(wrapped, optimizer, batch, train, criterion, engine, phase, drawn, micro)

            loss, right = step_that_fits(
                now, statistics, len(batch) - batch.portion.lead, take, shrink, engine.world_size
            )
            if average is not None:
                average.update(net)
            now.totals.add(loss, right, batch.portion.total)
            now.totals.check(epoch, now.step, schedule.lr)
            now.step, now.seconds = now.step + 1, time.perf_counter() - started
            watch(Step(epoch + 1, now.step, len(train.batches), now.totals.samples, now.totals.means, now.take))
        now.totals.check(epoch, now.step - 1, schedule.lr, now=True)
        evaluated = net if average is None else average.model
        result = validated(evaluated, valid, engine, epoch)
        if not math.isfinite(result.loss):  # the last step went too far, which no training loss has shown yet
            raise not_finite(result.loss, f"validation after epoch {epoch + 1}", schedule.lr)
        train_loss, train_accuracy = now.totals.means()
        lr, seconds = schedule.lr, time.perf_counter() - started
        schedule.after_epoch(
            {
                "train_loss": train_loss,
                "train_accuracy": math.nan if train_accuracy is None else train_accuracy,
                "valid_loss": result.loss,
                "valid_accuracy": result.accuracy,
            }
        )
        now.since_best = 0 if better is None or better(result) else now.since_best + 1
        now.next_epoch()
        yield Epoch(epoch + 1, lr, train_loss, train_accuracy, result, seconds, evaluated.model, now.take)


def validated(net: nn.Module, valid: Stream, engine: Engine, epoch: int = 0) -> Figures:
    """The figures of `net` on the validation images, the same in all processes."""
    found = answer(net, valid.batches, lambda batch: valid.prepare(batch, epoch), engine, engine.autocast)
    return engine.broadcast(lambda: figures(found))


class Statistics:
    """A copy of what BatchNorm has collected, so that a step that failed can be undone."""

    def __init__(self, net: nn.Module):
        """`net` in training mode: what is frozen collects nothing."""
        buffers = [b for module in net.modules() if module.training for b in module.buffers(recurse=False)]
        kinds = {buffer.dtype: [b for b in buffers if b.dtype == buffer.dtype] for buffer in buffers}
        self.pairs = [([b.clone() for b in alike], alike) for alike in kinds.values()]

    @torch.no_grad()
    def keep(self) -> None:
        for copies, buffers in self.pairs:  # all of a type at once: one launch on a GPU
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def put_back(self) -> None:
        for copies, buffers in self.pairs:
            torch._foreach_copy_(buffers, copies)


def step_that_fits(
    now: Standing,
    statistics: Statistics,
    samples: int,
    take: Callable[[int | None], Taken],
    shrink: Callable[[int], None],
    world: int = 1,
) -> Taken:
    """take(samples at once): one step. Where the memory does not suffice it is tried again with half as many at once,
    which holds from then on."""
    statistics.keep()
    while True:
        try:
            return take(now.micro)
        except torch.OutOfMemoryError as error:
            reason = str(error)
        # Only here is what the failed try had taken free again: the exception held it.
        at_once = min(now.micro or samples, samples)
        if world > 1:  # the others are in the middle of adding up gradients, and would wait for ours
            raise JobError(
                f"out of memory with {at_once} images at once ({reason.splitlines()[0]}); give another --out and "
                f"--set phase.N.micro_batch={max(1, at_once // 2)}: the batch stays"
            )
        if at_once == 1:
            raise JobError(f"out of memory with a single image at once ({reason.splitlines()[0]}); use smaller ones")
        statistics.put_back()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        now.micro = -(-at_once // 2)
        shrink(now.micro)
