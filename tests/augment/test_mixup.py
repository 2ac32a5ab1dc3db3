"""mixup and CutMix: what they do to images, targets and their order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from linnaeus.augment.mixup import MixupCutmix, beta_quantile, cutmix_batch, mixup_batch

CLASSES = 5


def batch(n: int = 64, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Images whose pixels are their sample number, which shows how they were mixed; labels; indices."""
    x = torch.arange(n, dtype=torch.float32).view(n, 1, 1, 1).expand(n, 3, size, size)
    return x.contiguous(memory_format=torch.channels_last), torch.arange(n) % CLASSES, np.arange(100, 100 + n)


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 2.0, 8.0])
def test_beta_quantile_inverts_the_distribution_function(alpha: float) -> None:
    """Against the integral of the density, and by its symmetry and its mean and variance."""
    x = np.linspace(0.01, 0.99, 99)
    u = (np.arange(200_000) + 0.5) / 200_000
    drawn = beta_quantile(alpha, u)
    fine = np.linspace(0.01, 0.99, 200_001)
    constant = math.gamma(2 * alpha) / math.gamma(alpha) ** 2
    density = constant * (fine * (1 - fine)) ** (alpha - 1)
    below = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2) * (fine[1] - fine[0])])
    counted = np.searchsorted(drawn, x) / len(u) - np.searchsorted(drawn, x[0]) / len(u)
    np.testing.assert_allclose(counted, np.interp(x, fine, below), atol=2e-4)
    assert drawn.mean() == pytest.approx(0.5, abs=1e-6)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=1e-3)


def test_mixup_mixes_images_and_targets_alike() -> None:
    x, labels, indices = batch()
    mixed, targets = mixup_batch(x, labels, CLASSES, indices, alpha=1.0, seed=0, epoch=0)
    partner = x.roll(1, 0)
    share = ((mixed - partner) / (x - partner))[:, 0, 0, 0]
    assert share.min() >= 0
    assert share.max() <= 1
    assert share.std() > 0.2  # drawn for each sample
    torch.testing.assert_close(mixed, share.view(-1, 1, 1, 1) * x + (1 - share.view(-1, 1, 1, 1)) * partner)
    one_hot = torch.nn.functional.one_hot(labels, CLASSES).float()
    expected = share[:, None] * one_hot + (1 - share[:, None]) * one_hot.roll(1, 0)
    torch.testing.assert_close(targets, expected, rtol=0, atol=1e-4)


def test_cutmix_replaces_a_box_and_counts_its_area() -> None:
    x, labels, indices = batch()
    mixed, targets = cutmix_batch(x, labels, CLASSES, indices, alpha=1.0, seed=0, epoch=0)
    own, other = mixed == x, mixed == x.roll(1, 0)
    assert (own ^ other).all()  # every pixel is the image's own or its partner's
    for i in range(len(x)):
        ys, xs = torch.nonzero(other[i, 0], as_tuple=True)
        if len(ys):
            assert (ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1) == len(
                ys
            )  # the pixels of the partner form a box
        assert torch.equal(other[i, 0], other[i, 1])
    kept = own[:, 0].float().mean((1, 2))
    assert kept.std() > 0.05
    torch.testing.assert_close(targets[torch.arange(len(x)), labels], kept)
    torch.testing.assert_close(targets[torch.arange(len(x)), labels.roll(1)], 1 - kept)


@pytest.mark.parametrize("ways", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}, {}])
def test_targets_sum_to_one_and_memory_stays_channels_last(ways: dict[str, Any]) -> None:
    x, labels, indices = batch()
    before = x.clone()
    mixed, targets = MixupCutmix(CLASSES, 0, **ways)(x, labels, indices, epoch=0)
    assert torch.equal(x, before)
    assert mixed.shape == x.shape
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(targets.sum(1), torch.ones(len(x)))
    again, _ = MixupCutmix(CLASSES, 0, **ways)(x, labels, indices, epoch=0)
    assert torch.equal(again, mixed)
    later, _ = MixupCutmix(CLASSES, 0, **ways)(x, labels, indices, epoch=1)
    assert torch.equal(later, mixed) is (not ways)


def test_with_both_each_batch_uses_one_of_them_at_random() -> None:
    x, labels, indices = batch(8)
    boxed = 0
    for epoch in range(200):
        mixed, _ = MixupCutmix(CLASSES, 0, 1.0, 1.0)(x, labels, indices, epoch=epoch)
        boxed += bool(((mixed == x) | (mixed == x.roll(1, 0))).all())
    assert 70 < boxed < 130


def test_how_much_is_mixed_does_not_depend_on_the_batch() -> None:
    """The share depends on the sample alone; only its partner depends on the batch."""
    x, _, indices = batch(10)
    labels = torch.arange(10)
    _, targets = mixup_batch(x, labels, 10, indices, alpha=1.0, seed=0, epoch=0)
    _, fewer = mixup_batch(x[4:], labels[4:], 10, indices[4:], alpha=1.0, seed=0, epoch=0)
    torch.testing.assert_close(fewer[torch.arange(6), labels[4:]], targets[torch.arange(4, 10), labels[4:]])


def test_a_batch_of_one_stays_as_it_is() -> None:
    x, labels, indices = batch(1)
    each: tuple[dict[str, Any], ...] = ({"mixup": 0.2}, {"cutmix": 1.0})
    for ways in each:
        mixed, targets = MixupCutmix(CLASSES, 0, **ways)(x, labels, indices, epoch=0)
        assert torch.equal(mixed, x)
        assert targets.tolist() == [[1, 0, 0, 0, 0]]
