"""fit(): the training loop, a generator that yields once an epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from linnaeus.data.batches import Batch
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.errors import JobError, first_line
from linnaeus.inference.forward import answer
from linnaeus.metrics.multilabel import Headline, headline
from linnaeus.models import Network
from linnaeus.training.ema import MovingAverage, pairs_by_type
from linnaeus.training.loss import not_finite
from linnaeus.training.optim import train_mode
from linnaeus.training.phase import PhaseRun, Stream
from linnaeus.training.schedule import Schedule
from linnaeus.training.snapshot import FitState, Snapshot
from linnaeus.training.step import Optimization, StepSums


@dataclass
class Step:
    """Progress after one optimizer step."""

    epoch: int  # from 1, inside the phase
    step: int  # from 1, inside the epoch
    steps: int  # steps of an epoch
    samples: int  # samples of this epoch so far
    # Returns (mean loss, accuracy or None) of the epoch so far. On a GPU the call waits for the device.
    means: Callable[[], tuple[float, float | None]]
    snapshot: Callable[[], Snapshot]  # returns the state after this step, from which another process can continue


@dataclass
class Epoch:
    """One epoch of training and its validation."""

    epoch: int  # from 1, inside the phase
    lr: float
    train_loss: float  # mean over the samples, of the main head, in training mode and with augmentation
    train_accuracy: float | None  # as train_loss; None if images are mixed, or may have several labels
    valid: Headline
    seconds: float
    # The network that was evaluated: the trained one, or its moving average. Save it before asking for the next epoch.
    model: Network
    # Returns the state after this epoch; None if the phase has a single epoch that needs no resuming.
    snapshot: Callable[[], Snapshot] | None = None


def fit(
    run: PhaseRun,
    engine: Engine,
    *,
    resume: Snapshot | None = None,
    better: Callable[[Headline], bool] | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_out_of_memory: Callable[[int], None] | None = None,
) -> Iterator[Epoch]:
    """Train `run.net` in place and yield after every epoch; the caller prints, saves or collects what is yielded.

    `resume` continues from a snapshot, and gives the same bits as a run that was never interrupted. `better` says
    whether an epoch is the best so far, which early stopping needs. When the memory runs out, the micro-batch is
    halved, `on_out_of_memory` receives its new size, and the effective batch stays the same.
    Raises JobError if the loss is not finite, or if a single sample does not fit the memory.
    """
    loop = _Loop(run, engine, on_step, on_out_of_memory)
    state, patience = loop.state, run.phase.early_stop
    if resume is not None:
        state.restore(resume)
    while state.epoch < run.phase.epochs and not (patience and state.since_best >= patience):
        epoch = loop.train_epoch()
        state.since_best = 0 if better is None or better(epoch.valid) else state.since_best + 1
        state.next_epoch()
        yield epoch


class _Loop:
    """The optimizer, schedule, moving average and state of one call of `fit`."""

    def __init__(
        self,
        run: PhaseRun,
        engine: Engine,
        on_step: Callable[[Step], None] | None,
        on_out_of_memory: Callable[[int], None] | None,
    ):
        self.run, self.engine, self.on_step, self.on_out_of_memory = run, engine, on_step, on_out_of_memory
        self.steps = len(run.train.batches)
        self.optimization = Optimization(run, engine)
        self.schedule = Schedule(self.optimization.optimizer, run.phase, self.steps)
        self.average = MovingAverage(run.net, run.phase.ema) if run.phase.ema else None
        self.state = FitState(
            run.net, self.optimization.optimizer, self.schedule, self.average, engine, run.micro_batch
        )

    def train_epoch(self) -> Epoch:
        """Train the rest of the current epoch, and evaluate."""
        run, state, schedule = self.run, self.state, self.schedule
        started = time.perf_counter() - state.seconds  # a resumed epoch has taken some seconds already
        # Validation has left the network in evaluation mode.
        train_mode(run.net.model, run.stages, run.phase.norms)
        buffers = BufferBackup(run.net)
        for batch in run.train.batches.epoch(run.first_epoch + state.epoch, state.step):
            self._train_batch(batch, buffers)
            state.step, state.seconds = state.step + 1, time.perf_counter() - started
            if self.on_step is not None:
                samples, means = state.totals.samples, state.totals.means
                self.on_step(Step(state.epoch + 1, state.step, self.steps, samples, means, state.snapshot))
        state.totals.check_finite(state.epoch, state.step - 1, schedule.lr, always=True)
        evaluated = run.net if self.average is None else self.average.model
        valid = validate(evaluated, run.valid, self.engine, state.epoch)
        if not math.isfinite(valid.loss):  # the last step diverged, which no training loss has shown yet
            raise not_finite(valid.loss, f"validation after epoch {state.epoch + 1}", schedule.lr)
        train_loss, train_accuracy = state.totals.means()
        lr, seconds = schedule.lr, time.perf_counter() - started
        # Called after the learning rate was read for the report: a plateau may lower it for the next epoch.
        schedule.after_epoch(
            {
                "train_loss": train_loss,
                "train_accuracy": math.nan if train_accuracy is None else train_accuracy,
                "valid_loss": valid.loss,
                "valid_accuracy": valid.accuracy,
            }
        )
        return Epoch(state.epoch + 1, lr, train_loss, train_accuracy, valid, seconds, evaluated.model, state.snapshot)

    def _train_batch(self, batch: Batch, buffers: BufferBackup) -> None:
        """One optimizer step, and what follows from it: moving average and sums of the epoch."""
        state = self.state
        self.schedule.before_step(state.epoch * self.steps + state.step)
        samples, world_size = len(batch) - batch.portion.lead, self.engine.world_size
        step = partial(self._step, batch)
        sums = step_within_memory(state, buffers, samples, step, self.on_out_of_memory, world_size)
        if self.average is not None:
            self.average.update()
        state.totals.add(sums.loss, sums.correct, batch.portion.total)
        state.totals.check_finite(state.epoch, state.step, self.schedule.lr)

    def _step(self, batch: Batch, micro_batch: int | None) -> StepSums:
        epoch = self.run.first_epoch + self.state.epoch
        # Seeded at every try, so that a repeated or resumed step draws the same dropout masks.
        seed_step(self.run.seed, epoch, self.state.step, self.engine.rank)
        return self.optimization.step(batch, epoch, micro_batch)


def validate(net: nn.Module, valid: Stream, engine: Engine, epoch: int = 0) -> Headline:
    """The metrics of `net` on the validation images that training has not seen, identical on all ranks."""
    outputs = answer(net, valid.batches, lambda batch: valid.prepare(batch, epoch), engine, engine.autocast)
    return engine.broadcast(lambda: headline(outputs if valid.unseen is None else outputs.take(valid.unseen)))


class BufferBackup:
    """A copy of the BatchNorm statistics, to undo a step that failed."""

    def __init__(self, net: nn.Module):
        """`net` is in training mode; frozen parts, in evaluation mode, collect no statistics."""
        buffers = [b for module in net.modules() if module.training for b in module.buffers(recurse=False)]
        self.pairs = pairs_by_type((buffer.clone(), buffer) for buffer in buffers)

    @torch.no_grad()
    def save(self) -> None:
        for copies, buffers in self.pairs:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def restore(self) -> None:
        for copies, buffers in self.pairs:
            torch._foreach_copy_(buffers, copies)


def step_within_memory(
    state: FitState,
    buffers: BufferBackup,
    samples: int,
    step: Callable[[int | None], StepSums],
    on_out_of_memory: Callable[[int], None] | None,
    world_size: int = 1,
) -> StepSums:
    """Call `step(micro_batch)`; when the memory runs out, halve the micro-batch for this and all later steps.

    `samples`: samples of the batch in this process. Raises JobError if a single sample does not fit, and with several
    processes at once.
    """
    buffers.save()
    while True:
        try:
            return step(state.micro_batch)
        except torch.OutOfMemoryError as error:
            reason = first_line(error)
        # Handled outside the except clause: while the exception lives it holds the memory of the failed step.
        size = min(state.micro_batch or samples, samples)
        if world_size > 1:  # the other processes wait in a collective for this one, so the step cannot be repeated
            raise JobError(
                f"out of memory with {size} images at once ({reason}); use another --out and "
                f"--set micro_batch={max(1, size // 2)}, which keeps the effective batch"
            )
        if size == 1:
            raise JobError(f"out of memory with a single image at once ({reason}); use a smaller data.size")
        buffers.restore()
        # Cached blocks have the sizes of the failed step and would fragment the memory.
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        state.micro_batch = -(-size // 2)
        if on_out_of_memory is not None:
            on_out_of_memory(state.micro_batch)
