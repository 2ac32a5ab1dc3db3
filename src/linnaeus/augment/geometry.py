"""Geometric augmentation: one affine map per sample, from output pixels to coordinates of the stored row.

Coordinates are continuous: pixel i covers [i, i + 1] and its center lies at i + 0.5. A map has a linear part and an
offset, `row = linear @ (output - size / 2) + offset`: the center of the output maps to `offset`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from linnaeus.augment.random import uniforms
from linnaeus.augment.trivial_augment import Trivial
from linnaeus.recipe import Augment

CROP, PAD, ROTATE, AFFINE, FLIP = range(10, 15)  # streams of random numbers
TRIES = 10  # as in torchvision, which then falls back to a central crop
EXACT = 1e-6  # pixels: tolerance for a box to count as aligned to whole pixels


CUT, RESIZE, WARP = range(3)


@dataclass(frozen=True)
class AffineTransforms:
    """N maps from a size x size output to the rows, and the cheapest operation for each."""

    linear: np.ndarray  # (N, 2, 2) float64, acting on (x, y)
    offset: np.ndarray  # (N, 2) float64, (x, y)
    boxes: np.ndarray  # (N, 4) int64, (left, top, width, height) of the visible part, if the map is axis-aligned
    flips: np.ndarray  # (N, 2) bool, in x and in y, if the map is axis-aligned
    kinds: np.ndarray  # (N,) CUT: whole pixels, not resized; RESIZE: a box of whole pixels inside the row; or WARP

    def select(self, which: np.ndarray | slice) -> AffineTransforms:
        return AffineTransforms(
            self.linear[which], self.offset[which], self.boxes[which], self.flips[which], self.kinds[which]
        )


def plan(linear: np.ndarray, offset: np.ndarray, size: int, shapes: np.ndarray) -> AffineTransforms:
    """Find the maps that need no general resampling. shapes (N, 2) as (height, width)."""
    diagonal = linear[:, [0, 1], [0, 1]]
    extent = np.abs(diagonal) * size
    exact = np.concatenate([offset - extent / 2, extent], axis=1)
    boxes = np.round(exact).astype(np.int64)
    corner, extent = boxes[:, :2], boxes[:, 2:]
    straight = (np.abs(linear[:, [0, 1], [1, 0]]) * size < EXACT).all(1) & (extent > 0).all(1)
    straight &= (np.abs(exact - boxes) < EXACT).all(1)
    inside = (corner >= 0).all(1) & (corner + extent <= shapes[:, ::-1]).all(1)
    kinds = np.where(straight & (extent == size).all(1), CUT, np.where(straight & inside, RESIZE, WARP))
    return AffineTransforms(linear, offset, boxes, diagonal < 0, kinds)


def center_boxes(shapes: np.ndarray, size: int) -> np.ndarray:
    """Left and top of the central size x size box, rounded as torchvision does.

    shapes (N, 2) as (height, width). Returns (N, 2) int64 (left, top), negative where the row is smaller.
    """
    spare = shapes[:, ::-1].astype(np.int64) - size
    # np.round rounds halves to even, as Python's round does in torchvision's center_crop; padding rounds down there.
    return np.where(spare >= 0, np.round(spare / 2.0), -(-spare // 2)).astype(np.int64)


def resized_crops(spec: Augment, shapes: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Boxes of the random resized crop (Szegedy et al. 2015, section 6), with torchvision's ten tries and fallback.

    shapes (N, 2) as (height, width); u (N, 22) uniforms. Returns (N, 4) int64 as (left, top, width, height).
    """
    assert spec.crop_scale is not None
    height, width = shapes[:, :1].astype(np.float64), shapes[:, 1:].astype(np.float64)
    low, high = spec.crop_scale
    narrow, wide = spec.crop_ratio
    area = height * width * (low + (high - low) * u[:, :TRIES])
    # Uniform in the logarithm, so that 3:4 is as likely as 4:3.
    ratio = np.exp(math.log(narrow) + (math.log(wide) - math.log(narrow)) * u[:, TRIES : 2 * TRIES])
    w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(axis=1)
    rows = np.arange(len(shapes))
    w, h = w[rows, first], h[rows, first]
    left = np.floor(u[:, -2] * (width[:, 0] - w + 1))
    top = np.floor(u[:, -1] * (height[:, 0] - h + 1))
    # No try fitted: the central crop of the nearest allowed aspect ratio.
    full_w, full_h = width[:, 0], height[:, 0]
    fallback_w = np.where(full_w / full_h > wide, np.round(full_h * wide), full_w)
    fallback_h = np.where(full_w / full_h < narrow, np.round(full_w / narrow), full_h)
    fallback = np.stack([(full_w - fallback_w) // 2, (full_h - fallback_h) // 2, fallback_w, fallback_h], axis=1)
    fitted = fits.any(axis=1, keepdims=True)
    return np.where(fitted, np.stack([left, top, w, h], axis=1), fallback).astype(np.int64)


def padded_crops(pad: int, shapes: np.ndarray, size: int, u: np.ndarray) -> np.ndarray:
    """Left and top of a random size x size box in the row padded by `pad` pixels on each side; (N, 2) int64."""
    spare = shapes[:, ::-1].astype(np.int64) + 2 * pad - size
    anywhere = np.floor(u * (np.maximum(spare, 0) + 1)).astype(np.int64) - pad
    return np.where(spare >= 0, anywhere, center_boxes(shapes, size))


def draw_affine_transforms(
    spec: Augment,
    shapes: np.ndarray,
    size: int,
    seed: int,
    epoch: int,
    indices: np.ndarray,
    trivial: Trivial | None = None,
) -> AffineTransforms:
    """Draw the map of each sample: crop, rotate, scale and shift, flip, then TrivialAugment's geometry.

    The maps go from output to input and each step undoes one change, so the matrices multiply in this order.
    """
    n = len(indices)
    center = center_boxes(shapes, size)
    box = np.concatenate([center, np.full((n, 2), size)], axis=1)
    if spec.crop_scale is not None:
        box = resized_crops(spec, shapes, uniforms(seed, epoch, indices, 2 * TRIES + 2, CROP))
    elif spec.pad_crop:
        box[:, :2] = padded_crops(spec.pad_crop, shapes, size, uniforms(seed, epoch, indices, 2, PAD))
    linear = (box[:, 2:] / size)[:, :, None] * np.eye(2)
    offset = box[:, :2] + box[:, 2:] / 2

    def then(change: np.ndarray, move: np.ndarray | None = None) -> None:
        """Append a change to the image, given as a map from output to input about the center."""
        nonlocal linear, offset
        offset = offset if move is None else offset + np.einsum("nij,nj->ni", linear, move)
        linear = linear @ change

    if spec.rotate:
        degrees = (2 * uniforms(seed, epoch, indices, 1, ROTATE)[:, 0] - 1) * spec.rotate
        then(rotation(degrees))
    if spec.shift or spec.scale is not None:
        u = uniforms(seed, epoch, indices, 3, AFFINE)
        low, high = spec.scale or (1.0, 1.0)
        zoom = (low + (high - low) * u[:, 2])[:, None]
        shift = np.round((2 * u[:, :2] - 1) * spec.shift * size)  # whole pixels, as RandomAffine draws them
        then(np.eye(2) / zoom[:, :, None], -shift / zoom)
    if spec.hflip or spec.vflip:
        flips = np.less(uniforms(seed, epoch, indices, 2, FLIP), [spec.hflip, spec.vflip])
        then(np.where(flips, -1.0, 1.0)[:, :, None] * np.eye(2))
    if trivial is not None:
        then(*trivial_transforms(trivial, size))
    return plan(linear, offset, size, shapes)


def rotation(degrees: np.ndarray) -> np.ndarray:
    """(N,) degrees, counterclockwise on the screen -> (N, 2, 2) from output to input; y points down."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.stack([np.stack([cos, -sin], 1), np.stack([sin, cos], 1)], 1)


def trivial_transforms(trivial: Trivial, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Shear about the top left corner, translation, rotation about the center -> linear (N, 2, 2), offset (N, 2)."""
    linear = rotation(trivial.pick("rotate", 0.0))
    shear = np.stack([trivial.pick("shear_x", 0.0), trivial.pick("shear_y", 0.0)], axis=1)
    linear[:, 0, 1] += shear[:, 0]
    linear[:, 1, 0] += shear[:, 1]
    move = np.stack([trivial.pick("translate_x", 0.0), trivial.pick("translate_y", 0.0)], axis=1)
    return linear, shear * (size / 2) - move
