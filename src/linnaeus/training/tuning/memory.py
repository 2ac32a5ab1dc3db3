"""Memory and time of a training step, measured on a copy of the network before training."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.training.optim import train_mode
from linnaeus.training.phase import TrainablePart

MEMORY_SHARE = 0.5
"""Share of the free memory that activations may take; gradients, workspaces and other programs need the rest."""


@dataclass(frozen=True)
class SampleCost:
    """Cost of one sample in a training step."""

    bytes: int  # memory that is kept for the backward pass
    # Time of the measured step, for one sample. It was the first one, so later steps are faster.
    seconds: float = 0.0

    def micro_batch(self, batch: int, free: int) -> int:
        """The micro-batch for a batch of `batch` samples in `free` bytes: equal parts, as few as fit."""
        fits = max(1, int(MEMORY_SHARE * free / max(1, self.bytes)))
        count = -(-batch // fits)
        return -(-batch // count)


def measure_cost(net: TrainablePart, stages: tuple[str, ...], x: Tensor) -> SampleCost:
    """Run forward and backward on a copy of `net` in training mode, for the samples `x`.

    Tensors saved by autograd are counted by storage, so that several views of one tensor count once.
    """
    # A copy, so that the trial changes neither gradients nor BatchNorm statistics.
    twin = copy.deepcopy(net)
    train_mode(twin.model, stages)
    storages: dict[int, int] = {}
    parameters = {p.untyped_storage().data_ptr() for p in twin.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:  # weights are in memory anyway
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        out = twin(x)
    # Networks with auxiliary heads return several outputs in training mode.
    logits = out if isinstance(out, Tensor) else out[0]
    F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()
    return SampleCost(sum(storages.values()) // len(x), (time.perf_counter() - started) / len(x))
