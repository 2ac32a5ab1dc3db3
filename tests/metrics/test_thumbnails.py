"""Thumbnails of small images: their pixels, whether they tell the classes, and their distance."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from linnaeus.inference.runners import thumbnails_of
from linnaeus.metrics.ood import distances
from linnaeus.metrics.thumbnails import IMAGES_PER_CENTER, SIDE, area_weights, choose_thumbnails


@pytest.mark.parametrize("size", [8, 28, 32, 5, 1])
def test_a_thumbnail_averages_areas(size: int):
    weights = area_weights(size)
    assert weights.shape == (SIDE, size)
    assert weights.sum(1) == pytest.approx(np.ones(SIDE))
    image = np.arange(size, dtype=np.float32)
    # Each pixel repeated SIDE times makes areas whole numbers of pixels.
    assert weights @ image == pytest.approx(np.repeat(image, SIDE).reshape(SIDE, size).mean(1), abs=1e-4)


def test_thumbnails_of_a_batch_are_those_of_torch():
    x = torch.rand(3, 2, 32, 32)
    assert torch.allclose(thumbnails_of(x), F.adaptive_avg_pool2d(x, SIDE).flatten(1), atol=1e-6)


def patterns(n: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of four patterns, (n, 64), and their labels."""
    shapes = np.random.default_rng(0).normal(size=(4, 64))
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=n)
    return (shapes[labels] + noise * generator.normal(size=(n, 64))).astype(np.float32), labels


def test_only_thumbnails_that_tell_the_classes_count():
    distance = np.linspace(0, 0.1, 100)
    clear = choose_thumbnails(*patterns(400, 0.3, 1), *patterns(100, 0.3, 2), distance)
    assert clear is not None
    assert len(clear.vectors) <= 400 // IMAGES_PER_CENTER, "the file would hold the images themselves"
    assert choose_thumbnails(*patterns(400, 9, 1), *patterns(100, 9, 2), distance) is None


def test_features_that_do_not_differ_give_no_scale():
    """A network that has not learned anything; a scale of 0 would be refused by the model file."""
    assert choose_thumbnails(*patterns(400, 0.3, 1), *patterns(100, 0.3, 2), np.zeros(100)) is None


def test_something_else_is_far_by_its_pixels_though_its_features_are_near():
    known = patterns(100, 0.3, 2)[0]
    distance = np.linspace(0, 0.1, 100)
    small = choose_thumbnails(*patterns(400, 0.3, 1), *patterns(100, 0.3, 2), distance)
    assert small is not None
    other = np.random.default_rng(3).normal(size=(50, 64)).astype(np.float32)
    limit = np.quantile(small.farther(distance, known), 0.95)
    assert (small.farther(np.zeros(50), other) > limit).all()
    # The features still count, and known images are not pushed away: both distances have the same 95 % quantile.
    assert small.farther(np.full(50, 9.0), other) == pytest.approx(np.full(50, 9.0))
    assert np.quantile(small.scale * distances(known, small.vectors), 0.95) == pytest.approx(0.095, abs=2e-3)
