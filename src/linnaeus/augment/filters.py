"""Augmentations that are not linear maps: each filter runs over the samples that it was drawn for.

Input and output are (N, C, H, W) float32 in 0..255.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnaeus.augment.layout import lines, over_pixels
from linnaeus.augment.random import uniforms
from linnaeus.augment.trivial_augment import Trivial
from linnaeus.recipe import Augment

POSTERIZE, SOLARIZE, EQUALIZE, AUTOCONTRAST, SHARPNESS, ERASE = range(30, 36)  # streams of random numbers
TRIES = 10  # as in torchvision, which then erases nothing


@dataclass(frozen=True)
class FilterParameters:
    """Drawn parameters, (N,) each. A sample with the neutral value is not changed."""

    bits: np.ndarray  # int, 8 is neutral
    threshold: np.ndarray  # float, 256 is neutral
    equalize: np.ndarray  # bool
    autocontrast: np.ndarray  # bool
    sharpness: np.ndarray  # float, 1 is neutral

    @property
    def active(self) -> np.ndarray:
        """(N,) bool: the samples that any filter changes."""
        changed = (self.bits < 8) | (self.threshold < 256) | (self.sharpness != 1)
        return changed | self.equalize | self.autocontrast


def draw_filters(
    spec: Augment, seed: int, epoch: int, indices: np.ndarray, trivial: Trivial | None = None
) -> FilterParameters:
    """Draw each filter with its own probability. If TrivialAugment drew it too, the stronger of the two applies."""

    def hit(probability: float, stream: int) -> np.ndarray:
        if not probability:
            return np.zeros(len(indices), dtype=bool)
        return uniforms(seed, epoch, indices, 1, stream)[:, 0] < probability

    # 8 bits, a threshold of 256 and a factor of 1 change nothing.
    bits = np.where(hit(spec.posterize, POSTERIZE), spec.posterize_bits, 8)
    threshold = np.where(hit(spec.solarize, SOLARIZE), float(spec.solarize_threshold), 256.0)
    equal, auto = hit(spec.equalize, EQUALIZE), hit(spec.autocontrast, AUTOCONTRAST)
    sharp = np.where(hit(spec.sharpness, SHARPNESS), spec.sharpness_factor, 1.0)
    if trivial is not None:
        bits = np.minimum(bits, trivial.pick("posterize", 8).astype(int))
        threshold = np.minimum(threshold, trivial.pick("solarize", 256.0))
        equal, auto = equal | trivial.of("equalize"), auto | trivial.of("autocontrast")
        sharp = np.where(trivial.of("sharpness"), 1.0 + trivial.strength, sharp)
    return FilterParameters(bits, threshold, equal, auto, sharp)


def apply_filters(x: Tensor, parameters: FilterParameters, which: slice | np.ndarray) -> None:
    """Apply posterize, solarize, equalize, autocontrast and sharpness in place.

    `x` (K, C, H, W) are the K samples `which` of the batch.
    """
    bits, threshold, sharp = parameters.bits[which], parameters.threshold[which], parameters.sharpness[which]
    for mask, change in (
        (bits < 8, lambda part, rows: posterize(part, _column(bits[rows], part))),
        (threshold < 256, lambda part, rows: solarize(part, _column(threshold[rows], part))),
        (parameters.equalize[which], lambda part, rows: equalize(part)),
        (parameters.autocontrast[which], lambda part, rows: autocontrast(part)),
        (sharp != 1, lambda part, rows: sharpness(part, _column(sharp[rows], part))),
    ):
        rows = np.flatnonzero(mask)
        # Without an index where all or one sample are meant, which saves a copy.
        if len(rows) == len(x):
            x.copy_(change(x, rows))
        elif len(rows) == 1:
            part = x[int(rows[0])][None]
            part.copy_(change(part, rows))
        elif len(rows):
            where = torch.from_numpy(rows).to(x.device)
            x.index_copy_(0, where, change(x.index_select(0, where), rows))


def _column(values: np.ndarray, like: Tensor) -> Tensor:
    """(K,) -> (K, 1, 1, 1) float32 on the device of `like`."""
    return torch.from_numpy(values.astype(np.float32)).to(like.device).view(-1, 1, 1, 1)


def posterize(x: Tensor, bits: Tensor) -> Tensor:
    """Keep the upper `bits` (K, 1, 1, 1) of the eight bits of each level."""
    step = 2.0 ** (8 - bits)
    return x.round().div_(step).floor_().mul_(step)


def solarize(x: Tensor, threshold: Tensor) -> Tensor:
    """Invert the levels at or above `threshold` (K, 1, 1, 1)."""
    x = x.round()
    inverted = (x - (threshold.ceil() - 1.0)).clamp_(
        0, 1
    )  # equals `x >= threshold` for integer levels, and is much faster
    return torch.addcmul(x, inverted, (-2.0 * x).add_(255.0))


def autocontrast(x: Tensor) -> Tensor:
    """Stretch each channel to 0..255. A channel with a single value is not changed."""
    x = x.round()
    view, lay = lines(x)
    low, high = over_pixels(x, torch.amin), over_pixels(x, torch.amax)
    flat = low == high
    step = torch.where(flat, torch.ones_like(low), (high - low) * (1.0 / 255.0))
    # Division, not multiplication by the inverse: a result that is exactly an integer must not end just below it.
    view.sub_(lay(torch.where(flat, torch.zeros_like(low), low))).div_(lay(step)).clamp_(0, 255).floor_()
    return x


def equalize(x: Tensor) -> Tensor:
    """Equalize the histogram of each channel by Pillow's rule: integer steps, top bin excluded from the mean."""
    k, c, h, w = x.shape
    view, lay = lines(x.round().to(torch.int32))
    first = torch.arange(k * c, device=x.device, dtype=torch.int32).view(k, c) * 256
    flat = view.add_(lay(first)).reshape(-1)
    counts = torch.bincount(flat, minlength=k * c * 256).view(k * c, 256)
    top = 255 - counts.flip(1).ne(0).to(torch.int32).argmax(1, keepdim=True)  # the highest level that occurs
    step = (h * w - counts.gather(1, top)) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    table = torch.where(step > 0, table.clamp(0, 255), torch.arange(256, device=x.device))
    result = torch.empty_like(x)
    lines(result)[0].copy_(table.view(-1).to(x.dtype).index_select(0, flat).view(view.shape))
    return result


def sharpness(x: Tensor, factor: Tensor) -> Tensor:
    """Blend with a smoothed copy: factor (K, 1, 1, 1): 0 smooths, 1 keeps, 2 sharpens. Border pixels stay.

    The smoothing is Pillow's SMOOTH filter: ones with a 5 in the center, over 13.
    """
    if min(x.shape[-2:]) <= 2:
        return x
    sums = x[..., :-2, :] + x[..., 1:-1, :] + x[..., 2:, :]
    inner = x[..., 1:-1, 1:-1]
    smooth = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]
    smooth = smooth.add_(inner, alpha=4.0).div_(13.0)
    result = x.clone()
    result[..., 1:-1, 1:-1] = torch.lerp(smooth, inner, factor).clamp_(0, 255)
    return result


def draw_erasures(spec: Augment, size: int, seed: int, epoch: int, indices: np.ndarray) -> np.ndarray:
    """Boxes of random erasing (Zhong et al. 2017, arXiv:1708.04896, algorithm 1), drawn as torchvision draws them.

    Returns (N, 4) int64 as (left, top, width, height); the width is 0 where nothing is erased.
    """
    u = uniforms(seed, epoch, indices, 3 + 2 * TRIES, ERASE)
    low, high = spec.erase_scale
    # Area and ratio are drawn for all tries at once; the first try that fits is used.
    area = size * size * (low + (high - low) * u[:, 3 : 3 + TRIES])
    bottom, top = math.log(spec.erase_ratio[0]), math.log(spec.erase_ratio[1])
    ratio = np.exp(bottom + (top - bottom) * u[:, 3 + TRIES :])
    h, w = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (h < size) & (w < size)
    first = fits.argmax(axis=1)
    rows = np.arange(len(indices))
    h, w = h[rows, first], w[rows, first]
    boxes = np.stack([np.floor(u[:, 1] * (size - w + 1)), np.floor(u[:, 2] * (size - h + 1)), w, h], axis=1)
    keep = (u[:, 0] < spec.erase) & fits.any(axis=1)
    return np.where(keep[:, None], boxes, 0).astype(np.int64)


def erase(x: Tensor, boxes: np.ndarray) -> None:
    """Set the boxes (N, 4) of `x` (N, C, H, W), already normalized, to 0, the mean color, in place."""
    for i in np.flatnonzero(boxes[:, 2] > 0):
        left, top, width, height = boxes[i].tolist()
        x[i, :, top : top + height, left : left + width] = 0.0
