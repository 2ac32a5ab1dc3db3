"""How many samples fit at once, and how long a step takes: measured on a copy before training."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.training.loop import Above
from linnaeus.training.optim import train_mode

SHARE = 0.5  # of the free memory that activations may take: gradients, workspaces and other programs need the rest


@dataclass(frozen=True)
class Probe:
    """What one sample costs in a phase."""

    bytes: int
    """Memory kept for the backward pass, in bytes a sample."""
    seconds: float
    """Forward and backward, in seconds a sample."""

    def micro_batch(self, batch: int, free: int) -> int:
        """Samples that fit at once, out of a step of `batch`: equal pieces, as few as the memory allows."""
        fits = max(1, int(SHARE * free / max(1, self.bytes)))
        pieces = -(-batch // fits)
        return -(-batch // pieces)


def probe(net: Above, stages: tuple[str, ...], x: Tensor) -> Probe:
    """Run forward and backward on a copy of `net` for the samples `x`, in training mode, twice.

    What autograd keeps is counted storage by storage, so that views of one tensor count once.
    """
    twin = copy.deepcopy(net)
    train_mode(twin.model, stages)
    storages: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in twin.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    seconds = 0.0
    for _ in range(2):  # the first time warms caches and chooses algorithms
        storages.clear()  # the second time, memory that was freed may or may not come back at the same place
        started = time.perf_counter()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            out = twin(x)
        logits = out if isinstance(out, Tensor) else out[0]
        F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long, device=x.device)).backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        twin.zero_grad(set_to_none=True)
    return Probe(sum(storages.values()) // len(x), seconds / len(x))
