"""Mixing the images of a batch with one another: mixup and CutMix, with soft targets.

The partner of a sample is its neighbor in the batch (the batch rolled by one, as torchvision does it): batches are
shuffled. How much is mixed is drawn for each sample from its own counter, never from rank or thread.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.augment.random import uniforms

MIXUP, CUTMIX, CHOICE = range(50, 53)  # streams of random numbers
KNOTS = 2049  # of the table of the beta distribution's inverse: errors below 1e-4


def mix(
    x: Tensor,
    labels: Tensor,
    classes: int,
    indices: np.ndarray,
    *,
    first: int = -1,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    seed: int,
    epoch: int,
) -> tuple[Tensor, Tensor]:
    """mixup or CutMix with the given alpha; where both are above 0, each batch takes one of them with equal chance.

    That is drawn by the batch's first sample: `first`, where this is a part of one, else the first here.

    x (N, C, H, W) float, labels (N,) int64, indices (N,) of the samples -> x mixed, targets (N, classes) that sum to 1
    """
    if mixup and cutmix:
        chooses = indices[:1] if first < 0 else np.array([first], indices.dtype)
        heads = uniforms(seed, epoch, chooses, 1, CHOICE)[0, 0] < 0.5
        mixup, cutmix = (mixup, 0.0) if heads else (0.0, cutmix)
    if mixup:
        return mixup_batch(x, labels, classes, indices, alpha=mixup, seed=seed, epoch=epoch)
    if cutmix:
        return cutmix_batch(x, labels, classes, indices, alpha=cutmix, seed=seed, epoch=epoch)
    return x, F.one_hot(labels, classes).to(x.dtype)


def mixup_batch(
    x: Tensor, labels: Tensor, classes: int, indices: np.ndarray, *, alpha: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """A weighted mean of two images and of their targets (Zhang et al. 2017, arXiv:1710.09412).

    The weight of a sample's own image is Beta(alpha, alpha), drawn for each sample.
    """
    weight = beta_quantile(alpha, uniforms(seed, epoch, indices, 1, MIXUP)[:, 0])
    share = torch.from_numpy(weight.astype(np.float32)).to(x.device, x.dtype)
    mixed = torch.lerp(_partners(x), x, share[:, None, None, None])
    return mixed, _targets(labels, classes, share)


def cutmix_batch(
    x: Tensor, labels: Tensor, classes: int, indices: np.ndarray, *, alpha: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """A box of each image replaced by its partner's, targets by area (Yun et al. 2019, arXiv:1905.04899).

    The box has the image's aspect ratio and an area of 1 - Beta(alpha, alpha) before it is clipped at the border;
    its center is uniform. Drawn for each sample; the targets weigh what was really replaced.
    """
    height, width = x.shape[-2:]
    u = uniforms(seed, epoch, indices, 3, CUTMIX)
    half = 0.5 * np.sqrt(1.0 - beta_quantile(alpha, u[:, 0]))
    center_x, center_y = np.floor(u[:, 1] * width), np.floor(u[:, 2] * height)
    half_w, half_h = np.floor(half * width), np.floor(half * height)
    left, right = np.clip(center_x - half_w, 0, width), np.clip(center_x + half_w, 0, width)
    top, bottom = np.clip(center_y - half_h, 0, height), np.clip(center_y + half_h, 0, height)
    boxes = np.stack([left, right, top, bottom], axis=1).astype(np.int64)
    mixed, partners = x.clone(), _partners(x)
    for i, (x0, x1, y0, y1) in enumerate(boxes.tolist()):
        mixed[i, :, y0:y1, x0:x1] = partners[i, :, y0:y1, x0:x1]
    kept = 1.0 - (right - left) * (bottom - top) / (width * height)
    return mixed, _targets(labels, classes, torch.from_numpy(kept.astype(np.float32)).to(x.device, x.dtype))


def _partners(x: Tensor) -> Tensor:
    """The batch rolled by one, in the memory format of `x`."""
    return x[torch.arange(-1, len(x) - 1, device=x.device) % len(x)]


def _targets(labels: Tensor, classes: int, share: Tensor) -> Tensor:
    """labels (N,), share (N,) of the sample's own label -> (N, classes), rows summing to 1."""
    own = F.one_hot(labels, classes).to(share.dtype)
    return torch.lerp(own.roll(1, 0), own, share[:, None])


@functools.lru_cache(maxsize=8)
def _beta_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """The lower half of Beta(alpha, alpha) as knots: x**power for x in [0, 1/2], and the distribution function there.

    For alpha below 1 the density has a pole at 0. In t = x**alpha it has none, and the trapezoid rule is exact enough.
    """
    power = min(alpha, 1.0)
    t = np.linspace(0.0, 0.5**power, KNOTS)
    x = t ** (1.0 / power)
    density = x ** (alpha - power) * (1.0 - x) ** (alpha - 1.0)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return t, mass / mass[-1] / 2


def beta_quantile(alpha: float, u: np.ndarray) -> np.ndarray:
    """The inverse of the distribution function of Beta(alpha, alpha), which is symmetric about 1/2; u in [0, 1)."""
    t, mass = _beta_table(alpha)
    low = np.interp(np.minimum(u, 1.0 - u), mass, t) ** (1.0 / min(alpha, 1.0))
    return np.where(u < 0.5, low, 1.0 - low)
