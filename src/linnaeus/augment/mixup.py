"""mixup and CutMix: combine the images of a batch with one another, with soft targets.

The partner of a sample is its predecessor in the batch (the batch rolled by one, as in torchvision's references/
classification/transforms.py); batches are shuffled, so partners are random. The mixing weight is drawn for each sample
from (seed, epoch, draw), never from its rank or thread.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.augment.random import uniforms

MIXUP, CUTMIX, CHOICE = range(50, 53)  # streams of random numbers
KNOTS = 2049  # of the table of the inverse beta distribution: errors stay below 1e-4


@dataclass(frozen=True)
class MixupCutmix:
    """mixup or CutMix with the given alpha; where both are above 0, each batch uses one of them, with equal chance."""

    classes: int
    seed: int
    mixup: float = 0.0
    cutmix: float = 0.0

    @property
    def active(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def __call__(
        self, x: Tensor, labels: Tensor, draws: np.ndarray, *, epoch: int, first: int = -1
    ) -> tuple[Tensor, Tensor]:
        """x (N, C, H, W) float, labels (N,) int64, draws (N,) -> mixed x, targets (N, classes) with rows summing to 1.

        Labels may be (N, classes) bool, of images with several; rows then sum to anything.

        `first`: draw of the first sample of the whole batch, which decides between mixup and CutMix on all processes
        alike; -1 if that is the first of `draws`.
        """
        mixup, cutmix = self.mixup, self.cutmix
        if mixup and cutmix:
            chooser = draws[:1] if first < 0 else np.array([first], draws.dtype)
            heads = uniforms(self.seed, epoch, chooser, 1, CHOICE)[0, 0] < 0.5
            mixup, cutmix = (mixup, 0.0) if heads else (0.0, cutmix)
        if mixup:
            return mixup_batch(x, labels, self.classes, draws, alpha=mixup, seed=self.seed, epoch=epoch)
        if cutmix:
            return cutmix_batch(x, labels, self.classes, draws, alpha=cutmix, seed=self.seed, epoch=epoch)
        return x, _one_hot(labels, self.classes).to(x.dtype)


def mixup_batch(
    x: Tensor, labels: Tensor, classes: int, draws: np.ndarray, *, alpha: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al. 2017, arXiv:1710.09412, section 2): a convex combination of two images and of their targets.

        x' = w x_i + (1 - w) x_j,   y' = w y_i + (1 - w) y_j,   w ~ Beta(alpha, alpha)

    Unlike in the paper's code, w is drawn for each sample and not once for the batch.
    """
    drawn = beta_quantile(alpha, uniforms(seed, epoch, draws, 1, MIXUP)[:, 0])
    weight = torch.from_numpy(drawn.astype(np.float32)).to(x.device, x.dtype)
    mixed = torch.lerp(_partners(x), x, weight[:, None, None, None])
    return mixed, _targets(labels, classes, weight)


def cutmix_batch(
    x: Tensor, labels: Tensor, classes: int, draws: np.ndarray, *, alpha: float, seed: int, epoch: int
) -> tuple[Tensor, Tensor]:
    """CutMix (Yun et al. 2019, arXiv:1905.04899, section 3.1): a box of each image is replaced by its partner's.

        w ~ Beta(alpha, alpha),   box width = W sqrt(1 - w),   box height = H sqrt(1 - w)

    The center of the box is uniform over the image, and the box is clipped at the border. Targets are weighted by the
    area that was actually replaced. Both are drawn for each sample.
    """
    height, width = x.shape[-2:]
    u = uniforms(seed, epoch, draws, 3, CUTMIX)
    half = 0.5 * np.sqrt(1.0 - beta_quantile(alpha, u[:, 0]))
    center_x, center_y = np.floor(u[:, 1] * width), np.floor(u[:, 2] * height)
    half_w, half_h = np.floor(half * width), np.floor(half * height)
    left, right = np.clip(center_x - half_w, 0, width), np.clip(center_x + half_w, 0, width)
    top, bottom = np.clip(center_y - half_h, 0, height), np.clip(center_y + half_h, 0, height)
    boxes = np.stack([left, right, top, bottom], axis=1).astype(np.int64)
    mixed, partners = x.clone(), _partners(x)
    for i, (x0, x1, y0, y1) in enumerate(boxes.tolist()):
        mixed[i, :, y0:y1, x0:x1] = partners[i, :, y0:y1, x0:x1]
    # The weight follows the box that was really pasted: at the border it is smaller than drawn.
    kept = 1.0 - (right - left) * (bottom - top) / (width * height)
    return mixed, _targets(labels, classes, torch.from_numpy(kept.astype(np.float32)).to(x.device, x.dtype))


def _partners(x: Tensor) -> Tensor:
    """The batch rolled by one, in the memory format of `x`."""
    return x[torch.arange(-1, len(x) - 1, device=x.device) % len(x)]


def _targets(labels: Tensor, classes: int, weight: Tensor) -> Tensor:
    """labels (N,) or (N, classes), weight (N,) of the sample's own labels -> (N, classes), weighted means."""
    one_hot = _one_hot(labels, classes).to(weight.dtype)
    return torch.lerp(one_hot.roll(1, 0), one_hot, weight[:, None])


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    return labels if labels.ndim == 2 else F.one_hot(labels, classes)


@functools.lru_cache(maxsize=8)
def _beta_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Knots for the lower half of Beta(alpha, alpha): t = x**min(alpha, 1) for x in [0, 1/2], and its CDF at them.

    For alpha < 1 the density has a pole at 0. In terms of t it has none, so that the trapezoid rule is accurate.
    """
    power = min(alpha, 1.0)
    t = np.linspace(0.0, 0.5**power, KNOTS)
    x = t ** (1.0 / power)
    density = x ** (alpha - power) * (1.0 - x) ** (alpha - 1.0)
    mass = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return t, mass / mass[-1] / 2


def beta_quantile(alpha: float, u: np.ndarray) -> np.ndarray:
    """Inverse CDF of Beta(alpha, alpha) at u in [0, 1); the distribution is symmetric about 1/2."""
    t, mass = _beta_table(alpha)
    low = np.interp(np.minimum(u, 1.0 - u), mass, t) ** (1.0 / min(alpha, 1.0))
    return np.where(u < 0.5, low, 1.0 - low)
