"""Taking over stored activations exactly: only rows that the network computes again, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from linnaeus.models.executors import Executor
from linnaeus.stores.activations import ActivationStore
from linnaeus.stores.reuse import PartlyStored

ROWS = np.random.default_rng(0).normal(size=(90, 6)).astype(np.float16)


@dataclass
class Recomputed:
    """Row i of the new run is row i + 10 of the earlier one; the last ten are new."""

    name: str
    batch: int = 32
    change: float = 0.0

    @property
    def executor(self) -> Executor:
        return Executor(self.name, lambda x: x, 0.0)

    def at(self, indices: np.ndarray) -> Tensor:
        rows = torch.from_numpy(ROWS[indices + 10].astype(np.float32))
        rows[indices == 79] += self.change
        return rows


@pytest.mark.parametrize(
    ("missing", "exact"),
    [(Recomputed("onnxruntime"), True), (Recomputed("fused"), False), (Recomputed("int8", change=1e-2), False)],
)
def test_rows_are_taken_over_exactly_only_if_the_network_reproduces_them(missing: Recomputed, exact: bool):
    positions = np.concatenate([np.arange(10, 90), np.full(10, -1)])
    assert PartlyStored(ActivationStore(ROWS), positions, missing).reproduces() is exact


def test_nothing_to_take_over_reproduces_nothing():
    assert not PartlyStored(ActivationStore(ROWS), np.full(5, -1), Recomputed("onnxruntime")).reproduces()
