"""Carrying out the maps of `geometry.py`: cut where nothing is resized, resize straight boxes, warp the rest."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.data.geometry import CUT, RESIZE, WARP, Maps


def cut(pixels: Tensor, shapes: np.ndarray, corners: np.ndarray, size: int) -> Tensor:
    """Boxes of whole pixels, black where they reach beyond the row.

    pixels (N, H, W, C) uint8; shapes (N, 2) as (height, width); corners (N, 2) as (left, top) -> (N, size, size, C)
    """
    inside = bool((corners >= 0).all() and (corners + size <= shapes[:, ::-1]).all())
    if inside and (corners == corners[:1]).all():
        left, top = corners[0].tolist()
        return pixels[:, top : top + size, left : left + size]
    if (shapes == shapes[:1]).all():
        return _cut_uniform(pixels[:, : shapes[0, 0], : shapes[0, 1]], corners, size)
    out = pixels.new_zeros(len(pixels), size, size, pixels.shape[-1])
    low = np.maximum(corners, 0)
    high = np.minimum(corners + size, shapes[:, ::-1])
    for i, ((x0, y0), (x1, y1), (left, top)) in enumerate(
        zip(low.tolist(), high.tolist(), corners.tolist(), strict=True)
    ):
        if x1 > x0 and y1 > y0:
            out[i, y0 - top : y1 - top, x0 - left : x1 - left] = pixels[i, y0:y1, x0:x1]
    return out


def _cut_uniform(pixels: Tensor, corners: np.ndarray, size: int) -> Tensor:
    """The same for rows of one shape: one padding of all, one gather of windows."""
    height, width = pixels.shape[1:3]
    before = np.maximum(-corners.min(axis=0), 0)
    after = np.maximum(corners.max(axis=0) + size - (width, height), 0)
    if before.any() or after.any():
        pixels = F.pad(pixels, (0, 0, int(before[0]), int(after[0]), int(before[1]), int(after[1])))
    windows = pixels.unfold(1, size, 1).unfold(2, size, 1).permute(0, 1, 2, 4, 5, 3)  # (N, tops, lefts, size, size, C)
    left, top = torch.from_numpy(corners + before).to(pixels.device).unbind(1)
    return windows[torch.arange(len(pixels), device=pixels.device), top, left]


def resample_bytes(pixels: Tensor, shapes: np.ndarray, maps: Maps, size: int) -> Tensor:
    """Cut or resize, then flip: for maps that are straight.

    pixels (N, H, W, C) uint8 -> (N, size, size, C) uint8. Boxes that shrink are antialiased.
    """
    resized = np.flatnonzero(maps.kinds == RESIZE)
    if len(resized) == 0:
        out = cut(pixels, shapes, maps.boxes[:, :2], size)
    else:
        out = pixels.new_empty(len(pixels), size, size, pixels.shape[-1])
        rest = np.flatnonzero(maps.kinds == CUT)
        if len(rest):
            out[rest] = cut(pixels[rest], shapes[rest], maps.boxes[rest, :2], size)
        for i in resized.tolist():
            left, top, width, height = maps.boxes[i].tolist()
            out[i] = _resize(pixels[i, top : top + height, left : left + width], size)
    for axis, flipped in ((2, maps.flips[:, 0]), (1, maps.flips[:, 1])):
        if flipped.any():
            where = torch.from_numpy(np.flatnonzero(flipped)).to(out.device)
            turned = out.index_select(0, where).flip(axis)
            out = turned if flipped.all() else out.index_copy(0, where, turned)
    return out


def _resize(box: Tensor, size: int) -> Tensor:
    """(h, w, C) uint8 -> (size, size, C) uint8, bilinear with antialiasing."""
    x = box.permute(2, 0, 1)[None]
    if box.device.type != "cpu":  # only the CPU resizes bytes
        x = x.float()
    y = F.interpolate(x, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return (y if y.dtype == torch.uint8 else y.round_().clamp_(0, 255).to(torch.uint8))[0].permute(1, 2, 0)


def resample(pixels: Tensor, shapes: np.ndarray, maps: Maps, size: int) -> Tensor:
    """Whatever the maps need; pixels (N, H, W, C) uint8 -> (N, C, size, size) float32 in 0..255."""
    warped = np.flatnonzero(maps.kinds == WARP)
    if len(warped) == len(pixels):
        return _warp(pixels, shapes, maps, size)
    straight = np.flatnonzero(maps.kinds != WARP)
    out = torch.empty(len(pixels), pixels.shape[-1], size, size, device=pixels.device)
    chosen = maps.select(straight)
    out[straight] = resample_bytes(pixels[straight], shapes[straight], chosen, size).permute(0, 3, 1, 2).float()
    if len(warped):
        out[warped] = _warp(pixels[warped], shapes[warped], maps.select(warped), size)
    return out


def _warp(pixels: Tensor, shapes: np.ndarray, maps: Maps, size: int) -> Tensor:
    """One bilinear `grid_sample`; what lies outside of a row is black, whatever the batch holds there.

    Rows of one shape go together. On a CPU other rows go one by one, each in its own frame: the rounding of
    coordinates, and so every bit of the result, then does not depend on the shapes of the rows beside it.
    """
    height, width = pixels.shape[1:3]
    if (shapes == shapes[:1]).all():
        height, width = shapes[0].tolist()
        return _sample(pixels[:, :height, :width].float(), maps, size)
    if pixels.device.type == "cpu":
        out = torch.empty(len(pixels), pixels.shape[-1], size, size)
        for i, (h, w) in enumerate(shapes.tolist()):
            out[i] = _sample(pixels[i : i + 1, :h, :w].float(), maps.select(slice(i, i + 1)), size)[0]
        return out
    edge = torch.from_numpy(shapes.astype(np.int64)).to(pixels.device)
    rows = torch.arange(height, device=pixels.device)[None, :, None, None] < edge[:, 0, None, None, None]
    columns = torch.arange(width, device=pixels.device)[None, None, :, None] < edge[:, 1, None, None, None]
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
