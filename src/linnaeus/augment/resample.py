"""Apply the maps of `geometry.py`: cut boxes that keep their size, resize axis-aligned boxes, warp the rest."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.augment.geometry import RESIZE, AffineTransforms
from linnaeus.augment.layout import Scratch, to_device, together


def cut(pixels: Tensor, shapes: np.ndarray, corners: np.ndarray, size: int) -> Tensor:
    """Cut boxes of whole pixels. Pixels outside the row are black.

    pixels (N, H, W, C) uint8; shapes (N, 2) as (height, width); corners (N, 2) as (left, top)
    -> (N, size, size, C), a view of `pixels` where all boxes are the same
    """
    inside = bool((corners >= 0).all() and (corners + size <= shapes[:, ::-1]).all())
    # The same box for all samples, as in evaluation: a view, no copy.
    if inside and (corners == corners[:1]).all():
        left, top = corners[0].tolist()
        return pixels[:, top : top + size, left : left + size]
    if (shapes == shapes[:1]).all() and together(pixels, size):
        return _cut_windows(pixels[:, : shapes[0, 0], : shapes[0, 1]], corners, size)
    out = pixels.new_empty(len(pixels), size, size, pixels.shape[-1])
    # Only boxes that reach beyond the image need black pixels.
    if not inside:
        out.zero_()
    low = np.maximum(corners, 0).tolist()
    high = np.minimum(corners + size, shapes[:, ::-1]).tolist()
    for i, (left, top) in enumerate(corners.tolist()):
        (x0, y0), (x1, y1) = low[i], high[i]
        if x1 > x0 and y1 > y0:
            out[i, y0 - top : y1 - top, x0 - left : x1 - left] = pixels[i, y0:y1, x0:x1]
    return out


def _cut_windows(pixels: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """The same for rows of one shape: pad all at once and gather the windows."""
    height, width = pixels.shape[1:3]
    before = np.maximum(-corners.min(axis=0), 0)
    after = np.maximum(corners.max(axis=0) + size - (width, height), 0)
    if before.any() or after.any():
        pixels = F.pad(pixels, (0, 0, int(before[0]), int(after[0]), int(before[1]), int(after[1])))
    windows = pixels.unfold(1, size, 1).unfold(2, size, 1).permute(0, 1, 2, 4, 5, 3)  # (N, tops, lefts, size, size, C)
    left, top = torch.from_numpy(corners + before).to(pixels.device).unbind(1)
    return windows[torch.arange(len(pixels), device=pixels.device), top, left]


def straight(pixels: Tensor, shapes: np.ndarray, maps: AffineTransforms, size: int) -> Tensor:
    """Cut or resize, then flip: for maps of kind CUT or RESIZE, one kind per call.

    pixels (N, H, W, C) uint8 -> (N, size, size, C) uint8. A box that shrinks is antialiased.
    """
    if maps.kinds[0] == RESIZE:
        resized = [_resize(row, box, size) for row, box in zip(pixels, maps.boxes.tolist(), strict=True)]
        out = resized[0][None] if len(resized) == 1 else torch.stack(resized)
    else:
        out = cut(pixels, shapes, maps.boxes[:, :2], size)
    for axis, flipped in ((2, maps.flips[:, 0]), (1, maps.flips[:, 1])):
        if flipped.all():
            out = out.flip(axis)
        elif flipped.any():
            where = torch.from_numpy(np.flatnonzero(flipped)).to(out.device)
            out = out.index_copy(0, where, out.index_select(0, where).flip(axis))
    return out


def _resize(row: Tensor, box: list[int], size: int) -> Tensor:
    """Resize a box (left, top, width, height) of a row (H, W, C) uint8 to (size, size, C) uint8 with antialiasing."""
    left, top, width, height = box
    x = row[top : top + height, left : left + width].contiguous().permute(2, 0, 1)[None]
    if row.device.type != "cpu":  # torch resizes uint8 only on the CPU
        x = x.float()
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (y if y.dtype == torch.uint8 else y.round_().clamp_(0, 255).to(torch.uint8))[0].permute(1, 2, 0)


class Warp:
    """General resampling by one bilinear `grid_sample`. Pixels outside the row are black.

    A grid of coordinates is a sum of what changes along x and what changes along y; both are made for the whole batch
    and moved to the device once.
    """

    def __init__(self, maps: AffineTransforms, pixels: Tensor, shapes: np.ndarray, size: int, apart: bool):
        """`apart`: each row is measured in its own frame, as a CPU does it, where rows go one by one unless alike. The
        rounding of coordinates, and so every bit of the result, then does not depend on the rows beside it. Otherwise
        all rows go together in the batch's frame."""
        self.size, self.shapes, self.apart = size, shapes, apart
        frames = shapes[:, ::-1] if apart else np.broadcast_to((pixels.shape[2], pixels.shape[1]), shapes.shape)
        scale = 2.0 / frames[:, :, None]  # grid_sample's coordinates range from -1 to 1
        u = np.arange(size) + (0.5 - size / 2)
        self.along = to_device(maps.linear[:, :, :1] * scale * u, pixels.device)  # (N, 2, size)
        self.across = to_device((maps.linear[:, :, 1:] * u + maps.offset[:, :, None]) * scale - 1, pixels.device)

    def __call__(self, pixels: Tensor, which: slice | np.ndarray, scratch: Scratch) -> Tensor:
        """pixels (K, H, W, C) uint8, the samples `which` of the batch -> (K, C, size, size) float32 in 0..255."""
        shapes, along, across = self.shapes[which], self.along[which], self.across[which]
        n, height, width, channels = pixels.shape
        if not self.apart:
            return self._sample(self._blacken(pixels, shapes, scratch), along, across, scratch)
        # Images of one size are resampled together, others one by one.
        if (shapes == shapes[:1]).all():
            height, width = shapes[0].tolist()
            rows = scratch.get("rows", n, height, width, channels).copy_(pixels[:, :height, :width])
            return self._sample(rows, along, across, scratch)
        out = torch.empty(n, channels, self.size, self.size)
        for i, (height, width) in enumerate(shapes.tolist()):
            rows = scratch.get("rows", 1, height, width, channels).copy_(pixels[i, :height, :width])
            out[i] = self._sample(rows, along[i : i + 1], across[i : i + 1], scratch)[0]
        return out

    def _blacken(self, pixels: Tensor, shapes: np.ndarray, scratch: Scratch) -> Tensor:
        """As float, with black outside each row, where the batch may hold anything."""
        height, width = to_device(shapes, pixels.device)[:, :, None, None, None].unbind(1)
        inside = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None] < height
        inside = inside & (torch.arange(pixels.shape[2], device=pixels.device)[None, None, :, None] < width)
        return torch.mul(pixels, inside, out=scratch.get("rows", *pixels.shape))

    def _sample(self, rows: Tensor, along: Tensor, across: Tensor, scratch: Scratch) -> Tensor:
        """rows (K, h, w, C) float32; along, across (K, 2, size) -> (K, C, size, size) float32."""
        n = len(rows)
        grid = scratch.get("grid", n, 2, self.size, self.size)  # planes of x and y are cheaper to compute than pairs
        torch.add(along[:, :, None, :], across[:, :, :, None], out=grid)
        x = rows.permute(0, 3, 1, 2)
        return F.grid_sample(x, grid.permute(0, 2, 3, 1), mode="bilinear", padding_mode="zeros", align_corners=False)
