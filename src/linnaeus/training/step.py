"""One step of the optimizer: the loss, its gradient in pieces that fit the memory, and the sums of an epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.augment.mixup import Mixing
from linnaeus.data.batches import Batch, Batches, part_of
from linnaeus.distributed.engine import Engine
from linnaeus.errors import JobError
from linnaeus.recipe import Phase


@dataclass
class Stream:
    """Batches, and how each becomes what the network takes: `prepare(batch, epoch)`."""

    batches: Batches
    prepare: Callable[[Batch, int], Tensor]


def optimizer_step(
    wrapped: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    train: Stream,
    criterion: Criterion,
    engine: Engine,
    phase: Phase,
    epoch: int,
    micro: int | None,
) -> tuple[Tensor, Tensor | None]:
    """One step of the optimizer: (sum of the losses, number right) over all processes, on the device."""
    sums = torch.zeros(2, device=engine.device, dtype=torch.float32 if engine.device.type == "mps" else torch.float64)
    optimizer.zero_grad(set_to_none=True)
    mixing = Mixing(criterion.classes, train.batches.sampling.seed, phase.mixup, phase.cutmix)
    mixes = mixing.active
    if mixes:  # before the batch is divided: partners and targets must not depend on what fits the memory
        images = train.prepare(batch, epoch)
        mixed = mixing(images, batch.labels, batch.draws, epoch=epoch, first=batch.portion.first)
    synced = phase.norms == "synced"
    everybody = synced or len(own_parts(batch.portion.total, engine.world_size)[-1]) > 0
    overlaps = engine.reduces_in_backward and everybody
    parts = local_pieces(batch, engine, micro, synced)
    for i, (start, stop) in enumerate(parts):
        part = batch.part(start, stop)
        if mixes:
            x, targets = mixed[0][start:stop], mixed[1][start:stop]
        elif start == stop:  # a part of nothing, in the shape of something
            x, targets = train.prepare(batch.part(0, 1), epoch)[:0], part.labels
        else:
            x, targets = train.prepare(part, epoch), part.labels
        with engine.no_sync(wrapped, not overlaps or i < len(parts) - 1):
            logits, *auxiliary = _heads(wrapped(x))
            loss = criterion(logits, targets)
            total = loss
            for other in auxiliary:
                total = total + phase.aux_weight * criterion(other, targets)
            # Gradients are averaged over the processes, and what is wanted is their sum over the whole batch's count.
            engine.backward(total * engine.world_size / batch.portion.total)
        sums[0] += loss.detach()
        if not mixes:
            sums[1] += (logits.argmax(1) == part.labels).sum()
    if not overlaps and engine.world_size > 1:
        engine.average_gradients(wrapped)
    engine.all_reduce_sum(sums)
    if phase.clip:
        engine.clip_gradients(wrapped, optimizer, phase.clip)
    try:
        optimizer.step()
    except torch.OutOfMemoryError:  # half of the weights may be new, so nothing can be tried again
        raise JobError("out of memory in the optimizer's update; take sgd, or train fewer stages") from None
    engine.average_buffers(wrapped)
    return sums[0], None if mixes else sums[1]


def local_pieces(batch: Batch, engine: Engine, micro: int | None, synced: bool) -> list[tuple[int, int]]:
    """(start, stop) in this process's part of a batch, of what goes through the network at once.

    Where the processes talk to each other in the forward pass, they have equally many, be it pieces of nothing.
    """
    own = len(batch) - batch.portion.lead
    if not synced or engine.world_size == 1:
        found = pieces(own, micro or own) if own else []
    else:
        largest = max(len(part) for part in own_parts(batch.portion.total, engine.world_size))
        count = -(-largest // (micro or largest))
        found = [(own * i // count, own * (i + 1) // count) for i in range(count)]
    return [(batch.portion.lead + start, batch.portion.lead + stop) for start, stop in found]


def own_parts(n: int, world: int) -> list[range]:
    """The samples of a batch of n that each process has."""
    return [range(n)[part_of(n, rank, world)] for rank in range(world)]


def pieces(n: int, most: int) -> list[tuple[int, int]]:
    """(start, stop) of as few and as equal pieces of n samples as `most` a piece allow.

    Equal, so that none is left with the single image on which BatchNorm cannot be trained.
    """
    count = -(-n // most)
    return [(n * i // count, n * (i + 1) // count) for i in range(count)]


def _heads(out: Tensor | tuple[Tensor, list[Tensor]]) -> list[Tensor]:
    """The logits, then those of the auxiliary heads where there are any."""
    return [out] if isinstance(out, Tensor) else [out[0], *out[1]]


def balanced(labels: np.ndarray, classes: int) -> Tensor:
    """(classes,) float32: inversely proportional to a class's count, 1 on average over the samples."""
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts > 0, len(labels) / (np.maximum(counts, 1) * (counts > 0).sum()), 0.0)
    return torch.tensor(weights, dtype=torch.float32)


class Criterion:
    """Cross-entropy on logits, summed over the batch, with label smoothing and class weights.

    The weights are inversely proportional to a class's count and average 1 over the training samples, so that they
    leave the scale of the loss, and with it the learning rate, alone.
    """

    def __init__(self, phase: Phase, labels: np.ndarray, classes: int, device: torch.device):
        self.smoothing, self.classes = phase.label_smoothing, classes
        self.weights: Tensor | None = None
        if phase.class_weights == "balanced":
            self.weights = balanced(labels, classes).to(device)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """`targets`: (N,) classes, or (N, classes) shares where images are mixed."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        targets = targets.to(logits) if targets.is_floating_point() else targets
        losses = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="none")
        if self.weights is None:
            return losses.sum()
        weights = self.weights[targets] if targets.ndim == 1 else targets @ self.weights.to(targets)
        return (losses * weights).sum()


class Totals:
    """Loss and right answers of an epoch, summed on the device and divided by the number of samples."""

    # Asking a GPU for a number makes it wait; asking now and then is soon enough to stop a run that went wrong.
    CHECK_EVERY = 50

    def __init__(self, device: torch.device):
        self.loss = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self.right: Tensor | None = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0
        self.every = 1 if device.type == "cpu" else self.CHECK_EVERY
        self.shown: tuple[float, float | None] = (math.nan, None)
        self.fresh = False

    def add(self, loss: Tensor, right: Tensor | None, samples: int) -> None:
        self.loss = self.loss + loss.to(self.loss)
        self.right = None if right is None or self.right is None else self.right + right.long()
        self.samples += samples
        self.fresh = False

    def put_back(self, loss: Tensor, right: Tensor | None, samples: int) -> None:
        """The sums of an epoch that was cut."""
        self.loss = loss.to(self.loss)
        self.right = None if right is None or self.right is None else right.to(self.right)
        self.samples, self.fresh = samples, False

    def means(self) -> tuple[float, float | None]:
        """(mean loss, share right or None) so far."""
        if not self.fresh:
            right = None if self.right is None else float(self.right) / self.samples
            self.shown, self.fresh = (float(self.loss) / self.samples, right), True
        return self.shown

    def check(self, epoch: int, step: int, lr: float, *, now: bool = False) -> None:
        """Raise JobError if the loss has become NaN or infinite; `now`: even if it is not yet time to look."""
        if (now or (step + 1) % self.every == 0) and not math.isfinite(self.means()[0]):
            where = f"epoch {epoch + 1}, step {step + 1}" + (f" or the {self.every} before" if self.every > 1 else "")
            raise not_finite(float(self.loss), where, lr)


def not_finite(loss: float, where: str, lr: float) -> JobError:
    """The error for a loss that is NaN or infinite."""
    return JobError(
        f"the loss is not finite ({loss:g}) at {where}, with learning rate {lr:g}; "
        f"try a lower one (--set phase.N.lr={lr / 10:g}) or clip the gradient (--set phase.N.clip=1)"
    )
