"""Registration: copies match whatever their frame and brightness; unrelated images do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scenes import cropped, encoded, scene

from linnaeus.check.registration import INITIAL_FRAMES, MATCH, align, compare_pairs, frame_of_window


def thumb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L").resize((32, 32), Image.Resampling.BILINEAR))


def correlation(one: Image.Image, two: Image.Image) -> float:
    starts = np.array(INITIAL_FRAMES, np.float32)[None]
    return float(compare_pairs(np.stack([thumb(one), thumb(two)]).__getitem__, np.array([[0, 1]]), starts)[0])


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("identical", lambda image: image),
        ("mirrored", ImageOps.mirror),
        ("cropped", lambda image: cropped(image, 0.08)),
        ("one side cut off", lambda image: image.crop((0, 0, round(0.8 * image.width), image.height))),
        ("darker, less contrast", lambda image: image.point(lambda v: 0.6 * v + 20)),
        ("small and compressed", lambda image: encoded(image.resize((80, 60)), 40)),
        ("mirrored and cropped", lambda image: ImageOps.mirror(cropped(image, 0.06))),
    ],
)
def test_copies_match(name: str, change):
    for seed in range(5):
        assert correlation(scene(seed), change(scene(seed))) > MATCH, (name, seed)


def test_unrelated_images_do_not_match():
    scores = [correlation(scene(a), scene(a + 50)) for a in range(20)]
    assert max(scores) < 0.8


def test_the_frame_is_recovered():
    """The middle 80 % of an image has the scale 0.8; cutting a quarter off the left shifts the frame to the right."""
    image = scene(7)
    for window in ((0.1, 0.1, 0.9, 0.9), (0.25, 0.0, 1.0, 1.0)):
        left, top, right, bottom = window
        x = (round(left * image.width), round(right * image.width))
        y = (round(top * image.height), round(bottom * image.height))
        part = image.crop((x[0], y[0], x[1], y[1]))
        one, two = (torch.from_numpy(thumb(t).astype(np.float32))[None] for t in (image, part))
        frames, score = align(one, two, torch.tensor([[1.0, 0.0, 1.0, 0.0]]), 12)
        np.testing.assert_allclose(frames[0].numpy(), frame_of_window(window, False)[:4], atol=0.03)
        assert score[0] > MATCH


def test_little_overlap_is_no_match():
    flat = torch.zeros(1, 32, 32) + torch.arange(32.0)
    assert align(flat, flat, torch.tensor([[0.5, 0.6, 2.0, 0.6]]), 0)[1][0] == -1


def test_uniform_images_match_nothing():
    gray = np.full((2, 32, 32), 128, np.uint8)
    assert compare_pairs(gray.__getitem__, np.array([[0, 1]]), np.array(INITIAL_FRAMES, np.float32)[None])[0] < MATCH


def test_no_pairs():
    thumbnails = np.zeros((2, 32, 32), np.uint8).__getitem__
    assert compare_pairs(thumbnails, np.zeros((0, 2), int), np.zeros((0, 1, 5), np.float32)).shape == (0,)
