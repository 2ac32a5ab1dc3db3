"""Augmentation against torchvision: the same pixels for the same parameters, the same distribution of parameters."""

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from reference import torchvision

from linnaeus.augment import filters as passes
from linnaeus.augment import pipeline as augment
from linnaeus.augment.color import draw_factors, hue_rotation
from linnaeus.augment.filters import draw_erasures
from linnaeus.augment.geometry import AFFINE, PAD, ROTATE, draw_affine_transforms
from linnaeus.augment.pipeline import Augmentation
from linnaeus.augment.random import uniforms
from linnaeus.augment.trivial_augment import BINS, OPERATIONS, STRENGTHS, Trivial, draw_trivial
from linnaeus.recipe import Augment

SIZE = 48


@pytest.fixture(scope="module")
def v1() -> Any:
    torchvision()
    return importlib.import_module("torchvision.transforms")


@pytest.fixture(scope="module")
def v2() -> Any:
    torchvision()
    return importlib.import_module("torchvision.transforms.v2")


def image(height: int = SIZE, width: int = SIZE, channels: int = 3, seed: int = 0) -> torch.Tensor:
    """A smooth image with edges, (h, w, C) uint8, which resembles a photograph more than noise does."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * random.uniform(0.05, 0.4) + y * random.uniform(0.05, 0.4) + c) for c in range(channels)]
    values = 130 + 80 * np.stack(waves, axis=2) + 30 * (x > width / 3)[:, :, None]
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


def ours(spec: Augment, rows: torch.Tensor, size: int = SIZE, index: int = 0, epoch: int = 0) -> torch.Tensor:
    """One row (h, w, C) uint8 -> (C, size, size) float in 0..255."""
    n = rows.shape[-1]
    augmentation = Augmentation(spec, size=size, mean=[0.0] * n, std=[1.0] * n, seed=0)
    shapes = np.array([rows.shape[:2]])
    return augmentation(rows[None], shapes, np.array([index]), epoch)[0] * 255


def chw(rows: torch.Tensor) -> torch.Tensor:
    return rows.permute(2, 0, 1)


@pytest.mark.parametrize("index", range(6))
def test_rotation(v2: Any, index: int) -> None:
    mine = ours(Augment(rotate=180), image(), index=index)
    degrees = (2 * uniforms(0, 0, np.array([index]), 1, ROTATE)[0, 0] - 1) * 180
    theirs = v2.functional.rotate(chw(image()).float(), degrees, interpolation=v2.InterpolationMode.BILINEAR)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0.05)


@pytest.mark.parametrize("size", [48, 47])
def test_flips_are_exact(v2: Any, size: int) -> None:
    row = image(53, 61)
    cropped = v2.functional.center_crop(chw(row), [size, size])
    assert torch.equal(ours(Augment(hflip=1.0), row, size).round(), cropped.flip(2).float())
    assert torch.equal(ours(Augment(vflip=1.0), row, size).round(), cropped.flip(1).float())
    assert torch.equal(ours(Augment(hflip=1.0, vflip=1.0), row, size).round(), cropped.flip(1, 2).float())


@pytest.mark.parametrize("index", range(6))
def test_shift_scale_and_rotation_together(v2: Any, index: int) -> None:
    """RandomAffine turns the other way round for the same angle; its translation comes after turning and zooming."""
    spec = Augment(rotate=30, shift=0.2, scale=(0.7, 1.3))
    mine = ours(spec, image(), index=index)
    at = np.array([index])
    degrees = (2 * uniforms(0, 0, at, 1, ROTATE)[0, 0] - 1) * 30
    u = uniforms(0, 0, at, 3, AFFINE)[0]
    shift = [round((2 * value - 1) * 0.2 * SIZE) for value in u[:2].tolist()]
    theirs = v2.functional.affine(
        chw(image()).float(), -degrees, shift, 0.7 + 0.6 * u[2], [0.0, 0.0], v2.InterpolationMode.BILINEAR
    )
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0.05)


@pytest.mark.parametrize("index", range(6))
def test_resized_crop(v2: Any, index: int) -> None:
    row = image(70, 90)
    mine = ours(Augment(crop_scale=(0.08, 1.0)), row, index=index)
    maps = draw_affine_transforms(Augment(crop_scale=(0.08, 1.0)), np.array([(70, 90)]), SIZE, 0, 0, np.array([index]))
    left, top, width, height = maps.boxes[0].tolist()
    theirs = v2.functional.resized_crop(chw(row), top, left, height, width, [SIZE, SIZE])
    assert torch.equal(mine.round(), theirs.float())


@pytest.mark.parametrize("index", range(6))
def test_padded_crop(v2: Any, index: int) -> None:
    row = image(32, 32)
    mine = ours(Augment(pad_crop=4), row, 32, index)
    left, top = np.floor(uniforms(0, 0, np.array([index]), 2, PAD)[0] * 9).astype(int).tolist()
    theirs = v2.functional.crop(v2.functional.pad(chw(row), [4]), top, left, 32, 32)
    assert torch.equal(mine.round(), theirs.float())


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("index", range(4))
def test_color_factors(v2: Any, name: str, index: int) -> None:
    spec = Augment.model_validate({name: 0.6})
    factor = float(getattr(draw_factors(spec, 0, 0, np.array([index])), name)[0])
    change = getattr(v2.functional, f"adjust_{name}")
    theirs = change(chw(image()).float() / 255, factor) * 255
    torch.testing.assert_close(ours(spec, image(), index=index), theirs, rtol=0, atol=0.05)


def test_gray(v2: Any) -> None:
    theirs = v2.functional.rgb_to_grayscale(chw(image()).float(), num_output_channels=3)
    torch.testing.assert_close(ours(Augment(gray=1.0), image()), theirs, rtol=0, atol=0.05)


def test_jitter_and_gray_with_and_without_a_warp() -> None:
    """The two ways to apply the color matrix, on interleaved pixels and on planes, agree."""
    spec: dict[str, Any] = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.2, "gray": 0.3}
    plain = torch.stack([ours(Augment.model_validate(spec), image(), index=i) for i in range(8)])
    warped = torch.stack([ours(Augment.model_validate(spec | {"rotate": 1e-5}), image(), index=i) for i in range(8)])
    torch.testing.assert_close(warped, plain, rtol=0, atol=0.1)


def test_jitter_in_torchvisions_order_differs_little(v2: Any) -> None:
    """One clip at the end in place of one after each step: below 1 gray level on average at the flowers' strengths."""
    spec = Augment(brightness=0.2, contrast=0.1, saturation=0.1)
    differences = []
    for index in range(20):
        drawn = draw_factors(spec, 0, 0, np.array([index]))
        theirs = chw(image(seed=index)).float() / 255
        for name in ("brightness", "contrast", "saturation"):
            theirs = getattr(v2.functional, f"adjust_{name}")(theirs, float(getattr(drawn, name)[0]))
        differences.append((ours(spec, image(seed=index), index=index) - theirs * 255).abs().mean().item())
    assert max(differences) < 1.5
    assert np.mean(differences) < 0.5


def test_hue_turns_about_the_gray_axis(v2: Any) -> None:
    turns = np.array([0.0, 1 / 3, 2 / 3, 0.1, -0.25])
    matrices = hue_rotation(turns)
    np.testing.assert_allclose(matrices @ np.ones(3), 1.0, atol=1e-12)  # grays stay
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)
    primaries = torch.eye(3).view(3, 3, 1, 1)  # red, green and blue, a pixel each
    for turn, matrix in zip((0.0, 1 / 3, -1 / 3), hue_rotation(np.array([0.0, 1 / 3, -1 / 3])), strict=True):
        theirs = v2.functional.adjust_hue(primaries, turn).view(3, 3)
        np.testing.assert_allclose(matrix, theirs.numpy().T, atol=1e-5)


def test_hue_keeps_gray_pixels() -> None:
    row = image()[:, :, :1].expand(-1, -1, 3).contiguous()
    for index in range(4):
        torch.testing.assert_close(ours(Augment(hue=0.5), row, index=index), chw(row).float(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("spec", "name", "arguments"),
    [
        ({"posterize": 1.0, "posterize_bits": 3}, "posterize", [3]),
        ({"solarize": 1.0, "solarize_threshold": 100}, "solarize", [100]),
        ({"equalize": 1.0}, "equalize", []),
        ({"autocontrast": 1.0}, "autocontrast", []),
        ({"sharpness": 1.0, "sharpness_factor": 2.0}, "adjust_sharpness", [2.0]),
        ({"sharpness": 1.0, "sharpness_factor": 0.3}, "adjust_sharpness", [0.3]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_passes(v2: Any, spec: dict[str, Any], name: str, arguments: list[float], channels: int) -> None:
    """torchvision's sharpness is taken on floats: on bytes it rounds the smoothed copy and cuts the result."""
    for seed in range(4):
        row = image(channels=channels, seed=seed)
        change = getattr(v2.functional, name)
        theirs = change(chw(row) / 255, *arguments) * 255 if "sharp" in name else change(chw(row), *arguments).float()
        torch.testing.assert_close(ours(Augment.model_validate(spec), row), theirs, rtol=0, atol=0.02)
        planes = ours(
            Augment.model_validate(spec | {"rotate": 1e-6}), row
        )  # the same on planes, after a warp that moves nothing
        torch.testing.assert_close(planes, theirs, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["equalize", "autocontrast"])
def test_passes_on_odd_histograms(v2: Any, name: str) -> None:
    flat = torch.full((SIZE, SIZE, 3), 77, dtype=torch.uint8)
    two = flat.clone()
    two[:3] = 200
    noise = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8)
    black = torch.zeros_like(flat)
    for row in (flat, two, noise, black):
        theirs = getattr(v2.functional, name)(chw(row)).float()
        torch.testing.assert_close(ours(Augment.model_validate({name: 1.0}), row), theirs, rtol=0, atol=0.01)


def test_passes_reach_only_the_samples_that_drew_them() -> None:
    rows = torch.stack([image(seed=i) for i in range(40)])
    spec = Augment(solarize=0.3, equalize=0.3)
    augmentation = Augmentation(spec, size=SIZE, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    drawn = passes.draw_filters(spec, 0, 0, np.arange(40))
    out = augmentation(rows, np.full((40, 2), SIZE), np.arange(40), 0)
    changed = ((out.permute(0, 2, 3, 1) * 255 - rows).abs().amax((1, 2, 3)) > 0.01).numpy()
    assert np.array_equal(changed, drawn.active)
    assert 10 < changed.sum() < 35


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bin_", [0, 7, 30])
def test_trivial_augment_operations(v2: Any, monkeypatch: pytest.MonkeyPatch, name: str, bin_: int) -> None:
    """Blends and warps are compared on floats, the rest on bytes: torchvision's rounding between steps is not ours."""
    theirs = v2.TrivialAugmentWide()
    theirs_name = list(theirs._AUGMENTATION_SPACE)[OPERATIONS.index(name)]
    magnitudes, signed = theirs._AUGMENTATION_SPACE[theirs_name]
    values = magnitudes(BINS, SIZE, SIZE)
    if values is None:
        assert name not in STRENGTHS
        values = torch.zeros(BINS)
    else:
        expected = values.double() * (255 if name == "solarize" else 1)
        # torchvision's float32 makes 15 of the middle translation of 16 pixels.
        expected = (expected + 1e-4).floor() if "translate" in name else expected
        np.testing.assert_allclose(STRENGTHS[name], expected.numpy(), rtol=1e-6)
    in_bytes = name in ("posterize", "solarize", "autocontrast", "equalize")
    row = chw(image()) if in_bytes else chw(image()) / 255
    for sign in (1, -1) if signed else (1,):
        strength = sign * STRENGTHS[name][bin_] if name in STRENGTHS else 0.0
        drawn = Trivial(np.array([OPERATIONS.index(name)]), np.array([strength]))
        monkeypatch.setattr(augment, "draw_trivial", lambda *_, drawn=drawn: drawn)
        reference = theirs._apply_image_or_video_transform(
            row, theirs_name, sign * float(values[bin_]), interpolation=v2.InterpolationMode.BILINEAR, fill={}
        )
        mine = ours(Augment(trivial_augment=True), image())
        torch.testing.assert_close(mine, reference * (1.0 if in_bytes else 255.0), rtol=0, atol=0.1)


def test_trivial_augment_draws_all_operations_equally_often() -> None:
    drawn = draw_trivial(0, 0, np.arange(28_000))
    counts = np.bincount(drawn.operation, minlength=14)
    assert ((counts - 2000) ** 2 / 2000).sum() < 42  # chi-square with 13 degrees of freedom: p = 1e-4
    rotated = drawn.strength[drawn.of("rotate")]
    assert len(np.unique(np.abs(rotated).round(6))) == BINS
    assert np.mean(rotated > 0) == pytest.approx(30 / 31 / 2, abs=0.05)


def same_distribution(mine: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether the two-sample test of Kolmogorov and Smirnov accepts two samples at p = 1e-4."""
    values = np.sort(np.concatenate([mine, theirs]))
    gap = np.abs(
        np.searchsorted(np.sort(mine), values, side="right") / len(mine)
        - np.searchsorted(np.sort(theirs), values, side="right") / len(theirs)
    ).max()
    return bool(gap < math.sqrt(-math.log(1e-4 / 2) / 2) * math.sqrt(1 / len(mine) + 1 / len(theirs)))


N = 3000


def test_the_test_of_distributions_can_fail() -> None:
    random = np.random.default_rng(0)
    assert same_distribution(random.random(N), random.random(N))
    assert not same_distribution(random.random(N), random.random(N) * 1.1)


@pytest.mark.parametrize("shape", [(256, 341), (500, 120), (64, 64)])
def test_resized_crops_are_distributed_as_torchvisions(v1: Any, shape: tuple[int, int]) -> None:
    spec = Augment(crop_scale=(0.08, 1.0))
    boxes = draw_affine_transforms(spec, np.tile(shape, (N, 1)), 224, 0, 0, np.arange(N)).boxes
    torch.manual_seed(0)
    canvas = torch.zeros(3, *shape)
    theirs = np.array([v1.RandomResizedCrop.get_params(canvas, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(N)])
    for column, other in ((0, 1), (1, 0), (2, 3), (3, 2)):  # torchvision's are (top, left, height, width)
        assert same_distribution(boxes[:, column], theirs[:, other])
    assert same_distribution(boxes[:, 2] / boxes[:, 3], theirs[:, 3] / theirs[:, 2])
    assert same_distribution(boxes[:, 2] * boxes[:, 3], theirs[:, 2] * theirs[:, 3])


def test_the_fallback_of_resized_crops_is_torchvisions(v1: Any) -> None:
    """No random crop fits into a strip, so it gets the central crop of the widest or narrowest ratio allowed."""
    for shape in ((1000, 20), (20, 1000), (11, 900)):
        maps = draw_affine_transforms(Augment(crop_scale=(0.9, 1.0)), np.array([shape]), 32, 0, 0, np.array([0]))
        top, left, height, width = v1.RandomResizedCrop.get_params(torch.zeros(3, *shape), [0.9, 1.0], [3 / 4, 4 / 3])
        assert maps.boxes[0].tolist() == [left, top, width, height]


def test_affine_is_distributed_as_torchvisions(v1: Any) -> None:
    spec = Augment(rotate=45, shift=0.1, scale=(0.8, 1.25))
    maps = draw_affine_transforms(spec, np.full((N, 2), 224), 224, 0, 0, np.arange(N))
    zoom = 1 / np.sqrt(np.linalg.det(maps.linear))
    degrees = np.degrees(np.arctan2(maps.linear[:, 1, 0], maps.linear[:, 0, 0]))
    shift = -np.einsum("nij,nj->ni", np.linalg.inv(maps.linear), maps.offset - 112)
    np.testing.assert_allclose(shift, shift.round(), atol=1e-9)
    torch.manual_seed(0)
    drawn = [v1.RandomAffine.get_params([-45, 45], (0.1, 0.1), (0.8, 1.25), None, [224, 224]) for _ in range(N)]
    assert same_distribution(degrees, np.array([angle for angle, *_ in drawn]))
    assert same_distribution(zoom, np.array([scale for _, _, scale, _ in drawn]))
    for axis in (0, 1):
        assert same_distribution(shift[:, axis].round(), np.array([move[axis] for _, move, _, _ in drawn]))


def test_padded_crops_are_distributed_as_torchvisions(v1: Any) -> None:
    boxes = draw_affine_transforms(Augment(pad_crop=4), np.full((N, 2), 32), 32, 0, 0, np.arange(N)).boxes
    torch.manual_seed(0)
    theirs = np.array([v1.RandomCrop.get_params(torch.zeros(3, 40, 40), (32, 32))[:2] for _ in range(N)]) - 4
    assert boxes[:, :2].min() == -4
    assert boxes[:, :2].max() == 4
    assert same_distribution(boxes[:, 0], theirs[:, 1])
    assert same_distribution(boxes[:, 1], theirs[:, 0])


@pytest.mark.parametrize("strength", [0.1, 0.4, 1.5])
def test_color_factors_are_distributed_as_torchvisions(v1: Any, strength: float) -> None:
    hue = min(strength, 0.5)
    drawn = draw_factors(
        Augment(brightness=strength, contrast=strength, saturation=strength, hue=hue), 0, 0, np.arange(N)
    )
    jitter = v1.ColorJitter(strength, strength, strength, hue)
    torch.manual_seed(0)
    theirs = np.array(
        [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)[1:] for _ in range(N)]
    )
    for i, name in enumerate(("brightness", "contrast", "saturation", "hue")):
        assert same_distribution(getattr(drawn, name), theirs[:, i]), name


@pytest.mark.parametrize("scale", [(0.02, 0.33), (0.3, 1.0)])
def test_erasures_are_distributed_as_torchvisions(v1: Any, scale: tuple[float, float]) -> None:
    """Large ones often do not fit and are drawn again."""
    boxes = draw_erasures(Augment(erase=1.0, erase_scale=scale), 64, 0, 0, np.arange(N))
    assert (boxes[:, 2] > 0).mean() > 0.95
    torch.manual_seed(0)
    canvas = torch.zeros(3, 64, 64)
    theirs = np.array([v1.RandomErasing.get_params(canvas, scale, (0.3, 3.3), [0.0])[:4] for _ in range(N)])
    theirs = theirs[theirs[:, 2] < 64]  # where nothing fits, they give the whole image back as its own replacement
    boxes = boxes[boxes[:, 2] > 0]
    for column, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        assert same_distribution(boxes[:, column], theirs[:, other])
    assert same_distribution(boxes[:, 2] / boxes[:, 3], theirs[:, 3] / theirs[:, 2])


def test_erasing_sets_the_mean_color_in_the_box_and_nothing_else() -> None:
    rows = torch.full((40, 32, 32, 3), 255, dtype=torch.uint8)
    spec = Augment(erase=0.5)
    augmentation = Augmentation(spec, size=32, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    out = augmentation(rows, np.full((40, 2), 32), np.arange(40), 0)
    boxes = draw_erasures(spec, 32, 0, 0, np.arange(40))
    assert 8 < (boxes[:, 2] > 0).sum() < 32
    for image_, (left, top, width, height) in zip(out, boxes.tolist(), strict=True):
        erased = torch.zeros(32, 32, dtype=torch.bool)
        erased[top : top + height, left : left + width] = True
        assert (image_[:, erased] == 0).all()
        torch.testing.assert_close(image_[:, ~erased], torch.full_like(image_[:, ~erased], 2.0))


@pytest.mark.parametrize("name", ["hflip", "vflip", "gray", "posterize", "solarize", "autocontrast", "erase"])
def test_probabilities(name: str) -> None:
    """With probability 0.25 a quarter of 4,000 gradients changes; each of these operations changes every gradient."""
    gradient = torch.linspace(10, 240, 8 * 8 * 3).view(8, 8, 3).to(torch.uint8).expand(4000, -1, -1, -1)
    plain = Augmentation(Augment(), size=8, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    changing = Augmentation(Augment.model_validate({name: 0.25}), size=8, mean=[0.0] * 3, std=[1.0] * 3, seed=0)
    shapes, indices = np.full((4000, 2), 8), np.arange(4000)
    difference = (changing(gradient, shapes, indices, 0) - plain(gradient, shapes, indices, 0)).abs().amax((1, 2, 3))
    share = (difference > 1e-4).float().mean().item()
    assert share == pytest.approx(0.25, abs=4.5 * math.sqrt(0.25 * 0.75 / 4000) + (0.02 if name == "erase" else 0))
