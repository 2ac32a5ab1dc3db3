"""Augmentation of whole batches on the device: uint8 rows in, normalized float batches out.

One affine map a sample holds all geometry and one resample carries it out; one matrix a sample holds all color and the
normalization. What is no matrix is a pass of its own (`passes.py`). The order is fixed:

    crop, rotate, scale and shift, flips (TrivialAugment's geometry)      -> one resample
    posterize, solarize, equalize, autocontrast, sharpness                -> a pass each, over the samples that drew it
    brightness, contrast, saturation, hue, gray, clip, normalize          -> one matrix
    erase                                                                 -> boxes of zeros

Every random number is a hash of (seed, epoch, sample index, purpose): see `counter.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from linnaeus.data.color import Colors, color_matrices, draw_factors
from linnaeus.data.counter import uniforms
from linnaeus.data.geometry import WARP, center_boxes, draw_maps
from linnaeus.data.passes import draw_erasures, draw_passes, erase, run_passes
from linnaeus.data.resample import cut, resample, resample_bytes
from linnaeus.data.trivial import draw_trivial
from linnaeus.errors import UserError
from linnaeus.recipe import Augment

__all__ = ["Augmentation", "center_crop", "uniforms"]

CPU_CHUNK = 4 << 20  # bytes of float pixels worked on at a time: stays in the cache of the last level
DEVICE_CHUNK = 256 << 20


def center_crop(pixels: Tensor, shapes: Tensor | np.ndarray, size: int) -> Tensor:
    """The central size x size of each row, black where a row is smaller; rounded as torchvision's center_crop.

    pixels (N, H, W, C) uint8, rows at the top left; shapes (N, 2) as (height, width) -> (N, size, size, C) uint8
    """
    shapes = np.asarray(shapes)
    return cut(pixels, shapes, center_boxes(shapes, size), size)


class Augmentation:
    """Random changes to the pictures of a batch, and their normalization.

    pixels (N, H, W, C) uint8, rows at the top left; shapes (N, 2) as (height, width); indices (N,) of the samples
    -> (N, C, size, size) float32 in channels-last memory, on the device of `pixels`

    What a sample gets depends on (seed, epoch, its index) and its own pixels, never on the batch around it.
    """

    def __init__(self, spec: Augment, *, size: int, mean: Sequence[float], std: Sequence[float], seed: int):
        if spec.crop_scale is not None and spec.pad_crop:
            raise UserError("augment: crop_scale and pad_crop both choose the crop; keep one of them")
        assert len(mean) == len(std)
        self.spec = spec
        self.size = size
        self.seed = seed
        self.mean = np.asarray(mean, dtype=np.float64)
        self.std = np.asarray(std, dtype=np.float64)

    def __call__(self, pixels: Tensor, shapes: Tensor | np.ndarray, indices: np.ndarray, epoch: int) -> Tensor:
        spec, size, channels = self.spec, self.size, pixels.shape[-1]
        assert channels == len(self.mean), f"{channels} channels, but mean and std for {len(self.mean)}"
        shapes, indices = np.asarray(shapes), np.asarray(indices)
        trivial = draw_trivial(self.seed, epoch, indices) if spec.trivial else None
        maps = draw_maps(spec, shapes, size, self.seed, epoch, indices, trivial)
        passes = draw_passes(spec, self.seed, epoch, indices, trivial)
        colors = color_matrices(draw_factors(spec, self.seed, epoch, indices, trivial), channels)
        plain = (maps.kinds != WARP) & ~passes.active & ~colors.active

        out = torch.empty(len(indices), size, size, channels, device=pixels.device)
        for chosen in self._chunks(np.flatnonzero(plain), pixels):
            rows, target = _part(pixels, chosen), _part(out, chosen)
            self._normalize(resample_bytes(rows, shapes[chosen], maps.select(chosen), size), target)
            _put_back(out, chosen, target)
        for chosen in self._chunks(np.flatnonzero(~plain), pixels):
            rows, target = _part(pixels, chosen), _part(out, chosen)
            x = resample(rows, shapes[chosen], maps.select(chosen), size)
            run_passes(x, passes, chosen)
            self._color(x, colors, chosen, target)
            _put_back(out, chosen, target)
        result = out.permute(0, 3, 1, 2)
        if spec.erase:
            erase(result, draw_erasures(spec, size, self.seed, epoch, indices))
        return result

    def _chunks(self, which: np.ndarray, pixels: Tensor) -> Iterator[np.ndarray]:
        """Cut the samples `which` into pieces whose float pixels stay in the cache."""
        budget = CPU_CHUNK if pixels.device.type == "cpu" else DEVICE_CHUNK
        step = max(1, budget // (4 * self.size * self.size * pixels.shape[-1]))
        return (which[i : i + step] for i in range(0, len(which), step))

    def _normalize(self, rows: Tensor, out: Tensor) -> None:
        """uint8 rows (K, size, size, C) -> (x / 255 - mean) / std in `out`, float32 of the same shape.

        mean and std are laid out along a whole line of pixels: broadcasting over three channels is 8 times slower.
        """
        line = np.stack([1 / (255 * self.std), -self.mean / self.std]).astype(np.float32)
        scale, bias = torch.from_numpy(np.tile(line, self.size)).to(out.device)
        flat = out.view(len(out), self.size, -1)
        flat.copy_(rows.reshape(flat.shape))
        torch.addcmul(bias, flat, scale, out=flat)

    def _color(self, x: Tensor, colors: Colors, chosen: np.ndarray, out: Tensor) -> None:
        """x (K, C, size, size) in 0..255 -> color, clip, normalize -> `out` (K, size, size, C)."""
        k, channels = x.shape[:2]
        planes = x.view(k, channels, -1)
        scale = 1 / (255 * self.std[:, None])
        direct = _tensor(colors.direct[chosen] * scale, x)
        bias = _tensor(-self.mean / self.std, x).expand(k, channels)[:, :, None]
        if colors.through[chosen].any():
            bias = bias + _tensor(colors.through[chosen] * scale, x) @ planes.mean(dim=2, keepdim=True)
        y = torch.baddbmm(bias, direct, planes)
        flat = out.view(k, -1, channels)
        for c in range(channels):
            low, high = (0 - self.mean[c]) / self.std[c], (1 - self.mean[c]) / self.std[c]
            torch.clamp(y[:, c], low, high, out=flat[:, :, c])


def _tensor(values: np.ndarray, like: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(like.device)


def _part(x: Tensor, chosen: np.ndarray) -> Tensor:
    """The samples `chosen`, in rising order: a view where they lie side by side, else a copy."""
    if chosen[-1] - chosen[0] + 1 == len(chosen):
        return x[int(chosen[0]) : int(chosen[-1]) + 1]
    return x.index_select(0, torch.from_numpy(chosen).to(x.device))


def _put_back(out: Tensor, chosen: np.ndarray, target: Tensor) -> None:
    """Write `target` to the samples `chosen` of `out`, unless it is a view of them already."""
    if target.untyped_storage().data_ptr() != out.untyped_storage().data_ptr():
        out.index_copy_(0, torch.from_numpy(chosen).to(out.device), target)
