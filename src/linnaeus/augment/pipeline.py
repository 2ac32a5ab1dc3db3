"""Augmentation of whole batches on the device: uint8 rows in, normalized float batches out.

One affine map per sample holds all geometry and takes one resample; one matrix per sample holds all color and the
normalization. Operations that are not linear are filters of their own (`filters.py`). The order is fixed:

    crop, rotate, scale and shift, flips (TrivialAugment's geometry)      -> one resample
    posterize, solarize, equalize, autocontrast, sharpness                -> one filter each, on samples that drew it
    brightness, contrast, saturation, hue, gray, clip, normalize          -> one matrix
    erase                                                                 -> boxes of zeros

Every random number is a hash of (seed, epoch, sample index, purpose): see `random.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from linnaeus.augment.color import ColorNormalization, color_matrices, draw_factors
from linnaeus.augment.crops import EpochCrops, draw_crops, only_crops
from linnaeus.augment.filters import apply_filters, draw_erasures, draw_filters, erase
from linnaeus.augment.geometry import WARP, center_boxes, draw_affine_transforms
from linnaeus.augment.layout import Scratch, take, to_device, together
from linnaeus.augment.random import uniforms
from linnaeus.augment.resample import Warp, cut, straight
from linnaeus.augment.threads import share
from linnaeus.augment.trivial_augment import draw_trivial
from linnaeus.errors import UserError
from linnaeus.recipe import Augment

__all__ = ["Augmentation", "center_crop", "uniforms"]

CPU_CHUNK = 1 << 20  # bytes of float pixels processed at a time, so that they stay in a core's cache
DEVICE_CHUNK = 256 << 20


def center_crop(pixels: Tensor, shapes: Tensor | np.ndarray, size: int, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """Cut the central size x size from each row, black where a row is smaller, rounded as torchvision's center_crop.

    pixels (N, H, W, C) uint8, rows at the top left; shapes (N, 2) as (height, width) -> (N, size, size, C) uint8;
    `shift` moves all boxes to the right and down
    """
    shapes = _on_host(shapes)
    return cut(pixels, shapes, center_boxes(shapes, size) + np.array(shift), size)


class Augmentation:
    """Random changes to the images of a batch, and their normalization.

    pixels (N, H, W, C) uint8, rows at the top left; shapes (N, 2) as (height, width); indices (N,) of the samples
    -> (N, C, size, size) float32 in channels-last memory, on the device of `pixels`

    The result for a sample depends on (seed, epoch, index) and its own pixels, never on the rest of the batch.
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
        self._scale: tuple[Tensor, Tensor] | None = None

    def __call__(self, pixels: Tensor, shapes: Tensor | np.ndarray, indices: np.ndarray, epoch: int) -> Tensor:
        spec, size, channels = self.spec, self.size, pixels.shape[-1]
        assert channels == len(self.mean), f"{channels} channels, but mean and std for {len(self.mean)}"
        # Random numbers depend on the number of the sample, never on the place in the batch.
        shapes, indices = _on_host(shapes), np.asarray(indices)
        trivial = draw_trivial(self.seed, epoch, indices) if spec.trivial_augment else None
        maps = draw_affine_transforms(spec, shapes, size, self.seed, epoch, indices, trivial)
        passes = draw_filters(spec, self.seed, epoch, indices, trivial)
        colors = color_matrices(draw_factors(spec, self.seed, epoch, indices, trivial), channels)
        out = torch.empty(len(indices), size, size, channels, device=pixels.device)
        on_cpu = pixels.device.type == "cpu"
        active, finish = passes.active, ColorNormalization(colors, self.mean, self.std, size, pixels.device)
        warp = Warp(maps, pixels, shapes, size, apart=on_cpu) if (maps.kinds == WARP).any() else None

        # Each thread has buffers of its own.
        def work(chunks: Sequence[slice | np.ndarray]) -> None:
            scratch = Scratch(pixels.device)
            for which in chunks:
                rows, part, target = take(pixels, which), maps.select(which), take(out, which)
                if warp is not None and part.kinds[0] == WARP:
                    x = warp(rows, which, scratch)
                    if active[which].any():
                        apply_filters(x, passes, which)
                    finish.planes(x, which, target, scratch)
                else:
                    x = scratch.get("straight", *target.shape).copy_(straight(rows, shapes[which], part, size))
                    if active[which].any():
                        apply_filters(x.permute(0, 3, 1, 2), passes, which)
                    finish.interleaved(x, which, target)
                if isinstance(which, np.ndarray):
                    # Scattered samples were computed in a copy and must be written back.
                    out.index_copy_(0, torch.from_numpy(which).to(out.device), target)

        chunks = list(self._chunks(maps.kinds * 10 + finish.kinds, pixels))
        share(chunks, work, torch.get_num_threads() if on_cpu else 1)
        result = out.permute(0, 3, 1, 2)
        if spec.erase:
            erase(result, draw_erasures(spec, size, self.seed, epoch, indices))
        return result

    def draw_epoch(self, rows: Tensor, draws: np.ndarray, epoch: int) -> EpochCrops | None:
        """The crops of an epoch whose samples have the keys `draws` (n,), moved to the device of `rows` at once.

        rows (…, H, W, C) uint8, of one shape. None on a CPU, and where not all pixels of the output are pixels of the
        rows: such augmentations are drawn for every batch.
        """
        if rows.device.type == "cpu" or not only_crops(self.spec):
            return None
        return draw_crops(self.spec, (rows.shape[-3], rows.shape[-2]), self.size, self.seed, epoch, draws, rows.device)

    def crop(self, pixels: Tensor, crops: EpochCrops, start: int) -> Tensor:
        """As a call, for samples `start`, `start` + 1, … of an epoch; nothing waits for the device."""
        if self._scale is None or self._scale[0].device != pixels.device:
            values = (1 / (255 * self.std), (0.0 - self.mean) / self.std)
            scale, black = (to_device(np.tile(v, self.size), pixels.device) for v in values)
            self._scale = scale, black
        scale, black = self._scale
        x = crops.take(pixels, start)
        out = torch.addcmul(black, x.view(len(x), self.size, -1).float(), scale)
        return out.view(x.shape).permute(0, 3, 1, 2)

    def _chunks(self, ways: np.ndarray, pixels: Tensor) -> Iterator[slice | np.ndarray]:
        """Cut the batch into chunks that are worked on the same way; ways (N,) -> sample numbers, in rising order.

        A chunk's float pixels stay in the cache of a CPU; larger images go one by one there, without being copied.
        """
        n = len(ways)
        if not together(pixels, self.size):
            yield from (slice(i, i + 1) for i in range(n))
            return
        most = max(
            1, (CPU_CHUNK if pixels.device.type == "cpu" else DEVICE_CHUNK) // (4 * self.size**2 * pixels.shape[-1])
        )
        if (ways == ways[:1]).all():
            yield from (slice(i, min(i + most, n)) for i in range(0, n, most))
            return
        for way in np.unique(ways):
            which = np.flatnonzero(ways == way)
            yield from (which[i : i + most] for i in range(0, len(which), most))


def _on_host(shapes: Tensor | np.ndarray) -> np.ndarray:
    return shapes.cpu().numpy() if isinstance(shapes, Tensor) else np.asarray(shapes)
