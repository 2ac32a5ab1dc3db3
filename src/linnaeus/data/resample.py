"""Carrying out the maps of `geometry.py`: cut where nothing is resized, resize straight boxes, warp the rest."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.data.geometry import RESIZE, Maps

SMALL = 1 << 16  # bytes of float pixels: up to here a CPU works on many samples at once, above it on one by one


def together(pixels: Tensor, size: int) -> bool:
    """Whether samples are worked on together: small ones for the calls' sake, and on a GPU all; pixels (N, H, W, C)."""
    return pixels.device.type != "cpu" or 4 * size * size * pixels.shape[-1] <= SMALL


def take(x: Tensor, which: slice | np.ndarray) -> Tensor:
    """The samples `which`: a view for a slice, else a copy."""
    return x[which] if isinstance(which, slice) else x.index_select(0, torch.from_numpy(which).to(x.device))


def cut(pixels: Tensor, shapes: np.ndarray, corners: np.ndarray, size: int) -> Tensor:
    """Boxes of whole pixels, black where they reach beyond the row.

    pixels (N, H, W, C) uint8; shapes (N, 2) as (height, width); corners (N, 2) as (left, top)
    -> (N, size, size, C), a view of `pixels` where all boxes are the same
    """
    inside = bool((corners >= 0).all() and (corners + size <= shapes[:, ::-1]).all())
    if inside and (corners == corners[:1]).all():
        left, top = corners[0].tolist()
        return pixels[:, top : top + size, left : left + size]
    if (shapes == shapes[:1]).all() and together(pixels, size):
        return _cut_windows(pixels[:, : shapes[0, 0], : shapes[0, 1]], corners, size)
    out = pixels.new_empty(len(pixels), size, size, pixels.shape[-1])
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
    """The same for rows of one shape: one padding of all, one gather of windows."""
    height, width = pixels.shape[1:3]
    before = np.maximum(-corners.min(axis=0), 0)
    after = np.maximum(corners.max(axis=0) + size - (width, height), 0)
    if before.any() or after.any():
        pixels = F.pad(pixels, (0, 0, int(before[0]), int(after[0]), int(before[1]), int(after[1])))
    windows = pixels.unfold(1, size, 1).unfold(2, size, 1).permute(0, 1, 2, 4, 5, 3)  # (N, tops, lefts, size, size, C)
    left, top = torch.from_numpy(corners + before).to(pixels.device).unbind(1)
    return windows[torch.arange(len(pixels), device=pixels.device), top, left]


def straight(pixels: Tensor, shapes: np.ndarray, maps: Maps, size: int) -> Tensor:
    """Cut or resize, then flip: for maps of the kinds CUT and RESIZE, one kind a call.

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
    """row (H, W, C) uint8, box (left, top, width, height) -> (size, size, C) uint8, antialiased, edges repeated."""
    left, top, width, height = box
    x = row[top : top + height, left : left + width].contiguous().permute(2, 0, 1)[None]
    if row.device.type != "cpu":  # only the CPU resizes bytes
        x = x.float()
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (y if y.dtype == torch.uint8 else y.round_().clamp_(0, 255).to(torch.uint8))[0].permute(1, 2, 0)


def warp(pixels: Tensor, shapes: np.ndarray, maps: Maps, size: int) -> Tensor:
    """One bilinear `grid_sample`; what lies outside of a row is black, whatever the batch holds there.

    pixels (N, H, W, C) uint8 -> (N, C, size, size) float32 in 0..255

    Rows of one shape go together. On a CPU other rows go one by one, each in its own frame: the rounding of
    coordinates, and so every bit of the result, then does not depend on the shapes of the rows beside it.
    """
    if (shapes == shapes[:1]).all():
        height, width = shapes[0].tolist()
        return _sample(pixels[:, :height, :width].float(), maps, size)
    if pixels.device.type == "cpu":
        parts = [slice(i, i + 1) for i in range(len(pixels))]
        return torch.cat([warp(pixels[part], shapes[part], maps.select(part), size) for part in parts])
    edge = torch.from_numpy(shapes.astype(np.int64)).to(pixels.device)
    rows = torch.arange(pixels.shape[1], device=pixels.device)[None, :, None, None] < edge[:, 0, None, None, None]
    columns = torch.arange(pixels.shape[2], device=pixels.device)[None, None, :, None] < edge[:, 1, None, None, None]
    return _sample(pixels.float() * (rows & columns), maps, size)


def _sample(rows: Tensor, maps: Maps, size: int) -> Tensor:
    """rows (N, h, w, C) float32 -> (N, C, size, size) float32."""
    n, height, width, channels = rows.shape
    frame = np.array([2.0 / width, 2.0 / height])  # grid_sample wants [-1, 1] from edge to edge
    table = np.concatenate([maps.linear * frame[:, None], (maps.offset * frame - 1)[:, :, None]], axis=2)
    a, b, c = torch.from_numpy(table.astype(np.float32)).to(rows.device).split(1, dim=2)  # (N, 2, 1) each
    u = torch.arange(size, device=rows.device, dtype=torch.float32) + (0.5 - size / 2)
    grid = (a * u)[:, :, None, :] + (b * u + c)[:, :, :, None]  # (N, 2, size, size): planes are cheaper than pairs
    bands = _bands(size) if n == 1 and rows.device.type == "cpu" else 1
    grid = grid.permute(0, 2, 3, 1).view(n * bands, size // bands, size, 2)
    x = rows.permute(0, 3, 1, 2).expand(n * bands, -1, -1, -1)
    y = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    if bands == 1:
        return y
    return y.permute(1, 0, 2, 3).reshape(n, channels, size, size)


def _bands(size: int) -> int:
    """Into how many bands to cut one picture: `grid_sample` shares work between threads by sample only."""
    return next(k for k in range(min(torch.get_num_threads(), size), 0, -1) if size % k == 0)
