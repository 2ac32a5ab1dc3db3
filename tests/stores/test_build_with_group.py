"""Several processes build one activation store: each computes its share, and all learn how the build ended."""

from __future__ import annotations

import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from several import several

from linnaeus.cache import Cache
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.stores.activations import StoreSpec, find_activations
from linnaeus.stores.distributed import build_with_group

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")

N, BATCH = 37, 8


@dataclass
class Source:
    """Row k is k times `scale`, computed in shares."""

    scale: float = 1.0

    def batches(self, start: int, rank: int = 0, world_size: int = 1) -> Generator[torch.Tensor, None, None]:
        for first in range(start, N, BATCH):
            rows = self.scale * torch.arange(first, min(first + BATCH, N), dtype=torch.float32)
            yield rows[:, None].tensor_split(world_size)[rank]


@pytest.mark.parametrize(("scale", "dtype"), [(1.0, "float16"), (1e6, "float32")])
def test_the_rows_of_all_processes_are_in_order(scale: float, dtype: str, tmp_path: Path):
    cache, spec = Cache(tmp_path, 1 << 30), StoreSpec(N, (1,), "key")

    def work(rank: int) -> None:
        build_with_group(Engine("cpu", "32"), Source(scale), spec, cache, lambda done, total: None)

    assert several(2, work) == [None, None]
    store = find_activations(N, "key", cache)
    assert store is not None
    assert store.array.dtype == dtype
    # Rows that do not fit float16 are computed again from the first one.
    np.testing.assert_array_equal(store.array[:, 0], scale * np.arange(N))


@pytest.mark.parametrize(
    ("budget", "scale", "error", "words"),
    [(10, 1.0, "OverBudgetError", "budget of 10"), (1 << 30, float("nan"), "JobError", "not finite")],
)
def test_all_processes_raise_the_error_of_the_first(budget: int, scale: float, error: str, words: str, tmp_path: Path):
    def work(rank: int) -> list[str]:
        try:
            build_with_group(
                Engine("cpu", "32"),
                Source(scale),
                StoreSpec(N, (1,), "key"),
                Cache(tmp_path, budget),
                lambda done, total: None,
            )
        except UserError as raised:
            return [type(raised).__name__, str(raised)]
        return []

    first, second = several(2, work)
    assert first == second
    assert first[0] == error
    assert words in first[1]
