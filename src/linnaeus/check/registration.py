"""Image registration: decide whether two images show the same thing in different frames, by aligning their pixels.

Reference: G. D. Evangelidis and E. Z. Psarakis, Parametric image alignment using enhanced correlation coefficient
maximization, IEEE Transactions on Pattern Analysis and Machine Intelligence 30, 1858-1865, 2008.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.data.images.hashing import ORIENTATIONS, oriented

MATCH = 0.95
"""Correlation of the pixels from which two images are taken for the same. On 1,330 photographs of flowers all pairs
above it are copies, crops or shots of one scene; the best pair of unrelated images has 0.94."""

PROMISING = 0.75  # correlation of the coarse alignment below which no fine one is tried
COARSE_STEPS, FINE_STEPS = 6, 6
AT_ONCE = 128  # pairs, whose thumbnails fit the processor's cache
MIN_OVERLAP = 0.5  # share of one frame that must lie in the other

INNER = 0.75  # side of the smaller frame, as a share of the larger one
INITIAL_FRAMES = tuple(
    (scale, right * abs(1 - scale), scale, down * abs(1 - scale), mirror)
    for mirror in (0, 1)
    for scale, corners in ((1.0, (0,)), (INNER, (-1, 0, 1)), (1 / INNER, (-1, 0, 1)))
    for right in corners
    for down in corners
    if (right == 0) == (down == 0)
)
"""Frames to start from if nothing is known: equal frames, and each inside the other, centered or in a corner; all of
them also mirrored."""


def frame_of_window(window: tuple[float, float, float, float], orientation: int) -> tuple[float, ...]:
    """The frame, in the format of `align`, of a copy that shows a window (left, top, right, bottom in 0..1)."""
    left, top, right, bottom = window
    return (right - left, left + right - 1, bottom - top, top + bottom - 1, float(orientation))


def compare_pairs(thumbnails: Callable[[np.ndarray], np.ndarray], pairs: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Correlation of the images of each pair on the area that both show: (k,) float32 in -1..1.

    `thumbnails` maps samples (k,) to (k, side, side) uint8; `pairs` is (k, 2). `starts`, (k, s, 5), are initial frames
    of the second image inside the first: (x scale, x shift, y scale, y shift) in coordinates -1..1, and its
    orientation. Every start is tried on thumbnails of half the size; the best one is refined at full size if it is
    promising.
    """
    scores = np.zeros(len(pairs), np.float32)
    for first in range(0, len(pairs), AT_ONCE):
        rows = slice(first, first + AT_ONCE)
        one, two = (torch.from_numpy(thumbnails(pairs[rows, side])).float() for side in (0, 1))
        scores[rows] = _compare(one, two, torch.from_numpy(starts[rows]).float()).numpy()
    return scores


def _compare(one: Tensor, two: Tensor, starts: Tensor) -> Tensor:
    """Two batches (k, side, side) and their starts (k, s, 5) -> correlations (k,)."""
    k, s = starts.shape[:2]
    # (k, orientations, side, side); only 96 kB for each pair
    turned = torch.from_numpy(np.stack([oriented(two.numpy(), i) for i in range(ORIENTATIONS)], 1))
    orientation = starts[:, :, 4].long()
    # Coarse first: alignment at half size is fast and rejects most pairs.
    small_one = F.avg_pool2d(one[:, None], 2)[:, 0]
    candidates = F.avg_pool2d(turned, 2)[torch.arange(k)[:, None], orientation].flatten(0, 1)
    frames, coarse = align(small_one.repeat_interleave(s, 0), candidates, starts[:, :, :4].flatten(0, 1), COARSE_STEPS)
    scores, best = coarse.view(k, s).max(1)
    # Only promising pairs are refined at full size.
    keep = torch.nonzero(scores > PROMISING)[:, 0]
    if len(keep):
        frames = frames.view(k, s, 4)[keep, best[keep]]
        second = turned[keep, orientation[keep, best[keep]]]
        scores[keep] = align(one[keep], second, frames, FINE_STEPS)[1]
    return scores


def align(one: Tensor, two: Tensor, frames: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Refine the frames of `two` inside `one`: two batches (k, side, side), frames (k, 4) -> frames, correlations (k,).

    Gauss-Newton on the difference of the two images, both brought to zero mean and unit norm where they overlap, so
    that brightness and contrast do not matter: the enhanced correlation coefficient, with scale and shift for each
    axis. Pairs that overlap too little have the correlation -1.
    """
    side = one.shape[-1]
    centers = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    slope_x, slope_y = torch.zeros_like(one), torch.zeros_like(one)
    slope_x[:, :, 1:-1] = (one[:, :, 2:] - one[:, :, :-2]) * (side / 4)
    slope_y[:, 1:-1] = (one[:, 2:] - one[:, :-2]) * (side / 4)
    layers = torch.stack([one, slope_x, slope_y], 1)
    for _ in range(steps):
        (warped, dx, dy), overlap = _warp(layers, frames, x, y)
        a, norm = _normalize(warped, overlap)
        b, _ = _normalize(two, overlap)
        jacobian = torch.stack([dx * x, dx, dy * y, dy], 1) / norm[:, None] * overlap[:, None]
        # Remove the directions that change only brightness or contrast, which the normalization ignores.
        jacobian = jacobian - _mean(jacobian, overlap[:, None]) * overlap[:, None]
        jacobian = jacobian - (jacobian * a[:, None]).sum((2, 3), keepdim=True) * a[:, None]
        j, residual = jacobian.flatten(2), (b - a).flatten(1)
        normal = j @ j.transpose(1, 2)
        # Damping keeps the system solvable for images with little structure, such as a plain background.
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-9
        normal = normal + damping[:, None, None] * torch.eye(4)
        change = torch.linalg.solve(normal, (j @ residual[:, :, None]))[:, :, 0]
        frames = frames + change.clamp(-0.15, 0.15)
        frames[:, 0::2] = frames[:, 0::2].clamp(0.5, 2.0)
        frames[:, 1::2] = frames[:, 1::2].clamp(-0.6, 0.6)
    (warped, _, _), overlap = _warp(layers, frames, x, y)
    correlation = (_normalize(warped, overlap)[0] * _normalize(two, overlap)[0]).sum((1, 2))
    return frames, torch.where(overlap.mean((1, 2)) >= MIN_OVERLAP, correlation, -torch.ones_like(correlation))


def _warp(layers: Tensor, frames: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the layers inside the frames: (layers, k, side, side), and a 0/1 mask of the overlap, (k, side, side)."""
    sx, tx, sy, ty = (frames[:, i, None, None] for i in range(4))
    grid = torch.stack([sx * x + tx, sy * y + ty], -1)
    inside = (grid.abs() <= 1).all(-1).float()
    warped = F.grid_sample(layers, grid, align_corners=False, padding_mode="border")
    return warped.transpose(0, 1), inside


def _mean(values: Tensor, mask: Tensor) -> Tensor:
    return (values * mask).sum((-2, -1), keepdim=True) / mask.sum((-2, -1), keepdim=True).clamp(min=1)


def _normalize(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Values of zero mean and unit norm inside the mask, 0 outside; and the norm, (k, 1, 1)."""
    centered = (values - _mean(values, mask)) * mask
    norm = centered.square().sum((1, 2), keepdim=True).sqrt().clamp(min=1e-3)
    return centered / norm, norm
