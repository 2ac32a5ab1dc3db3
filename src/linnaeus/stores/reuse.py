"""Reuse of stored activations of an earlier run: rows that it has are copied, and the others computed."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.models.executors import Executor
from linnaeus.stores.activations import ActivationStore

SINGLY = ("onnxruntime", "int8", "network")
"""Executors that compute each image of a batch on its own, the last one because its batches have one size. Otherwise
the last bits of a float32 output depend on that size, and one of some thousand values differs in float16."""
COMPARED = 16  # rows, of some thousand values each, that are computed again before any is reused exactly


class Computation(Protocol):
    """Computes rows by the network."""

    @property
    def executor(self) -> Executor: ...

    @property
    def batch(self) -> int: ...

    def at(self, indices: np.ndarray) -> Tensor:
        """The rows of the samples `indices` (k,)."""
        ...


@dataclass(frozen=True)
class PartlyStored:
    """Takes rows over from an earlier store, and computes those that it lacks; a `RowSource` of one process."""

    earlier: ActivationStore
    positions: np.ndarray  # (n,) int64: the row of the earlier store, or -1
    missing: Computation

    def batches(self, start: int, rank: int = 0, world_size: int = 1) -> Generator[Tensor, None, None]:
        for first in range(start, len(self.positions), self.missing.batch):
            positions = self.positions[first : first + self.missing.batch]
            known = positions >= 0
            rows = torch.empty(len(positions), *self.earlier.array.shape[1:])
            if known.any():
                rows[torch.from_numpy(known)] = torch.from_numpy(self.earlier.gather(positions[known])[0]).float()
            if not known.all():
                rows[torch.from_numpy(~known)] = self.missing.at(first + np.flatnonzero(~known)).float().cpu()
            yield rows

    def reproduces(self) -> bool:
        """Whether the stored rows are, bit for bit, those that the network computes again in other batches."""
        if self.missing.executor.name not in SINGLY:
            return False
        known = np.flatnonzero(self.positions >= 0)
        if not len(known):
            return False
        # A sample spread over the store; comparing all rows would cost as much as computing them.
        chosen = known[np.unique(np.linspace(0, len(known) - 1, min(COMPARED, len(known))).astype(int))]
        dtype = self.earlier.array.dtype
        for part in np.split(chosen, range(self.missing.batch, len(chosen), self.missing.batch)):
            again = self.missing.at(part).float().cpu().numpy().astype(dtype)
            if not np.array_equal(again, self.earlier.gather(self.positions[part])[0]):
                return False
        return True
