"""Images encoded for a page."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from linnaeus.data.images.encode import data_uri, to_pillow


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_a_png_keeps_every_pixel(shape: tuple[int, ...]):
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    head, _, data = data_uri(to_pillow(pixels), "PNG", optimize=True).partition(",")
    assert head == "data:image/png;base64"
    decoded = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert np.array_equal(decoded, pixels.reshape(decoded.shape))


def test_a_jpeg_is_smaller_at_lower_quality():
    image = to_pillow(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8))
    small, large = (data_uri(image, "JPEG", quality=quality) for quality in (30, 90))
    assert small.startswith("data:image/jpeg;base64,")
    assert len(small) < len(large)
