"""Registration: copies agree, whatever their frames and brightness; strangers do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scenes import cropped, encoded, scene

from linnaeus.check.align import ALIKE, STARTS, align, compare, start_of


def thumb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))


def agreement(one: Image.Image, two: Image.Image) -> float:
    starts = np.array(STARTS, np.float32)[None]
    return float(compare(np.stack([thumb(one), thumb(two)]).__getitem__, np.array([[0, 1]]), starts)[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("the same", lambda image: image),
        ("mirrored", ImageOps.mirror),
        ("cropped", lambda image: cropped(image, 0.08)),
        ("one side cut off", lambda image: image.crop((0, 0, round(0.8 * image.width), image.height))),
        ("darker, less contrast", lambda image: image.point(lambda v: 0.6 * v + 20)),
        ("small and bad", lambda image: encoded(image.resize((80, 60)), 40)),
        ("mirrored and cropped", lambda image: ImageOps.mirror(cropped(image, 0.06))),
    ],
)
def test_copies_agree(name: str, change):
    for seed in range(5):
        assert agreement(scene(seed), change(scene(seed))) > ALIKE, (name, seed)


def test_strangers_do_not():
    found = [agreement(scene(a), scene(a + 50)) for a in range(20)]
    assert max(found) < 0.8


def test_the_frame_is_found():
    """The middle 80 % of an image lies in it at scale 0.8; a quarter cut off on the left moves it to the right."""
    image = scene(7)
    for window in ((0.1, 0.1, 0.9, 0.9), (0.25, 0.0, 1.0, 1.0)):
        left, top, right, bottom = window
        x = (round(left * image.width), round(right * image.width))
        y = (round(top * image.height), round(bottom * image.height))
        part = image.crop((x[0], y[0], x[1], y[1]))
        one, two = (torch.from_numpy(thumb(t).astype(np.float32))[None] for t in (image, part))
        frames, score = align(one, two, torch.tensor([[1.0, 0.0, 1.0, 0.0]]), 12)
        np.testing.assert_allclose(frames[0].numpy(), start_of(window, False)[:4], atol=0.03)
        assert score[0] > ALIKE


def test_little_overlap_is_no_agreement():
    flat = torch.zeros(1, 32, 32) + torch.arange(32.0)
    assert align(flat, flat, torch.tensor([[0.5, 0.6, 2.0, 0.6]]), 0)[1][0] == -1


def test_images_of_one_level_agree_with_nothing():
    gray = np.full((2, 32, 32), 128, np.uint8)
    assert compare(gray.__getitem__, np.array([[0, 1]]), np.array(STARTS, np.float32)[None])[0] < ALIKE


def test_no_pairs():
    none = np.zeros((2, 32, 32), np.uint8).__getitem__
    assert compare(none, np.zeros((0, 2), int), np.zeros((0, 1, 5), np.float32)).shape == (0,)
