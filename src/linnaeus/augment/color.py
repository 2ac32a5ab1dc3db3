"""Color augmentation: brightness, contrast, saturation, hue, gray and normalization as one matrix per sample."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from linnaeus.augment.layout import Scratch, over_pixels, to_device
from linnaeus.augment.random import uniforms
from linnaeus.augment.trivial_augment import Trivial
from linnaeus.recipe import Augment

BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY = range(20, 25)  # streams of random numbers
LUMA = np.array([0.2989, 0.587, 0.114])  # ITU-R BT.601, with the digits of torchvision's rgb_to_grayscale
NONE, GAIN, MIX = range(3)


@dataclass(frozen=True)
class Colors:
    """N color changes on [0, 1]: `y = direct @ x + through @ mean(x)`, the mean taken over the sample's own pixels.

    The mean term is needed for contrast only: it scales around the image's mean luma, which depends on the pixels.
    """

    direct: np.ndarray  # (N, C, C)
    through: np.ndarray  # (N, C, C)

    def kinds(self) -> np.ndarray:
        """(N,) NONE: no change; GAIN: channels interact only through the mean; MIX: channels are mixed."""
        eye = np.eye(self.direct.shape[1])
        changes = (self.direct != eye).any((1, 2)) | (self.through != 0).any((1, 2))
        mixes = (self.direct * (1 - eye) != 0).any((1, 2))
        return np.where(mixes, MIX, np.where(changes, GAIN, NONE))


@dataclass(frozen=True)
class Factors:
    """Drawn factors, (N,) each. Neutral values: 1, for hue 0 (in turns), for gray False."""

    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    gray: np.ndarray


def draw_factors(spec: Augment, seed: int, epoch: int, indices: np.ndarray, trivial: Trivial | None = None) -> Factors:
    """Draw factors uniform in [max(0, 1 - v), 1 + v] and hue uniform in ±v, as torchvision's ColorJitter draws them.

    TrivialAugment's factor is multiplied in: two blends with the same gray image equal one with the product.
    """

    def between(low: float, high: float, stream: int) -> np.ndarray:
        if low == high:
            return np.full(len(indices), low)
        return low + (high - low) * uniforms(seed, epoch, indices, 1, stream)[:, 0]

    def factor(value: float, stream: int, name: str) -> np.ndarray:
        drawn = between(max(0.0, 1.0 - value), 1.0 + value, stream)
        return drawn if trivial is None else drawn * (1.0 + trivial.pick(name, 0.0))

    return Factors(
        brightness=factor(spec.brightness, BRIGHTNESS, "brightness"),
        # Factors multiply: doubling brightness twice is four times the brightness.
        contrast=factor(spec.contrast, CONTRAST, "contrast"),
        saturation=factor(spec.saturation, SATURATION, "saturation"),
        hue=between(-spec.hue, spec.hue, HUE),
        gray=between(0.0, 1.0 if spec.gray else 0.0, GRAY) < spec.gray,
    )


def color_matrices(factors: Factors, channels: int) -> Colors:
    """Combine brightness, contrast, saturation, hue and gray, in this order, into one matrix per sample.

    torchvision's ColorJitter shuffles the first four and clips to [0, 1] after each; here values are clipped once, at
    the end. With one channel, saturation, hue and gray change nothing.
    """
    n = len(factors.brightness)
    luma = LUMA if channels == 3 else np.full(channels, 1.0 / channels)
    to_gray = np.tile(luma, (channels, 1))  # (C, C): every channel becomes the luma
    direct = np.eye(channels) * factors.brightness[:, None, None]
    contrast = factors.contrast[:, None, None]
    # Contrast mixes each pixel with the mean gray of the image, which is only known later: hence two matrices.
    through = (1 - contrast) * (to_gray @ direct)
    direct = contrast * direct
    if channels == 3:
        steps = factors.saturation[:, None, None] * np.eye(3) + (1 - factors.saturation[:, None, None]) * to_gray
        if factors.hue.any():
            steps = hue_rotation(factors.hue) @ steps
        steps = np.where(factors.gray[:, None, None], to_gray @ steps, steps)
        direct, through = steps @ direct, steps @ through
    assert direct.shape == (n, channels, channels)
    return Colors(direct, through)


def hue_rotation(turns: np.ndarray) -> np.ndarray:
    """Rotate hue as a rotation of RGB about the gray axis (Haeberli 1993, "Matrix operations").

    turns (N,), where 1/3 takes red to green. Returns (N, 3, 3).

    The map is linear and keeps grays. torchvision goes through HSV, which is not linear and keeps the largest and the
    smallest channel; this rotation keeps the sum and the length of the color vector. At thirds of a turn both agree.
    """
    angle = 2 * np.pi * turns[:, None, None]
    third, root = 1.0 / 3.0, np.sqrt(1.0 / 3.0)
    around = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])  # the cross product with the gray axis
    return np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * third + np.sin(angle) * around


class ColorNormalization:
    """Last step of a batch: color, clipping and normalization with mean and std, in one linear map.

    The tables of the N samples are computed and moved to the device once. For interleaved channels they are repeated
    along lines or blocks of pixels: broadcasting over an innermost axis of three, or multiplying by a 3x3 matrix there,
    is about eight times slower.
    """

    def __init__(self, colors: Colors, mean: np.ndarray, std: np.ndarray, size: int, device: torch.device):
        self.kinds = colors.kinds()
        self.size, self.scale = size, 1 / (255 * std)
        self.black, self.white = (0.0 - mean) / std, (1.0 - mean) / std
        self.lines = [to_device(np.tile(v, size), device) for v in (self.scale, self.black, self.white)]
        self.dark = to_device(self.black, device)
        scaled = colors.direct * self.scale[:, None]
        self.matrix = to_device(scaled, device)  # (N, C, C)
        self.through = to_device(colors.through * self.scale[:, None], device)
        self.needs_mean = (colors.through != 0).any(axis=(1, 2))
        # A block-diagonal matrix for several pixels wastes arithmetic but is faster than a 3 x 3 matrix per pixel.
        self.block = next(b for b in (8, 4, 2, 1) if size * size % b == 0)
        if (self.kinds == MIX).any():
            self.blocks = to_device(np.kron(np.eye(self.block), scaled.transpose(0, 2, 1)), device)

    def _bias(self, x: Tensor, which: slice | np.ndarray) -> Tensor:
        """Image of black after the map, (K, C), for x (K, C, size, size) in 0..255."""
        if not self.needs_mean[which].any():
            return self.dark.expand(len(x), -1)
        return (self.through[which] * over_pixels(x, torch.mean)[:, None, :]).sum(2).add_(self.dark)

    def interleaved(self, x: Tensor, which: slice | np.ndarray, out: Tensor) -> None:
        """Write x (K, size, size, C) in 0..255 to `out`, both contiguous. The samples `which` must be of one kind."""
        k, channels, kind = len(x), x.shape[-1], self.kinds[which][0]
        scale, black, white = self.lines
        # Normalization is part of the same multiplication.
        source, target = x.view(k, self.size, -1), out.view(k, self.size, -1)
        if kind == NONE:
            torch.addcmul(black, source, scale, out=target)
            return
        bias = self._bias(x.permute(0, 3, 1, 2), which)
        if kind == GAIN:
            gain = self.matrix[which].diagonal(dim1=1, dim2=2).repeat(1, self.size)[:, None]
            torch.addcmul(bias.repeat(1, self.size)[:, None], source, gain, out=target)
        else:
            shape = (k, -1, self.block * channels)
            torch.baddbmm(bias.repeat(1, self.block)[:, None], x.view(shape), self.blocks[which], out=out.view(shape))
        torch.clamp(target, black, white, out=target)

    def planes(self, x: Tensor, which: slice | np.ndarray, out: Tensor, scratch: Scratch) -> None:
        """Write x (K, C, size, size) in 0..255 to `out` (K, size, size, C), contiguous; `which` is of one kind."""
        k, channels = x.shape[:2]
        if self.kinds[which][0] == NONE:
            for c in range(channels):
                torch.add(self.dark[c], x[:, c], alpha=self.scale[c], out=out[:, :, :, c])
            return
        y = scratch.get("colored", k, channels, self.size * self.size)
        torch.baddbmm(self._bias(x, which)[:, :, None], self.matrix[which], x.view(y.shape), out=y)
        pixels = out.view(k, -1, channels)
        for c in range(channels):
            torch.clamp(y[:, c], self.black[c], self.white[c], out=pixels[:, :, c])
