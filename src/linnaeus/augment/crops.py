"""Padded random crops and flips on the device: random numbers drawn once per epoch, one lookup per batch.

The general way of `pipeline.py` draws and moves the numbers of every batch, which takes the host longer than a GPU
needs to train a small network on it. Crops of whole pixels need no resampling: a batch is three operations there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.augment.geometry import FLIP, PAD, center_boxes, padded_crops
from linnaeus.augment.random import uniforms
from linnaeus.recipe import Augment

USED = ("pad_crop", "hflip", "vflip")


def only_crops(spec: Augment) -> bool:
    """Whether the augmentation consists of padded crops and flips."""
    neutral = Augment()
    return all(getattr(spec, name) == getattr(neutral, name) for name in Augment.model_fields if name not in USED)


@dataclass(frozen=True)
class EpochCrops:
    """The crops of n samples, as indices into rows with a border."""

    border: tuple[int, int, int, int]  # pixels that are added at the left, right, top and bottom of a row
    tops: Tensor  # (n, size, 1) int64 on the device: row of the bordered pixels for each line of the output
    lefts: Tensor  # (n, 1, size) int64: the same for columns
    numbers: Tensor  # (n, 1, 1) int64: 0, 1, …

    def take(self, pixels: Tensor, start: int) -> Tensor:
        """pixels (N, H, W, C) uint8, samples `start`, `start` + 1, … of the epoch -> (N, size, size, C) uint8."""
        stop = start + len(pixels)
        if any(self.border):
            pixels = F.pad(pixels, (0, 0, *self.border))
        return pixels[self.numbers[: len(pixels)], self.tops[start:stop], self.lefts[start:stop]]


def draw_crops(
    spec: Augment, shape: tuple[int, int], size: int, seed: int, epoch: int, draws: np.ndarray, device: torch.device
) -> EpochCrops:
    """The crops that `geometry.draw_affine_transforms` draws for rows of one shape (height, width).

    `draws` (n,) are the keys of the samples.
    """
    n = len(draws)
    shapes = np.broadcast_to(np.array(shape), (n, 2))
    if spec.pad_crop:
        corners = padded_crops(spec.pad_crop, shapes, size, uniforms(seed, epoch, draws, 2, PAD))
    else:
        corners = center_boxes(shapes, size)
    flips = np.less(uniforms(seed, epoch, draws, 2, FLIP), [spec.hflip, spec.vflip])
    before = np.maximum(-corners.min(axis=0), 0)
    after = np.maximum(corners.max(axis=0) + size - (shape[1], shape[0]), 0)
    border = (int(before[0]), int(after[0]), int(before[1]), int(after[1]))
    # A flip reads a line from its other end.
    first = torch.from_numpy((corners + before + np.where(flips, size - 1, 0)).astype(np.int64)).to(device)
    steps = torch.from_numpy(np.where(flips, -1, 1)).to(device)
    lefts, tops = (first[:, axis, None] + steps[:, axis, None] * torch.arange(size, device=device) for axis in (0, 1))
    return EpochCrops(border, tops[:, :, None], lefts[:, None, :], torch.arange(n, device=device)[:, None, None])
