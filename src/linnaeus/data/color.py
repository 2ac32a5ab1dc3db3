"""Color of augmentation: one matrix a sample for brightness, contrast, saturation, hue, gray and normalization."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnaeus.data.counter import uniforms
from linnaeus.data.trivial import Trivial
from linnaeus.recipe import Augment

BRIGHTNESS, CONTRAST, SATURATION, HUE, GRAY = range(20, 25)  # streams of random numbers
LUMA = np.array([0.2989, 0.587, 0.114])  # ITU-R BT.601, the digits that torchvision's rgb_to_grayscale has


@dataclass(frozen=True)
class Colors:
    """N color changes on [0, 1]: `y = direct @ x + through @ mean(x)`, the mean taken over the sample's own pixels.

    Contrast turns about the picture's mean luma, which is known only once the pixels are; all else is known before.
    """

    direct: np.ndarray  # (N, C, C)
    through: np.ndarray  # (N, C, C)

    @property
    def active(self) -> np.ndarray:
        """(N,) bool: the samples that change at all."""
        identity = np.eye(self.direct.shape[1])
        return (self.direct != identity).any((1, 2)) | (self.through != 0).any((1, 2))


@dataclass(frozen=True)
class Factors:
    """What was drawn: (N,) each. 1 changes nothing, except for hue (in turns, 0) and gray (False)."""

    brightness: np.ndarray
    contrast: np.ndarray
    saturation: np.ndarray
    hue: np.ndarray
    gray: np.ndarray


def draw_factors(spec: Augment, seed: int, epoch: int, indices: np.ndarray, trivial: Trivial | None = None) -> Factors:
    """Factors uniform in [max(0, 1 - v), 1 + v] and hue uniform in ±v, as torchvision's ColorJitter draws them.

    TrivialAugment's factor multiplies: two blends with the same gray picture are one blend with the product.
    """

    def factor(value: float, stream: int, name: str) -> np.ndarray:
        low = max(0.0, 1.0 - value)
        drawn = low + (1.0 + value - low) * uniforms(seed, epoch, indices, 1, stream)[:, 0]
        return drawn if trivial is None else drawn * (1.0 + trivial.pick(name, 0.0))

    return Factors(
        brightness=factor(spec.brightness, BRIGHTNESS, "brightness"),
        contrast=factor(spec.contrast, CONTRAST, "contrast"),
        saturation=factor(spec.saturation, SATURATION, "saturation"),
        hue=(2 * uniforms(seed, epoch, indices, 1, HUE)[:, 0] - 1) * spec.hue,
        gray=uniforms(seed, epoch, indices, 1, GRAY)[:, 0] < spec.gray,
    )


def color_matrices(factors: Factors, channels: int) -> Colors:
    """Brightness, then contrast, then saturation, then hue, then gray, always in this order.

    torchvision's ColorJitter shuffles the first four and clips after each; here what leaves [0, 1] is clipped once, at
    the end. With one channel saturation, hue and gray change nothing.
    """
    n = len(factors.brightness)
    luma = LUMA if channels == 3 else np.full(channels, 1.0 / channels)
    to_gray = np.tile(luma, (channels, 1))  # (C, C): every channel becomes the luma
    direct = np.eye(channels) * factors.brightness[:, None, None]
    contrast = factors.contrast[:, None, None]
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
    """A turn of the color wheel as a rotation of RGB about the gray axis (Haeberli 1993, "Matrix operations").

    turns (N,), 1/3 takes red to green -> (N, 3, 3)

    Grays stay as they are, and it is linear. HSV, which torchvision goes through, is not: there the largest and the
    smallest channel keep their values, here the sum and the length of the color vector do. At thirds of a turn the two
    agree.
    """
    angle = 2 * np.pi * turns[:, None, None]
    third, root = 1.0 / 3.0, np.sqrt(1.0 / 3.0)
    around = np.array([[0, -root, root], [root, 0, -root], [-root, root, 0]])  # the cross product with the gray axis
    return np.cos(angle) * np.eye(3) + (1 - np.cos(angle)) * third + np.sin(angle) * around
