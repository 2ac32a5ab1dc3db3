"""Batches: every sample once, in an order that depends on seed and epoch alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator

import numpy as np
import pytest
import torch
from tiny import CPU, samples

from linnaeus.data.batches import IN_ORDER, UNDIVIDED, Batch, Batches, Partition, Sampling, Subset
from linnaeus.data.order import chunks, order
from linnaeus.stores.pixelstore import PixelStore

SHUFFLED = Sampling(shuffle=True)


def make(n: int = 25, sampling: Sampling = IN_ORDER, batch: int = 8, partition: Partition = UNDIVIDED) -> Batches:
    images, labels = samples(n)
    store = PixelStore.from_arrays(images)
    return Batches(store, labels, batch=batch, device=CPU, sampling=sampling, partition=partition)


def shown(batches: Batches, epoch: int = 0) -> list[int]:
    return [int(i) for batch in batches.epoch(epoch) for i in batch.indices]


def test_each_batch_holds_the_images_and_labels_it_names():
    """In the shuffled order, though the store is read in ascending order."""
    images, labels = samples(25)
    for batch in make(25, SHUFFLED).epoch(3):
        assert np.array_equal(batch.pixels.numpy()[..., 0], images[batch.indices])
        assert np.array_equal(batch.labels.numpy(), labels[batch.indices])
        assert batch.pixels.dtype == torch.uint8
        assert (batch.shapes == 28).all()


def test_shapes_follow_their_images_where_sizes_differ():
    sizes = [(4 + i, 9 - i) for i in range(6)]
    rows = [np.full((h, w, 1), i, np.uint8) for i, (h, w) in enumerate(sizes)]
    data = np.concatenate([row.reshape(-1) for row in rows])
    lengths = np.array([row.size for row in rows])
    store = PixelStore(data, np.cumsum(lengths) - lengths, np.array(sizes, np.int32), 1)
    for batch in Batches(store, np.arange(6), batch=3, device=CPU, sampling=SHUFFLED).epoch():
        for i, image, shape in zip(batch.indices, batch.pixels, batch.shapes, strict=True):
            assert tuple(shape) == sizes[i]
            assert (image[: shape[0], : shape[1]] == i).all()


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_sample_is_shown_once(shuffle: bool):
    for n in (1, 7, 8, 9, 16, 17, 25):
        batches = make(n, Sampling(shuffle))
        assert sorted(shown(batches)) == list(range(n))
        assert len(batches) == len(list(batches.epoch()))


def test_the_order_depends_on_seed_and_epoch_alone():
    assert shown(make(), 0) == list(range(25))
    first = shown(make(25, Sampling(True, 1)), 0)
    assert first == shown(make(25, Sampling(True, 1), batch=5), 0)
    assert first != shown(make(25, Sampling(True, 1)), 1)
    assert first != shown(make(25, Sampling(True, 2)), 0)


def test_samples_of_weight_zero_are_never_drawn():
    weights = np.array([0.5, 0.5, 0.0])
    drawn = order(3000, 0, 0, np.repeat(weights, 1000) / 1000)
    assert len(drawn) == 3000
    assert drawn.max() < 2000


@pytest.mark.parametrize(("n", "batch", "sizes"), [(17, 8, [8, 9]), (16, 8, [8, 8]), (18, 8, [8, 8, 2]), (1, 8, [1])])
def test_no_batch_is_a_single_image_where_that_can_be_avoided(n: int, batch: int, sizes: list[int]):
    assert [len(piece) for piece in chunks(np.arange(n), batch)] == sizes


def test_a_batch_size_of_one_is_kept():
    """A batch size of 1 that the user chose is kept, also for the last batch."""
    assert [len(piece) for piece in chunks(np.arange(4), 1)] == [1, 1, 1, 1]


def test_processes_share_each_batch():
    """Together they show what one process alone would, batch by batch."""
    alone = [set(batch.indices) for batch in make(25, SHUFFLED).epoch(2)]
    halves = [make(25, SHUFFLED, partition=Partition(rank, 2)) for rank in (0, 1)]
    ranks = [[set(batch.indices) for batch in half.epoch(2)] for half in halves]
    assert [a | b for a, b in zip(*ranks, strict=True)] == alone
    assert not any(a & b for a, b in zip(*ranks, strict=True))


def test_a_part_of_a_batch_is_its_samples():
    batch = next(make(25, SHUFFLED).epoch())
    part = batch.part(2, 5)
    assert len(part) == 3
    assert np.array_equal(part.indices, batch.indices[2:5])
    assert torch.equal(part.pixels, batch.pixels[2:5])
    assert torch.equal(part.labels, batch.labels[2:5])


def test_a_subset_is_shown_under_its_own_numbers():
    images, labels = samples(10)
    good = np.array([0, 2, 3, 7, 9])
    batches = Batches(Subset(PixelStore.from_arrays(images), good), labels[good], batch=2, device=CPU)
    for batch in batches.epoch():
        assert np.array_equal(batch.pixels.numpy()[..., 0], images[good[batch.indices]])


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("linnaeus-ahead_")]


def test_leaving_early_ends_the_thread():
    epoch = make(100, batch=2).epoch()
    next(epoch)
    assert threads()
    assert isinstance(epoch, Generator)
    epoch.close()
    assert not threads()


def test_no_more_than_a_few_batches_are_fetched_ahead():
    fetched: list[int] = []

    class Counting(PixelStore):
        def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            fetched.append(len(indices))
            return super().gather(indices)

    images, labels = samples(100)
    epoch = Batches(Counting.from_arrays(images), labels, batch=5, device=CPU).epoch()
    next(epoch)
    time.sleep(0.3)
    assert len(fetched) <= 4


def test_an_error_while_fetching_is_raised_where_the_batch_is_asked_for():
    class Failing(PixelStore):
        def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            if 12 in indices:
                raise OSError("the disk is gone")
            return super().gather(indices)

    images, labels = samples(20)
    got: list[Batch] = []
    with pytest.raises(OSError, match="the disk is gone"):
        got.extend(Batches(Failing.from_arrays(images), labels, batch=5, device=CPU).epoch())
    assert not threads()


@pytest.mark.parametrize("start", [0, 1, 4, 5])
def test_an_epoch_continues_where_it_was_interrupted(start: int):
    """After the last batch none is left, which is where a run continues that was killed before validation."""
    images = np.arange(70, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    batches = Batches(PixelStore.from_arrays(images), np.arange(70), batch=16, device=CPU, sampling=Sampling(True, 3))
    whole = [batch.draws.tolist() for batch in batches.epoch(2)]
    assert len(whole) == 5
    assert [batch.draws.tolist() for batch in batches.epoch(2, start)] == whole[start:]
