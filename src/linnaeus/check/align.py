"""Are two images the same but for their frames? Lay one over the other, and compare what both show."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ALIKE = 0.95
"""Correlation from which on two images are the same. Of 1,330 photographs of flowers the pairs above it are copies,
crops and series of one scene; the first pair that only looks alike is at 0.94."""

PROMISING = 0.75  # correlation of the coarse fit below which a finer one is not tried
COARSE_STEPS, FINE_STEPS = 6, 6
AT_ONCE = 128  # pairs: their thumbnails stay in the processor's cache
SHARED = 0.5  # of one frame that lies in the other, at least

PART = 0.75  # of the sides of the larger frame
STARTS = tuple(
    (scale, right * abs(1 - scale), scale, down * abs(1 - scale), mirror)
    for mirror in (0, 1)
    for scale, corners in ((1.0, (0,)), (PART, (-1, 0, 1)), (1 / PART, (-1, 0, 1)))
    for right in corners
    for down in corners
    if (right == 0) == (down == 0)
)
"""Frames to start from where nothing is known: the same; each inside the other, in its middle or in a corner; mirrored
or not."""


def start_of(window: tuple[float, float, float, float], mirrored: bool) -> tuple[float, ...]:
    """The frame of a window (left, top, right, bottom in 0..1), as `align` takes it: the copy shows this window."""
    left, top, right, bottom = window
    return (right - left, left + right - 1, bottom - top, top + bottom - 1, float(mirrored))


def compare(thumbnails: Callable[[np.ndarray], np.ndarray], pairs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How much the images of each pair agree where both show the same, (k,) float32 in -1..1.

    thumbnails: samples (k,) -> (k, side, side) uint8; pairs (k, 2); starts (k, s, 5): frames of the second image in
    the first, to start from, as (x scale, x shift, y scale, y shift) on -1..1, and 1 where it is mirrored. First every
    start is tried on thumbnails of half the size; the best is improved at full size if it is promising.
    """
    scores = np.zeros(len(pairs), np.float32)
    for first in range(0, len(pairs), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        one, two = (torch.from_numpy(thumbnails(pairs[rows, side])).float() for side in (0, 1))
        scores[rows] = _compare(one, two, torch.from_numpy(starts[rows]).float()).numpy()
    return scores


def _compare(one: Tensor, two: Tensor, starts: Tensor) -> Tensor:
    """(k, side, side) twice and (k, s, 5) -> (k,)."""
    k, s = starts.shape[:2]
    mirrored = starts[:, :, 4, None, None] > 0
    small_one, small_two = (F.avg_pool2d(x[:, None], 2)[:, 0] for x in (one, two))
    wide = torch.where(mirrored, small_two.flip(2)[:, None], small_two[:, None]).flatten(0, 1)
    frames, coarse = align(small_one.repeat_interleave(s, 0), wide, starts[:, :, :4].flatten(0, 1), COARSE_STEPS)
    scores, best = coarse.view(k, s).max(1)
    keep = torch.nonzero(scores > PROMISING)[:, 0]
    if len(keep):
        frames = frames.view(k, s, 4)[keep, best[keep]]
        flipped = mirrored[keep, best[keep]]
        second = torch.where(flipped, two[keep].flip(2), two[keep])
        scores[keep] = align(one[keep], second, frames, FINE_STEPS)[1]
    return scores


def align(one: Tensor, two: Tensor, frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Improve the frames of `two` in `one`; (k, side, side) twice, (k, 4) -> frames (k, 4), correlations (k,).

    Gauss-Newton on the difference of the two, each brought to zero mean and unit norm where they overlap, so that
    brightness and contrast do not matter: enhanced correlation (Evangelidis and Psarakis 2008) with scale and shift for
    each axis. Where less than half of a frame is shared the correlation is -1.
    """
    side = one.shape[-1]
    at = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(at, at, indexing="ij")
    slope_x, slope_y = torch.zeros_like(one), torch.zeros_like(one)
    slope_x[:, :, 1:-1] = (one[:, :, 2:] - one[:, :, :-2]) * (side / 4)
    slope_y[:, 1:-1] = (one[:, 2:] - one[:, :-2]) * (side / 4)
    layers = torch.stack([one, slope_x, slope_y], 1)
    for _ in range(steps):
        (seen, dx, dy), shared = _look_through(layers, frames, x, y)
        a, norm = _unit(seen, shared)
        b, _ = _unit(two, shared)
        jacobian = torch.stack([dx * x, dx, dy * y, dy], 1) / norm[:, None] * shared[:, None]
        jacobian = jacobian - _mean(jacobian, shared[:, None]) * shared[:, None]
        jacobian = jacobian - (jacobian * a[:, None]).sum((2, 3), keepdim=True) * a[:, None]  # gain has no say
        j, residual = jacobian.flatten(2), (b - a).flatten(1)
        normal = j @ j.transpose(1, 2)
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
        normal = normal + damping[:, None, None] * torch.eye(4)
        change = torch.linalg.solve(normal, (j @ residual[:, :, None]))[:, :, 0]
        frames = frames + change.clamp(-0.15, 0.15)
        frames[:, 0::2] = frames[:, 0::2].clamp(0.5, 2.0)
        frames[:, 1::2] = frames[:, 1::2].clamp(-0.6, 0.6)
    (seen, _, _), shared = _look_through(layers, frames, x, y)
    correlation = (_unit(seen, shared)[0] * _unit(two, shared)[0]).sum((1, 2))
    return frames, torch.where(shared.mean((1, 2)) >= SHARED, correlation, -torch.ones_like(correlation))


def _look_through(layers: Tensor, frames: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """What is seen through the frames, (layers, k, side, side), and which of it lies inside, (k, side, side)."""
    sx, tx, sy, ty = (frames[:, i, None, None] for i in range(4))
    grid = torch.stack([sx * x + tx, sy * y + ty], -1)
    inside = (grid.abs() <= 1).all(-1).float()
    seen = F.grid_sample(layers, grid, align_corners=False, padding_mode="border")
    return seen.transpose(0, 1), inside


def _mean(values: Tensor, shared: Tensor) -> Tensor:
    return (values * shared).sum((-2, -1), keepdim=True) / shared.sum((-2, -1), keepdim=True).clamp(min=1)


def _unit(values: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
    """Zero mean and unit norm over what is shared, 0 elsewhere; and the norm, (k, 1, 1)."""
    centered = (values - _mean(values, shared)) * shared
    norm = centered.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-3)
    return centered / norm, norm
