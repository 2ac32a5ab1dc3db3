"""Encode images for a page: pixels -> a `data:` URI of a PNG or JPEG."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image


def to_pillow(pixels: np.ndarray) -> Image.Image:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 -> an image of mode L or RGB."""
    gray = pixels.ndim == 3 and pixels.shape[2] == 1
    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if gray else pixels))


def data_uri(image: Image.Image, file_format: str, *, quality: int = 85, optimize: bool = False) -> str:
    """A `data:` URI of the image. `file_format` is PNG or JPEG; `quality` concerns JPEG only."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, quality=quality, optimize=optimize)
    return f"data:image/{file_format.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
