"""Convert Pillow's modes to 8-bit RGB or gray: 16-bit and float samples, palettes, transparency."""

from __future__ import annotations

import functools
import logging

import numpy as np
from PIL import Image

log = logging.getLogger(__name__)


def flatten(image: Image.Image, bits: int = 16) -> Image.Image:
    """An image of any Pillow mode, with 8 bits a channel and transparency composited over white."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:  # nearly every image
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(to_8_bit(image, bits))
    if not image.has_transparency_data:
        return image
    if image.mode in ("LA", "La"):
        image = image.convert("LA") if image.mode == "La" else image
        # White, because most images with transparency are made for a white page.
        white = Image.new("L", image.size, 255)
        white.paste(image.getchannel("L"), mask=image.getchannel("A"))
        return white
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def stated_bits(image: Image.Image) -> int:
    """Bits of a gray sample as the file states them, such as 16 or 12; 0 for 8 bits, color, and unstated ranges."""
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        return 0
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return int((tags.get(258) or (16,))[0])  # BitsPerSample: 12 comes as 0..4095


def to_8_bit(image: Image.Image, bits: int = 16) -> np.ndarray:
    """(H, W) uint8 from modes I;16 (16-bit), I (32-bit integers) and F (floats).

    If the file states the number of bits, the upper eight are kept, as libpng does, so that 255 is white; of 16 bits
    only the lower `bits` count as used, and larger values become white. If it does
    not (32-bit integers, floats), the range is guessed from the pixels: [0, 1], [0, 255] and [0, 65535] are taken as
    such, and any other range is stretched from its minimum to its maximum.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if stated := stated_bits(image):
        # Reported once, not per image: the range was fixed by the training images.
        if stated == 16 and bits < 16 and values.max(initial=0) >> bits:
            _report_clipping(bits)
        stated = bits if stated == 16 else stated
        gray = (np.clip(values, 0, 65535) >> max(0, stated - 8)).clip(0, 255).astype(np.uint8)
        gray = 255 - gray if tags.get(262) == 0 else gray  # PhotometricInterpretation: WhiteIsZero
        transparent = image.info.get("transparency")
        # A value that stands for transparency is shown as white, as everywhere else.
        return np.where(values == transparent, np.uint8(255), gray) if isinstance(transparent, int) else gray
    finite = np.isfinite(values)
    values = np.where(finite, values, 0).astype(np.float32, copy=False)
    low, high = (float(values.min()), float(values.max())) if finite.any() else (0.0, 0.0)
    if low >= 0 and high <= 65535:
        # The smallest range that holds all values: floats may be in [0, 1], [0, 255] or 16 bits.
        top = next(top for top in ((1, 255, 65535) if image.mode == "F" else (255, 65535)) if high <= top)
        low, high = 0.0, float(top)
    return np.rint((values - low) * (255 / max(high - low, 1e-30))).clip(0, 255).astype(np.uint8)


@functools.cache
def _report_clipping(bits: int) -> None:
    """Warn, once in a process, that an image exceeds the range of the training images."""
    log.warning("16-bit images with values above %d, the range of the training images: clipped to white", 2**bits - 1)
