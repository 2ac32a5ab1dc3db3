"""The one definition of how an image becomes the network's input: training, evaluation, export and server share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.augment.pipeline import center_crop
from linnaeus.console import counted
from linnaeus.data.batches import Batch
from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.errors import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIZE = 8192  # pixels of a side, as in recipes
MAX_MEAN, MIN_STD, MAX_STD = 100.0, 1e-4, 1e4  # normalized pixels stay within 1e6; published deviations are 0.2 to 1


@dataclass(frozen=True)
class Preprocessing:
    """Decode, resize to `resize` as `fit` says, crop the center to `size`, scale to [0, 1], normalize.

    `mean` and `std` have one value a channel, on the scale [0, 1].
    """

    resize: int
    """Pixels of the short side after decoding (`crop`), or of the square's side (`squash`, `pad`)."""
    size: int
    """Pixels of the square that the network sees."""
    fit: str = "crop"
    """`crop`, `squash` or `pad`."""
    interpolation: str = "bilinear"
    """`nearest`, `bilinear`, `bicubic` or `lanczos`."""
    channels: int = 3
    """1 gray, 3 color."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean subtracted from each channel, on the scale [0, 1]."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation that divides each channel, on the scale [0, 1]."""
    bits: int = 16
    """Used bits of 16-bit gray images, as measured on the training images; larger values are clipped."""

    def __post_init__(self) -> None:
        numbers = (self.resize, self.size, self.channels)
        if not (all(type(n) is int for n in numbers) and 1 <= self.size <= self.resize <= MAX_SIZE):
            raise UserError(
                f"preprocessing: size {self.size!r} and resize {self.resize!r} are not pixels, 1 to {MAX_SIZE}"
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise UserError(
                f"preprocessing: {counted(self.channels, 'channel')} but mean {self.mean} and std {self.std}"
            )
        usable = all(abs(m) <= MAX_MEAN for m in self.mean) and all(MIN_STD <= s <= MAX_STD for s in self.std)
        if not usable:  # NaN fails every comparison
            raise UserError(
                f"preprocessing: mean {self.mean} and std {self.std}, but a mean is at most {MAX_MEAN:g} in size and a "
                f"std in {MIN_STD:g} to {MAX_STD:g}: both are on the scale [0, 1]"
            )
        _ = self.row_spec  # which checks the rest

    @property
    def row_spec(self) -> RowSpec:
        """The part that decoding does: what a row of the pixel store is."""
        return RowSpec(self.resize, self.fit, self.interpolation, self.channels, self.bits)

    def brief(self) -> str:
        """What happens to an image, in words: `short side scaled to 256, center 224 x 224 cut out`."""
        resized = f"{self.resize} x {self.resize}"
        scaled = {
            "crop": f"short side scaled to {self.resize}",
            "squash": f"squashed to {resized}",
            "pad": f"scaled and padded to {resized}",
        }[self.fit]
        whole = self.fit != "crop" and self.size == self.resize
        return scaled if whole else f"{scaled}, center {self.size} x {self.size} cut out"

    def load(self, source: str | Path | bytes | np.ndarray) -> np.ndarray:
        """Image -> (size, size, channels) uint8. Raises UserError if it is not an image."""
        row = np.require(load_row(source, self.row_spec), requirements="W")  # torch warns of what it may not write
        return self.crop(torch.from_numpy(row)[None], np.array([row.shape[:2]]))[0].numpy()

    def crop(self, rows: Tensor, shapes: np.ndarray | Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Padded rows (N, H, W, C) uint8 with their true shapes (N, 2) -> (N, size, size, C) uint8: the center.

        `shift` moves the box by pixels to the right and down, for views of test-time augmentation.
        """
        return center_crop(rows, shapes, self.size, shift)

    def normalize(self, pixels: Tensor) -> Tensor:
        """(N, H, W, C) uint8 -> (N, C, H, W) float32 in channels-last memory, the layout that it already has."""
        scale = torch.tensor([1 / (255 * s) for s in self.std], device=pixels.device)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], device=pixels.device)
        return torch.addcmul(shift, pixels.float(), scale).permute(0, 3, 1, 2)

    def __call__(self, rows: Tensor, shapes: np.ndarray | Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
        """Padded rows (N, H, W, C) uint8 -> the network's input (N, C, size, size) float32."""
        return self.normalize(self.crop(rows, shapes, shift))

    def of_batch(self, batch: Batch) -> Tensor:
        """The network's input for a batch of rows."""
        return self(batch.pixels, batch.shapes)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as the model file holds it; without `bits` if 16, as in older versions."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return values if self.bits != 16 else {key: value for key, value in values.items() if key != "bits"}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Raises TypeError or UserError if something is missing or does not fit."""
        settings: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**settings)


def denormalize(x: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> np.ndarray:
    """Invert the normalization: (C, H, W) or (N, C, H, W) -> pixels (…, H, W, C) uint8, clipped to 0..255."""
    if x.ndim not in (3, 4) or x.shape[-3] != len(mean):
        raise UserError(f"denormalize: shape {tuple(x.shape)} is not (…, {len(mean)}, H, W)")
    m = torch.tensor(mean, device=x.device).view(-1, 1, 1)
    s = torch.tensor(std, device=x.device).view(-1, 1, 1)
    pixels = (x.detach().float() * s + m).mul(255).round().clamp(0, 255).to(torch.uint8)
    return pixels.movedim(-3, -1).cpu().numpy()
