"""One phase of training, ready to run: its settings, its part of the network and its data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from linnaeus.data.batches import Batch, Batches
from linnaeus.models import Network
from linnaeus.recipe import Phase
from linnaeus.training.optim import training_stages


@dataclass
class Stream:
    """Batches, and the function `prepare(batch, epoch)` that turns a batch into the input of the network."""

    batches: Batches
    prepare: Callable[[Batch, int], Tensor]
    unseen: np.ndarray | None = None  # (n,) bool: the samples that measure the network; None: all


class TrainablePart(nn.Module):
    """The part of a network that a phase trains and runs in each step: everything, or the stages from the cut on."""

    model: Network

    def __init__(self, model: Network, start: str | None = None):
        """`start`: the first stage above the cut; None runs the whole network."""
        super().__init__()
        self.model, self.start = model, start

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) if self.start is None else self.model.run(x, start=self.start)


@dataclass
class PhaseRun:
    """A phase with everything that it trains on."""

    phase: Phase
    net: TrainablePart
    train: Stream
    valid: Stream
    classes: int  # number of classes
    seed: int = 0
    number: int = 1  # number of the phase, from 1
    first_epoch: int = 0  # epochs of earlier phases: no two epochs of a run may draw the same random numbers
    micro_batch: int | None = None  # samples that go through the network at once in each process; None: the whole batch

    whole_micro_batch: int | None = None  # the micro-batch of a single process that has all samples of a batch
    # Whether the stages below the head were trained on these training images: then cross-validation is optimistic.
    seen: bool = False
    compiled: bool = False  # whether torch.compile translates the training pass

    def undivided(self) -> PhaseRun:
        """The phase as a single process runs it, with the whole batches."""
        train = replace(self.train, batches=self.train.batches.undivided())
        return replace(self, train=train, micro_batch=self.whole_micro_batch)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that train."""
        return training_stages(self.net.model, self.phase.train)
