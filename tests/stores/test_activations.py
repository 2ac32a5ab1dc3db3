"""The activation store: the right rows, whatever happens while it is built."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.data.batches import Subset
from linnaeus.errors import JobError
from linnaeus.stores import activations
from linnaeus.stores.activations import ActivationStore, StoreSpec, build_activations, content_key
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.stores.rows import JOURNAL, ROWS

N, SHAPE = 37, (5, 2, 2)


class Source:
    """Batches of made-up rows; counts how many it was asked for, and may die on the way."""

    def __init__(self, scale: float = 1.0, dies_at: int | None = None):
        self.rows = scale * torch.randn(N, *SHAPE, generator=torch.Generator().manual_seed(0))
        self.dies_at, self.made = dies_at, 0

    def batches(self, start: int, rank: int = 0, world_size: int = 1) -> Generator[torch.Tensor, None, None]:
        for at in range(start, N, 8):
            if self.dies_at is not None and at >= self.dies_at:
                raise KeyboardInterrupt
            self.made += len(self.rows[at : at + 8])
            yield self.rows[at : at + 8]


def build(cache: Cache, source: Source, key: str = "key") -> ActivationStore:
    return build_activations(source, StoreSpec(N, SHAPE, key), cache)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 30)


def test_rows_are_stored_as_float16_and_computed_once(cache: Cache):
    source = Source()
    store = build(cache, source)
    assert store.array.dtype == np.float16
    np.testing.assert_array_equal(store.array, source.rows.half().numpy())
    rows, _ = store.gather(np.array([5, 36, 0]))
    np.testing.assert_array_equal(rows, source.rows[[5, 36, 0]].half().numpy())
    again = build(cache, source)
    assert source.made == N, "a store that is there must not be computed again"
    np.testing.assert_array_equal(again.array, store.array)


def test_another_key_is_another_store(cache: Cache):
    source = Source()
    build(cache, source)
    build(cache, source, "other")
    assert source.made == 2 * N


def test_float32_where_float16_overflows(cache: Cache):
    source = Source(scale=1e6)
    store = build(cache, source)
    assert store.array.dtype == np.float32
    np.testing.assert_array_equal(store.array, source.rows.numpy())


def test_values_that_are_not_finite_are_refused_and_leave_nothing(cache: Cache):
    source = Source()
    source.rows[20, 0] = float("inf")
    with pytest.raises(JobError, match="not finite"):
        build(cache, source)
    assert cache.entries() == []


def test_a_killed_build_continues_where_it_stopped(cache: Cache, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "CHUNK", 8 * 5 * 2 * 2 * 2)  # a line of the journal every 8 rows
    with pytest.raises(KeyboardInterrupt):
        build(cache, Source(dies_at=24))
    rest = Source()
    store = build(cache, rest)
    assert rest.made == N - 24
    np.testing.assert_array_equal(store.array, rest.rows.half().numpy())


@pytest.mark.parametrize("damage", ["cut", "altered", "longer", "journal"])
def test_incomplete_rows_of_a_killed_build_are_computed_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, damage: str
):
    monkeypatch.setattr(activations, "CHUNK", 8 * 5 * 2 * 2 * 2)
    with pytest.raises(KeyboardInterrupt):
        build(cache, Source(dies_at=24))
    (partial,) = cache.root.glob("activations-*.partial")
    raw = bytearray((partial / ROWS).read_bytes())
    if damage == "cut":
        (partial / ROWS).write_bytes(raw[:-3])
    elif damage == "altered":
        raw[8 * 40 + 5] ^= 1  # in the second chunk: the first stays good
        (partial / ROWS).write_bytes(raw)
    elif damage == "longer":
        (partial / ROWS).write_bytes(raw + b"torn")
    else:
        journal = partial / JOURNAL
        journal.write_bytes(journal.read_bytes()[:-4])
    rest = Source()
    store = build(cache, rest)
    np.testing.assert_array_equal(store.array, rest.rows.half().numpy())
    assert rest.made == N - {"cut": 16, "altered": 8, "longer": 24, "journal": 16}[damage]


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_store_is_noticed_and_built_anew(cache: Cache, damage: str):
    source = Source()
    path = build(cache, source).path
    assert path is not None
    raw = bytearray(path.read_bytes())
    raw[17] ^= 1
    path.write_bytes(raw if damage == "altered" else raw[:-2])
    store = build(cache, source)
    np.testing.assert_array_equal(store.array, source.rows.half().numpy())
    assert source.made == 2 * N


def test_a_store_over_the_budget_is_refused_before_anything_is_computed(tmp_path: Path):
    source = Source()
    with pytest.raises(OverBudgetError):
        build(Cache(tmp_path / "small", 100), source)
    assert source.made == 0


def test_identity_follows_the_pixels():
    """Arrays are identified by content, subsets by their indices too."""
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    other = images.copy()
    other[3, 1, 1, 1] ^= 1
    store = PixelStore.from_arrays(images)
    assert content_key(store) == content_key(PixelStore.from_arrays(images.copy()))
    assert content_key(store) != content_key(PixelStore.from_arrays(other))
    assert content_key(Subset(store, np.array([0, 1]))) != content_key(Subset(store, np.array([1, 0])))
