"""One optimizer step: the gradient of a batch, in micro-batches that fit the memory, and the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linnaeus.augment.mixup import MixupCutmix
from linnaeus.data.batches import Batch
from linnaeus.data.order import part_of
from linnaeus.distributed.engine import Engine
from linnaeus.errors import JobError, first_line
from linnaeus.training.graph import GraphedPass
from linnaeus.training.loss import Criterion
from linnaeus.training.optim import build_optimizer
from linnaeus.training.phase import PhaseRun


@dataclass
class StepSums:
    """Sums over the samples of a step, or of a part of it, on the device."""

    # In float64, where the device has it: that makes the rounding negligible, however many parts there are.
    loss: Tensor
    correct: Tensor | None  # number of correct predictions; None if images are mixed or may have several labels

    def __add__(self, other: StepSums) -> StepSums:
        correct = None if self.correct is None or other.correct is None else self.correct + other.correct
        return StepSums(self.loss + other.loss, correct)


class Optimization:
    """The optimizer of a phase, and the step that it takes for a batch."""

    def __init__(self, run: PhaseRun, engine: Engine):
        self.run, self.engine = run, engine
        self.wrapped = engine.setup(run.net)
        # For one shape: with sizes that vary the kernels are slower, and only the last batch has another size.
        self.compiled = torch.compile(self.wrapped, dynamic=False) if run.compiled else None
        self.translated = False
        self.optimizer = build_optimizer(run.net.model, run.phase)
        self.criterion = Criterion(run.phase, run.train.batches.labels, run.classes, engine.device)
        seed = run.train.batches.sampling.seed
        self.several = self.criterion.several
        self.mixing = MixupCutmix(run.classes, seed, run.phase.mixup, run.phase.cutmix)
        self.synced = run.phase.norms == "synced"
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.graphed = self._graphed()

    def _graphed(self) -> GraphedPass | None:
        """The pass of a whole batch that a GPU can be given at once. The scaler of 16 bits decides on the host."""
        engine, phase = self.engine, self.run.phase
        if engine.device.type != "cuda" or engine.world_size > 1 or engine.scaler is not None:
            return None
        return GraphedPass(self._backward, self.trained, phase.epochs * len(self.run.train.batches))

    def step(self, batch: Batch, epoch: int, micro_batch: int | None) -> StepSums:
        """Update the weights with the gradient of `batch`.

        `epoch` is counted over all phases. `micro_batch`: samples that go through the network at once in this process;
        None: all of them. Raises torch.OutOfMemoryError before anything has changed but BatchNorm's statistics.
        """
        engine, phase = self.engine, self.run.phase
        for parameter in self.trained:  # as `zero_grad`, which also reports to a profiler
            parameter.grad = None
        # Images are mixed before the batch is divided: partners and targets must not depend on the free memory.
        mixed = self._mix(batch, epoch) if self.mixing.active else None
        # DDP sums gradients in the last backward pass, which every process must reach.
        everyone_has_samples = self.synced or len(sample_ranges(batch.portion.total, engine.world_size)[-1]) > 0
        in_backward = engine.reduces_in_backward and everyone_has_samples
        ranges = micro_batches(batch, engine, micro_batch, self.synced)
        sums: StepSums | None = None
        for i, (start, stop) in enumerate(ranges):
            x, targets = self._inputs(batch, epoch, start, stop) if mixed is None else (m[start:stop] for m in mixed)
            sync = engine.no_sync(self.wrapped, not in_backward or i < len(ranges) - 1)
            with sync, engine.kernel_search(self._is_whole(batch.portion.total)):
                # Micro-batches add up their gradients, for which a recording has no place.
                compute = self._backward if self.graphed is None or len(ranges) > 1 else self.graphed
                part = compute(x, targets, batch.portion.total, mixed is None and not self.several)
            sums = part if sums is None else sums + part
        if not in_backward and engine.world_size > 1:
            engine.average_gradients(self.wrapped)
        if phase.clip:
            engine.clip_gradients(self.wrapped, self.optimizer, phase.clip)
        self._update()
        # Each process has collected BatchNorm statistics from its own samples.
        engine.average_buffers(self.wrapped)
        return self._over_processes(sums, mixed is None and not self.several)

    def _over_processes(self, sums: StepSums | None, counted: bool) -> StepSums:
        """The sums of all processes, which all need: a plateau schedule may depend on them. None: no samples here."""
        if sums is not None and self.engine.world_size == 1:
            return sums
        both = torch.zeros(2, device=self.engine.device, dtype=self._sum_type)
        if sums is not None:
            both[0] = sums.loss
            if sums.correct is not None:
                both[1] = sums.correct
        self.engine.all_reduce_sum(both)
        return StepSums(both[0], both[1] if counted else None)

    @property
    def _sum_type(self) -> torch.dtype:
        return torch.float32 if self.engine.device.type == "mps" else torch.float64  # MPS has no float64

    def _mix(self, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Mixup or CutMix over the whole batch: (images, class shares)."""
        images = self.run.train.prepare(batch, epoch)
        return self.mixing(images, batch.labels, batch.draws, epoch=epoch, first=batch.portion.first)

    def _inputs(self, batch: Batch, epoch: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Network input and labels of samples `start` to `stop`."""
        prepare = self.run.train.prepare
        part = batch if (start, stop) == (0, len(batch)) else batch.part(start, stop)
        if start == stop:  # empty micro-batch with the right feature shape
            return prepare(batch.part(0, 1), epoch)[:0], part.labels
        return prepare(part, epoch), part.labels

    def _backward(self, x: Tensor, targets: Tensor, total: int, counted: bool) -> StepSums:
        """Forward and backward pass of a micro-batch: the sums of the main head, with the correct ones if `counted`.

        Auxiliary heads add to the gradient and not to the loss that is reported.
        """
        with self.engine.autocast():
            out = self._compiled(x) if self.compiled is not None and self._is_whole(total) else self.wrapped(x)
        logits, auxiliary = (out, []) if isinstance(out, Tensor) else out
        loss = objective = self.criterion(logits, targets)
        for other in auxiliary:
            objective = objective + self.run.phase.aux_weight * self.criterion(other, targets)
        # DDP averages gradients over processes; we want the sum divided by the global batch size.
        world_size = self.engine.world_size
        self.engine.backward((objective if world_size == 1 else objective * world_size) / total)
        correct = (logits.argmax(1) == targets).sum() if counted else None
        return StepSums(loss.detach().to(self._sum_type), correct)

    def _compiled(self, x: Tensor) -> Any:
        """The outputs of the compiled network; it is compiled by the first call. Raises JobError if that fails."""
        assert self.compiled is not None
        if self.translated:
            return self.compiled(x)
        try:
            out = self.compiled(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers fail in many ways, and their exceptions have no class in common
            reason = first_line(error)
            raise JobError(f"torch.compile cannot compile this network ({reason}); use --set compile=false") from error
        self.translated = True
        return out

    def _is_whole(self, total: int) -> bool:
        """Whether a batch of `total` samples has the size of most others."""
        return total >= self.run.phase.batch

    def _update(self) -> None:
        try:
            self.engine.update(self.optimizer)
        except torch.OutOfMemoryError:
            # Some weights may be updated already, so the step cannot be repeated with smaller micro-batches.
            raise JobError(
                "out of memory in the optimizer's update; use optimizer = sgd, or train fewer stages"
            ) from None


def micro_batches(batch: Batch, engine: Engine, size: int | None, synced: bool) -> list[tuple[int, int]]:
    """(start, stop) of the micro-batches of this process's part of a batch.

    With synchronized BatchNorm every process has the same number of them, some perhaps empty, since the processes
    communicate in the forward pass.
    """
    samples = len(batch) - batch.portion.lead  # the lead belongs to another process: it is only a mixing partner
    if not synced or engine.world_size == 1:
        ranges = even_ranges(samples, -(-samples // (size or samples))) if samples else []
    else:
        largest = max(len(part) for part in sample_ranges(batch.portion.total, engine.world_size))
        ranges = even_ranges(samples, -(-largest // (size or largest)))
    return [(batch.portion.lead + start, batch.portion.lead + stop) for start, stop in ranges]


def sample_ranges(n: int, world_size: int) -> list[range]:
    """The samples of a batch of `n` that each process has."""
    return [range(n)[part_of(n, rank, world_size)] for rank in range(world_size)]


def even_ranges(n: int, count: int) -> list[tuple[int, int]]:
    """Divide `n` samples into `count` ranges (start, stop) that differ by at most one sample.

    Equal ranges leave no single image at the end, on which BatchNorm cannot be trained.
    """
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]
