"""Preprocessing: from an image to the input of the network, and back."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import linnaeus
from linnaeus.errors import UserError
from linnaeus.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing, denormalize


def image(height: int = 60, width: int = 90, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("fit", ["crop", "squash", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_file_its_bytes_and_its_pixels_are_the_same_image(fit: str, channels: int, tmp_path: Path):
    mean, std = (0.5,) * channels, (0.25,) * channels
    preprocessing = Preprocessing(40, 32, fit, "bilinear", channels, mean, std)
    path = tmp_path / "a.png"
    Image.fromarray(image()).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as torch's, where an array cannot be written
        found = [preprocessing.load(source) for source in (path, str(path), path.read_bytes(), image())]
    for each in found:
        assert each.shape == (32, 32, channels)
        assert each.dtype == np.uint8
        assert np.array_equal(each, found[0])


def test_loading_is_the_crop_of_the_stores_row():
    """Prediction takes the short way, evaluation the long one through padded rows: the pixels are the same."""
    preprocessing = Preprocessing(40, 32)
    from linnaeus.data.images.decode import load_row

    rows = [load_row(image(*size), preprocessing.row_spec) for size in ((60, 90), (90, 60), (40, 41))]
    shapes = np.array([row.shape[:2] for row in rows])
    padded = np.zeros((3, *shapes.max(0), 3), np.uint8)
    for i, row in enumerate(rows):
        padded[i, : row.shape[0], : row.shape[1]] = row
    cropped = preprocessing.crop(torch.from_numpy(padded), shapes).numpy()
    for i, size in enumerate(((60, 90), (90, 60), (40, 41))):
        assert np.array_equal(cropped[i], preprocessing.load(image(*size)))


def test_the_input_is_normalized_by_channel_and_lies_channels_last():
    pixels = torch.from_numpy(image(32, 32))[None]
    x = Preprocessing(32, 32)(pixels, np.array([[32, 32]]))
    expected = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(IMAGENET_MEAN).view(3, 1, 1)) / torch.tensor(
        IMAGENET_STD
    ).view(3, 1, 1)
    torch.testing.assert_close(x, expected)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("batched", [False, True])
def test_denormalize_gives_the_image_back(batched: bool):
    pixels = torch.from_numpy(image(32, 32))[None]
    x = Preprocessing(32, 32)(pixels, np.array([[32, 32]]))
    back = linnaeus.denormalize(x if batched else x[0])
    assert np.array_equal(back, pixels.numpy() if batched else pixels[0].numpy())
    gray = Preprocessing(32, 32, channels=1, mean=(0.1,), std=(0.3,))
    one = denormalize(gray(pixels[..., :1], np.array([[32, 32]])), (0.1,), (0.3,))
    assert np.array_equal(one, pixels[..., :1].numpy())


def test_denormalize_clips_what_is_no_color_and_refuses_what_is_no_image():
    assert denormalize(torch.full((3, 2, 2), 99.0)).max() == 255
    assert denormalize(torch.full((3, 2, 2), -99.0)).max() == 0
    with pytest.raises(UserError, match=r"shape \(1, 2, 2\) is not"):
        denormalize(torch.zeros(1, 2, 2))


def test_it_survives_json():
    one = Preprocessing(40, 32, "pad", "bicubic", 1, (0.5,), (0.25,))
    assert Preprocessing.from_dict(json.loads(json.dumps(one.to_dict()))) == one


@pytest.mark.parametrize(
    "change",
    [
        {"size": 50},
        {"size": 0},
        {"resize": "40"},
        {"size": 30.0},
        {"resize": 10**9, "size": 10**9},
        {"channels": 2},
        {"channels": 1},
        {"std": (0.0, 1.0, 1.0)},
        {"mean": (float("inf"), 0.0, 0.0)},
        {"fit": "stretch"},
        {"interpolation": "best"},
    ],
)
def test_impossible_values_are_refused(change: dict):
    with pytest.raises(UserError):
        Preprocessing(**{"resize": 40, "size": 32, **change})
