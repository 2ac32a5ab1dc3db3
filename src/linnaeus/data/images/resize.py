"""Resize an image to a row of the pixel store: once, with antialiasing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from linnaeus.data.images.discarded_color import note
from linnaeus.errors import UserError

MAX_ASPECT = 4
"""With fit = "crop", images longer than 4:1 are cropped to the central 4:1, which limits the size of a row."""

FITS = ("crop", "squash", "pad")
RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class RowSpec:
    """How an image becomes a row of the pixel store."""

    size: int  # pixels: the short side (crop), or the side of the square (squash, pad)
    fit: str = "crop"
    interpolation: str = "bilinear"
    channels: int = 3
    bits: int = 16  # used bits of 16-bit gray images, 8 to 16

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UserError(f"size = {self.size}: an image needs at least one pixel")
        if self.fit not in FITS:
            raise UserError(f"fit = {self.fit!r}: one of {', '.join(FITS)}")
        if self.interpolation not in RESAMPLING:
            raise UserError(f"interpolation = {self.interpolation!r}: one of {', '.join(RESAMPLING)}")
        if not 8 <= self.bits <= 16:
            raise UserError(f"bits = {self.bits!r}: 8 to 16")
        if self.channels not in (1, 3):
            raise UserError(f"channels = {self.channels!r}: 1 (gray) or 3 (RGB)")

    def key(self) -> tuple[int | str, ...]:
        """Identifies a store. The default of 16 bits is omitted, so that older stores remain valid."""
        key = (self.size, self.fit, self.interpolation, self.channels)
        return key if self.bits == 16 else (*key, self.bits)


@dataclass(frozen=True)
class UprightImage:
    """An upright image of mode RGB or L. Decoded at a reduced size, its last column and row may be partly empty."""

    image: Image.Image
    size: tuple[int, int]  # width and height at full size, in pixels
    box: tuple[float, float, float, float]  # left, top, right and bottom of the filled part of `image`, in its pixels
    format: str = ""  # format of the file, by Pillow's name: "JPEG", "PNG" …; empty for arrays


def fit_row(array: np.ndarray, spec: RowSpec) -> np.ndarray:
    """Resize (H, W[, C]) uint8 to a row (h, w, C) uint8. An image that already has the right size is returned as it is.

    crop: crop to the central 4:1 if longer, then scale the short side to `size` and the long side to
    int(size * long / short), as torchvision's Resize does. squash: scale both sides to `size`. pad: scale the long
    side to `size` and center the image on a black square. Gray and RGB are converted if `spec.channels` differs.
    """
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.size == 0:
        raise ValueError(f"an image is (H, W) or (H, W, C) uint8, not {array.shape} {array.dtype}")
    gray = array.ndim == 2 or array.shape[2] == 1
    planes = 1 if gray else 3
    if array.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(f"an image has 1 or 3 channels, not {array.shape[2]}")
    height, width = array.shape[:2]
    if planes == spec.channels and is_row(height, width, spec):
        return array[:, :, None] if array.ndim == 2 else array
    image = Image.fromarray(np.ascontiguousarray(array.reshape(height, width) if gray else array))
    image = with_channels(image, spec.channels)
    return pixels(resize(UprightImage(image, image.size, (0, 0, width, height)), spec))


def is_row(height: int, width: int, spec: RowSpec) -> bool:
    """Whether an image of this size needs no resizing."""
    if spec.fit == "crop":
        return min(height, width) == spec.size and max(height, width) <= MAX_ASPECT * spec.size
    return height == width == spec.size


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """The image in mode L or RGB. Pillow computes gray by Rec. 601: (19595 R + 38470 G + 7471 B + 32768) / 65536."""
    if channels == 3:
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "L":
        return image
    if image.mode != "1":
        image = image.convert("RGB")
        note(image)
    return image.convert("L")


def resize(upright: UprightImage, spec: RowSpec) -> Image.Image:
    """Resize an image of mode L or RGB to a row. The shape follows from the size before decoding reduced it."""
    image, (width, height), box = upright.image, upright.size, upright.box
    size, how = spec.size, RESAMPLING[spec.interpolation]
    # Resampling to the same size would still change pixels, so rows of a store must pass untouched.
    if is_row(height, width, spec) and image.size == upright.size:
        return image
    if spec.fit == "squash":
        return image.resize((size, size), how, box=box)
    if spec.fit == "crop":
        # A panorama would become a huge row, so its ends are cut before resizing.
        kept_width, kept_height = min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)
        left, top = (width - kept_width) // 2, (height - kept_height) // 2
        short = min(kept_width, kept_height)
        goal = (int(size * kept_width / short), int(size * kept_height / short))
        # A JPEG may have been decoded at a fraction of its size; the crop is defined on the original.
        x, y = (box[2] - box[0]) / width, (box[3] - box[1]) / height  # 1, or the fraction that was decoded
        start = (box[0] + x * left, box[1] + y * top)
        return image.resize(goal, how, box=(*start, start[0] + x * kept_width, start[1] + y * kept_height))
    long = max(width, height)
    goal = (max(1, round(size * width / long)), max(1, round(size * height / long)))
    inner = image.resize(goal, how, box=box)
    square = Image.new(image.mode, (size, size))
    square.paste(inner, ((size - inner.width) // 2, (size - inner.height) // 2))
    return square


def pixels(image: Image.Image) -> np.ndarray:
    """(H, W, C) uint8 of an image of mode L or RGB. Copied in bands, because Pillow makes two temporary copies."""
    out = np.empty((image.height, image.width, len(image.getbands())), np.uint8)
    rows = max(1, 4_000_000 // image.width)
    if rows >= image.height:
        out[:] = np.asarray(image).reshape(out.shape)
        return out
    for top in range(0, image.height, rows):
        band = out[top : top + rows]
        band[:] = np.asarray(image.crop((0, top, image.width, top + len(band)))).reshape(band.shape)
    return out
