"""Views of an image: which ones, how they are cropped, and how they are averaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny import CPU, GRAY, samples
from torch import Tensor, nn

from linnaeus.inference.forward import answer, local_batches
from linnaeus.inference.runners import TorchRunner
from linnaeus.inference.tta import answer_views, averaged, view_sets
from linnaeus.models import wrap
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.pixelstore import PixelStore

SMALL = Preprocessing(28, 20, channels=1, mean=(0.0,), std=(1.0,))


class Corner(nn.Module):
    """Logits from the top left pixel, which identifies the view."""

    def forward(self, x: Tensor) -> Tensor:
        value = x[:, 0, 0, 0]
        return torch.stack([value, -value, 0 * value], dim=1)


def test_crops_are_tried_only_where_there_is_more_to_see():
    assert list(view_sets(GRAY)) == ["mirror"]
    sets = view_sets(SMALL)
    assert {name: len(views) for name, views in sets.items()} == {"mirror": 2, "five crops": 5, "ten crops": 10}
    assert all(views[0] == (0, 0, False) for views in sets.values())
    assert len(set(sets["ten crops"])) == 10


def answered(preprocessing: Preprocessing, temperature: float = 1.0):
    images, labels = samples(7)
    store = PixelStore.from_arrays(images)
    run = TorchRunner(wrap(Corner(), 3, 1), preprocessing, CPU)
    found = answer_views(run.scores, preprocessing, local_batches(store, labels, 3, CPU), temperature)
    return images, labels, found


def test_views_are_the_center_and_the_corners_mirrored_or_not():
    images, labels, found = answered(SMALL)
    corners = {(4, 4), (0, 0), (0, 8), (8, 0), (8, 8)}  # top, left

    def logits(pixels: np.ndarray) -> np.ndarray:
        value = pixels.astype(np.float64) / 255
        return np.stack([value, -value, 0 * value], axis=1)

    def probabilities(pixels: np.ndarray) -> np.ndarray:
        e = np.exp(logits(pixels))
        return e / e.sum(1, keepdims=True)

    plain = [probabilities(images[:, top, left]) for top, left in corners]
    mirrored = [probabilities(images[:, top, left + 19]) for top, left in corners]
    expected = {
        "mirror": [probabilities(images[:, 4, 4]), probabilities(images[:, 4, 23])],
        "five crops": plain,
        "ten crops": plain + mirrored,
    }
    for name, views in expected.items():
        assert np.array_equal(found[name].labels, labels)
        assert found[name].probabilities == pytest.approx(np.mean(views, axis=0), abs=1e-6)


def test_the_temperature_is_applied_to_each_view():
    _, _, found = answered(GRAY, temperature=2.0)
    images, labels = samples(7)
    store = PixelStore.from_arrays(images)
    flipped = PixelStore.from_arrays(np.ascontiguousarray(images[:, :, ::-1]))
    both = [
        answer(Corner(), local_batches(rows, labels, 7, CPU), lambda b: GRAY(b.pixels, b.shapes)).at(2.0)
        for rows in (store, flipped)
    ]
    expected = np.mean([out.probabilities for out in both], axis=0)
    assert found["mirror"].probabilities == pytest.approx(expected, abs=1e-6)


def test_one_certain_view_does_not_overrule_the_others():
    """In the mean of logarithms it would: log 1e-30 outweighs any nine votes."""
    votes = [np.array([[0.9, 0.1]])] * 9 + [np.array([[1e-30, 1.0]])]
    assert averaged(votes).argmax() == 0
    assert np.mean([np.log(v) for v in votes], axis=0).argmax() == 1
    assert np.isfinite(averaged([np.array([[0.0, 1.0]])])).all()
