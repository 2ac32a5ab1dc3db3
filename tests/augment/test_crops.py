"""Crops of a whole epoch for a device: the bits of the general way, without waiting for the device."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from linnaeus.augment.crops import EpochCrops, draw_crops, only_crops
from linnaeus.augment.pipeline import Augmentation
from linnaeus.data.batches import Batches, InMemoryRows, Sampling
from linnaeus.recipe import Augment

SHAPE = (36, 32)


def augmentation(spec: Augment, size: int) -> Augmentation:
    return Augmentation(spec, size=size, mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25], seed=5)


@pytest.mark.parametrize("size", [32, 28, 40])
@pytest.mark.parametrize(
    "spec", [Augment(pad_crop=4, hflip=0.5), Augment(pad_crop=2, hflip=0.5, vflip=0.5), Augment(hflip=1.0), Augment()]
)
def test_the_crops_of_an_epoch_are_those_of_its_batches(spec: Augment, size: int):
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (50, *SHAPE, 3), dtype=np.uint8))
    draws = np.random.default_rng(1).permutation(50) + 50
    general, whole = augmentation(spec, size), augmentation(spec, size)
    crops = draw_crops(spec, SHAPE, size, 5, 3, draws, pixels.device)
    for start, stop in ((0, 20), (20, 21), (21, 50)):
        shapes = np.tile(np.array(SHAPE), (stop - start, 1))
        expected = general(pixels[start:stop], shapes, draws[start:stop], 3)
        got = whole.crop(pixels[start:stop], crops, start)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def test_other_augmentations_take_the_general_way():
    assert only_crops(Augment(pad_crop=4, hflip=0.5))
    for spec in (Augment(rotate=5), Augment(crop_scale=(0.5, 1.0)), Augment(brightness=0.1), Augment(erase=0.5)):
        assert not only_crops(spec), spec


def test_an_epoch_reads_nothing_back_from_the_device():
    """The meta device has no values, so whatever reads one, such as `.item()` or `.cpu()`, raises."""
    rows = InMemoryRows(torch.empty(100, *SHAPE, 3, dtype=torch.uint8, device="meta"))
    batches = Batches(
        rows, np.arange(100) % 3, batch=32, device=torch.device("meta"), sampling=Sampling(shuffle=True, seed=1)
    )
    changes = augmentation(Augment(pad_crop=4, hflip=0.5), 32)
    batches.draw_epoch = partial(changes.draw_epoch, rows.tensor)
    for batch in batches.epoch(2):
        part = batch.part(3, len(batch))
        x = changes.crop(part.pixels, part.drawn, part.start)
        assert x.shape == (len(batch) - 3, 3, 32, 32)
        assert part.labels.device.type == "meta"


@pytest.mark.parametrize("planned_from", [1, 10**6])
def test_a_resumed_epoch_has_the_crops_of_the_whole_one(planned_from: int, monkeypatch: pytest.MonkeyPatch):
    """From batch 2 on, planned in a thread during the epoch before or not."""
    monkeypatch.setattr("linnaeus.data.batches.PLANNED_FROM", planned_from)
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (100, *SHAPE, 3), dtype=np.uint8))
    batches = Batches(
        InMemoryRows(rows),
        np.arange(100) % 3,
        batch=32,
        device=torch.device("cpu"),
        sampling=Sampling(shuffle=True, seed=1),
    )
    spec = Augment(pad_crop=4, hflip=0.5)
    changes, asked = augmentation(spec, 32), []

    def draw(draws: np.ndarray, epoch: int) -> EpochCrops:
        asked.append(epoch)
        return draw_crops(spec, SHAPE, 32, 5, epoch, draws, rows.device)

    def images(epoch: int, start: int) -> list[torch.Tensor]:
        return [changes.crop(batch.pixels, batch.drawn, batch.start) for batch in batches.epoch(epoch, start)]

    batches.draw_epoch = draw
    before = images(1, 0)
    whole = images(2, 0)
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], images(2, 2), strict=True))
    assert not torch.equal(before[0], whole[0])
    assert batches.undivided()._next is None
    if batches._next is not None:
        batches._next[1].result()
    assert sorted(asked) == ([1, 2, 2, 3, 3] if planned_from == 1 else [1, 2, 2])


def test_an_error_in_the_planning_thread_is_raised_where_the_plan_is_needed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("linnaeus.data.batches.PLANNED_FROM", 1)
    rows = InMemoryRows(torch.zeros(8, 4, 4, 1, dtype=torch.uint8))
    batches = Batches(rows, np.arange(8), batch=4, device=torch.device("cpu"))

    def draw(draws: np.ndarray, epoch: int) -> None:
        if epoch == 1:
            raise MemoryError("epoch 1")

    batches.draw_epoch = draw
    assert len(list(batches.epoch(0))) == 2
    with pytest.raises(MemoryError, match="epoch 1"):
        list(batches.epoch(1))
