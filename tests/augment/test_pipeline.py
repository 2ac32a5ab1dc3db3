"""Augmentation as a whole: what a batch gives, and what it must not depend on."""

from __future__ import annotations

import importlib
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from reference import torchvision

from linnaeus.augment import threads as workers
from linnaeus.augment.geometry import draw_affine_transforms
from linnaeus.augment.layout import Scratch
from linnaeus.augment.pipeline import Augmentation, center_crop, uniforms
from linnaeus.augment.resample import Warp
from linnaeus.augment.threads import share
from linnaeus.errors import UserError
from linnaeus.recipe import Augment

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
FLOWERS = Augment(rotate=45, hflip=0.5, vflip=0.5, brightness=0.2, contrast=0.1, saturation=0.1, hue=0.1, gray=0.025)
EVERYTHING = Augment(
    crop_scale=(0.08, 1.0),
    hflip=0.5,
    vflip=0.5,
    shift=0.1,
    scale=(0.8, 1.2),
    trivial_augment=True,
    posterize=0.4,
    solarize=0.4,
    equalize=0.4,
    autocontrast=0.4,
    sharpness=0.4,
    erase=0.5,
    gray=0.3,
    hue=0.2,
)
SPECS = {
    "nothing": Augment(),
    "flowers": FLOWERS,
    "resized crop": Augment(crop_scale=(0.2, 1.0), hflip=0.5),
    "padded crop": Augment(pad_crop=4, hflip=0.5),
    "trivial": Augment(trivial_augment=True, hflip=0.5),
    "everything": EVERYTHING,
}


def make(spec: Augment, size: int = 32, channels: int = 3, seed: int = 1) -> Augmentation:
    return Augmentation(spec, size=size, mean=MEAN[:channels], std=STD[:channels], seed=seed)


def rows(shapes: list[tuple[int, int]], channels: int = 3, spare: int = 0, fill: int = 0) -> torch.Tensor:
    """Random smooth-ish rows at the top left of a batch with `spare` more pixels on each side, filled with `fill`."""
    generator = torch.Generator().manual_seed(len(shapes))
    height, width = (max(side) + spare for side in zip(*shapes, strict=True))
    batch = torch.full((len(shapes), height, width, channels), fill, dtype=torch.uint8)
    for i, (h, w) in enumerate(shapes):
        batch[i, :h, :w] = torch.randint(0, 256, (h, w, channels), generator=generator, dtype=torch.uint8)
    return batch


def normalized(pixels: torch.Tensor) -> torch.Tensor:
    """(N, H, W, C) uint8 -> (N, C, H, W), the textbook way."""
    x = pixels.permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


RAGGED = [(40, 52), (52, 40), (36, 36), (40, 41), (20, 60), (33, 32)]


@pytest.mark.parametrize("size", [20, 21, 32, 33])
def test_center_crop_is_torchvisions(size: int) -> None:
    torchvision()
    theirs = importlib.import_module("torchvision.transforms.v2.functional").center_crop
    shapes = [(32, 32), (35, 40), (36, 41), (10, 50), (50, 11), (21, 20)]
    batch = rows(shapes)
    mine = center_crop(batch, np.array(shapes), size)
    assert mine.shape == (6, size, size, 3)
    assert mine.dtype == torch.uint8
    for i, (h, w) in enumerate(shapes):
        expected = theirs(batch[i, :h, :w].permute(2, 0, 1), [size, size]).permute(1, 2, 0)
        assert torch.equal(mine[i], expected), shapes[i]
        alone = center_crop(batch[i : i + 1, :h, :w], np.array([(h, w)]), size)
        assert torch.equal(alone[0], expected)


@pytest.mark.parametrize("spec", [Augment(), Augment(rotate=0, hflip=0.0, crop_ratio=(1.0, 1.0))])
def test_no_augmentation_is_the_normalized_center_crop(spec: Augment) -> None:
    shapes = np.array(RAGGED)
    batch = rows(RAGGED)
    mine = make(spec)(batch, torch.from_numpy(shapes), np.arange(6), epoch=3)
    torch.testing.assert_close(mine, normalized(center_crop(batch, shapes, 32)), rtol=0, atol=1e-6)
    assert mine.shape == (6, 3, 32, 32)
    assert mine.dtype == torch.float32
    assert mine.is_contiguous(memory_format=torch.channels_last)


def test_a_warp_that_changes_nothing_agrees_with_the_slice() -> None:
    shapes = np.array(RAGGED)
    batch = rows(RAGGED)
    turned = make(Augment(rotate=1e-4))(batch, shapes, np.arange(6), epoch=0)
    torch.testing.assert_close(turned, normalized(center_crop(batch, shapes, 32)), rtol=0, atol=1e-2)


@pytest.mark.parametrize("name", SPECS)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    """Bit for bit: alone, in another order, with more padding, random padding, or another number of threads."""
    shapes = np.array(RAGGED)
    batch, augment = rows(RAGGED), make(SPECS[name])
    indices = np.array([5, 900, 17, 3, 2**40, 8])
    whole = augment(batch, shapes, indices, epoch=2)
    assert torch.isfinite(whole).all()
    order = np.array([4, 0, 5, 2, 1, 3])
    assert torch.equal(augment(batch[order], shapes[order], indices[order], epoch=2), whole[order])
    rubbish = rows(RAGGED, spare=9, fill=200)
    assert torch.equal(augment(rubbish, shapes, indices, epoch=2), whole)
    for i in range(6):
        alone = augment(batch[i : i + 1], shapes[i : i + 1], indices[i : i + 1], epoch=2)
        assert torch.equal(alone, whole[i : i + 1])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(augment(batch, shapes, indices, epoch=2), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SPECS)
def test_rows_of_one_shape_are_processed_together_with_the_same_result(name: str) -> None:
    batch, augment = rows([(40, 44)] * 7), make(SPECS[name])
    shapes = np.tile([40, 44], (7, 1))
    whole = augment(batch, shapes, np.arange(7), epoch=0)
    for i in range(7):
        alone = augment(batch[i : i + 1], shapes[i : i + 1], np.arange(i, i + 1), epoch=0)
        torch.testing.assert_close(alone, whole[i : i + 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SPECS if name != "nothing"])
def test_fresh_every_epoch_and_every_seed_and_repeatable(name: str) -> None:
    batch, shapes = rows(RAGGED), np.array(RAGGED)
    first = make(SPECS[name])(batch, shapes, np.arange(6), epoch=0)
    assert torch.equal(make(SPECS[name])(batch, shapes, np.arange(6), epoch=0), first)
    assert not torch.equal(make(SPECS[name])(batch, shapes, np.arange(6), epoch=1), first)
    assert not torch.equal(make(SPECS[name], seed=2)(batch, shapes, np.arange(6), epoch=0), first)


@pytest.mark.parametrize("name", SPECS)
def test_the_input_is_not_changed(name: str) -> None:
    batch = rows(RAGGED)
    before = batch.clone()
    make(SPECS[name])(batch, np.array(RAGGED), np.arange(6), epoch=0)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("name", SPECS)
def test_one_channel(name: str) -> None:
    """Digits: saturation, hue and gray change nothing, all else works."""
    batch = rows(RAGGED, channels=1)
    mine = make(SPECS[name], channels=1)(batch, np.array(RAGGED), np.arange(6), epoch=0)
    assert mine.shape == (6, 1, 32, 32)
    assert torch.isfinite(mine).all()
    colorless = make(Augment(saturation=0.9, hue=0.5, gray=1.0), channels=1)(batch, np.array(RAGGED), np.arange(6), 0)
    assert torch.equal(colorless, make(Augment(), channels=1)(batch, np.array(RAGGED), np.arange(6), 0))


@pytest.mark.parametrize("name", SPECS)
def test_the_result_stays_between_black_and_white(name: str) -> None:
    mine = make(SPECS[name])(rows(RAGGED), np.array(RAGGED), np.arange(6), epoch=0)
    x = mine * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    assert x.min() >= -1e-6
    assert x.max() <= 1 + 1e-6


@pytest.mark.parametrize("name", ["nothing", "flowers", "resized crop", "padded crop"])
def test_every_tensor_is_made_on_the_device_of_the_pixels(name: str) -> None:
    """On the meta device, which computes nothing and refuses to mix with the CPU."""
    batch = rows(RAGGED).to("meta")
    mine = make(SPECS[name])(batch, np.array(RAGGED), np.arange(6), epoch=0)
    assert mine.device.type == "meta"
    assert mine.shape == (6, 3, 32, 32)
    assert mine.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [32, 160])
def test_threads_change_no_bit_and_leave_torch_as_it_was(size: int) -> None:
    """One image per thread where images are large; also in inference mode, which applies to a single thread."""
    shapes = np.array([(170, 180), (160, 200), (180, 165), (171, 171), (200, 160)])
    batch, augment = rows([(h, w) for h, w in shapes.tolist()]), make(EVERYTHING, size)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(augment(batch, shapes, np.arange(5), epoch=0))
            assert torch.get_num_threads() == count
            with torch.inference_mode():
                results.append(augment(batch, shapes, np.arange(5), epoch=0))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        assert torch.equal(result, results[0])


def test_threads_that_start_later_are_not_affected(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch also uses the number that a thread sets for itself as the default of threads that start later."""
    monkeypatch.setattr(workers, "_pools", {})
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        share(range(4), lambda part: None, 2)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as later:
            assert later.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    seen: list[int] = []

    def work(part: Sequence[int]) -> None:
        seen.extend(part)
        if 3 in part:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        share(range(6), work, 2)
    assert sorted(seen) == list(range(6))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_threads_of_its_own() -> None:
    share(range(4), lambda part: None, 2)
    process = multiprocessing.get_context("fork").Process(target=share, args=(range(4), lambda part: None, 2))
    process.start()
    process.join(20)
    assert process.exitcode == 0


def test_rows_warped_together_equal_rows_warped_one_by_one() -> None:
    """The code for a GPU, which warps all rows in the frame of the batch, run on the CPU with random padding."""
    shapes, batch = np.array(RAGGED), rows(RAGGED, spare=5, fill=255)
    maps = draw_affine_transforms(Augment(rotate=45, scale=(0.5, 1.5)), shapes, 32, 0, 0, np.arange(6))
    scratch = Scratch(batch.device)
    ways = [Warp(maps, batch, shapes, 32, apart)(batch, slice(0, 6), scratch).clone() for apart in (True, False)]
    torch.testing.assert_close(ways[1], ways[0], rtol=0, atol=0.02)


def test_outside_of_the_row_is_black_even_where_the_batch_is_white() -> None:
    """A small white row turned by up to 45°: only its own square may be seen, and no white from the padding."""
    batch = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    mine = Augmentation(Augment(rotate=45), size=32, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    seen = mine(batch, np.array([(16, 16)]), np.array([4]), epoch=0)
    assert seen.max() == pytest.approx(1)
    assert seen.mean() == pytest.approx(16 * 16 / 32**2, rel=0.01)  # turning keeps the area


def test_corners_show_the_image_where_the_row_has_more() -> None:
    """The rotation turns the row, not its center crop: no black corners while the row is large enough."""
    batch = torch.full((8, 48, 48, 3), 255, dtype=torch.uint8)
    mine = Augmentation(Augment(rotate=45), size=32, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    assert mine(batch, np.full((8, 2), 48), np.arange(8), epoch=0).min() > 0.999


def test_two_ways_to_crop_are_refused() -> None:
    with pytest.raises(UserError, match="crop_scale and pad_crop"):
        make(Augment(pad_crop=4, crop_scale=(0.1, 1.0)))


def test_uniforms_are_uniform_and_independent() -> None:
    u = uniforms(seed=3, epoch=0, indices=np.arange(20_000), k=4)
    assert u.shape == (20_000, 4)
    assert u.min() >= 0
    assert u.max() < 1
    for column in u.T:
        counts = np.histogram(column, bins=50, range=(0, 1))[0]
        assert ((counts - 400) ** 2 / 400).sum() < 95  # chi-square with 49 degrees of freedom: p = 1e-4
    others = [
        uniforms(3, 0, np.arange(20_000), 1, stream=1),
        uniforms(3, 1, np.arange(20_000), 1),
        uniforms(4, 0, np.arange(20_000), 1),
        uniforms(3, 0, np.arange(1, 20_001), 1),
        uniforms(-3, 0, np.arange(20_000), 1),
    ]
    table = np.concatenate([u, *others], axis=1)
    off_diagonal = np.corrcoef(table.T) - np.eye(table.shape[1])
    assert np.abs(off_diagonal).max() < 4.5 / np.sqrt(20_000)


def test_uniforms_depend_on_the_sample_alone() -> None:
    """A recorded value: a change of the hash would change every run."""
    whole = uniforms(7, 5, np.arange(1000), 3, stream=2)
    assert np.array_equal(uniforms(7, 5, np.array([999, 3]), 3, stream=2), whole[[999, 3]])
    assert np.array_equal(uniforms(7, 5, np.arange(1000), 1, stream=2), whole[:, :1])
    assert len(np.unique(whole)) == 3000
    assert uniforms(7, 5, np.array([3]), 2, stream=2).tolist() == [[0.5669997822142765, 0.5226082368629954]]
