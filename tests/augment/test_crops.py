"""Crops of a whole epoch for a device: the same bits as the general way, and nothing that waits for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from linnaeus.augment.crops import only_crops
from linnaeus.augment.pipeline import Augmentation
from linnaeus.data.batches import Batches, Resident, Sampling
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
    for start, stop in ((0, 20), (20, 21), (21, 50)):
        shapes = np.tile(np.array(SHAPE), (stop - start, 1))
        expected = general(pixels[start:stop], shapes, draws[start:stop], 3)
        got = whole.crops(pixels[start:stop], draws, start, 3)
        assert torch.equal(got, expected)
        assert got.stride() == expected.stride()


def test_other_augmentations_take_the_general_way():
    assert only_crops(Augment(pad_crop=4, hflip=0.5))
    for spec in (Augment(rotate=5), Augment(crop_scale=(0.5, 1.0)), Augment(brightness=0.1), Augment(erase=0.5)):
        assert not only_crops(spec), spec


def test_an_epoch_reads_nothing_back_from_the_device():
    """The meta device has no values, so whatever reads one, such as `.item()` or `.cpu()`, raises."""
    rows = Resident(torch.empty(100, *SHAPE, 3, dtype=torch.uint8, device="meta"))
    batches = Batches(
        rows, np.arange(100) % 3, batch=32, device=torch.device("meta"), sampling=Sampling(shuffle=True, seed=1)
    )
    changes = augmentation(Augment(pad_crop=4, hflip=0.5), 32)
    for batch in batches.epoch(2):
        part = batch.part(3, len(batch))
        assert changes.can_draw_epochs(part.pixels)
        assert part.epoch_draws is not None
        x = changes.crops(part.pixels, part.epoch_draws, part.start, 2)
        assert x.shape == (len(batch) - 3, 3, 32, 32)
        assert part.labels.device.type == "meta"


def test_a_resumed_epoch_has_the_crops_of_the_whole_one():
    """From batch 2 on; the numbers depend on the sample, not on its place in the epoch."""
    rows = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (100, *SHAPE, 3), dtype=np.uint8))
    batches = Batches(
        Resident(rows),
        np.arange(100) % 3,
        batch=32,
        device=torch.device("cpu"),
        sampling=Sampling(shuffle=True, seed=1),
    )
    changes = augmentation(Augment(pad_crop=4, hflip=0.5), 32)

    def images(start: int) -> list[torch.Tensor]:
        made = []
        for batch in batches.epoch(2, start):
            assert batch.epoch_draws is not None
            assert np.array_equal(batch.epoch_draws[batch.start : batch.start + len(batch)], batch.draws)
            made.append(changes.crops(batch.pixels, batch.epoch_draws, batch.start, 2))
        return made

    assert all(torch.equal(a, b) for a, b in zip(images(0)[2:], images(2), strict=True))
