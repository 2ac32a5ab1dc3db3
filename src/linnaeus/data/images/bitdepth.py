"""Find how many bits the 16-bit images of a source really use: cameras and scanners often fill 10 or 12."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from linnaeus.data import tree
from linnaeus.data.images.decode import MAX_PIXELS
from linnaeus.data.images.modes import stated_bits
from linnaeus.data.table import Table

SUFFIXES = frozenset((".png", ".tif", ".tiff", ".pgm", ".pnm"))  # formats with 16-bit samples
SAMPLE = 64  # images whose headers decide whether all are read: none of them has 16 bits in nearly every source


def used_bits(table: Table, indices: np.ndarray) -> int | None:
    """Bits of the largest sample among these images of a table, 8 to 15; None where they use 16 or have fewer.

    Gray images only, since 16-bit color is decoded to its upper 8 bits. All training images are read if one in a sample
    of their headers states 16 bits.
    """
    paths = _deep(table, indices)
    if not any(_largest(path, header_only=True) for path in _sample(paths)):
        return None
    bits = max(8, max(_largest(path) for path in paths).bit_length())
    return bits if bits < 16 else None


def unstated_range(table: Table, indices: np.ndarray) -> str:
    """The path of one of these images whose file states no range of its values: floats or 32-bit integers; else "".

    A sample of the headers is read.
    """
    return next((path for path in _sample(_deep(table, indices)) if _states_no_range(path)), "")


def _deep(table: Table, indices: np.ndarray) -> list[str]:
    """The paths of images that may have more than 8 bits."""
    paths = table.paths or ()
    return [paths[i] for i in indices.tolist() if Path(paths[i]).suffix.lower() in SUFFIXES] if paths else []


def _sample(paths: list[str]) -> list[str]:
    return paths[:: max(1, len(paths) // SAMPLE)]


def _states_no_range(path: str) -> bool:
    try:
        with tree.open_binary(path) as file, Image.open(file, formats=("PNG", "TIFF", "PPM")) as image:
            return image.mode in ("F", "I") and not stated_bits(image)
    except Exception:  # decoding will report the reason
        return False


def _largest(path: str, header_only: bool = False) -> int:
    """The largest sample of an image with 16-bit samples (1 if only the header is read), else 0."""
    try:
        with tree.open_binary(path) as file, Image.open(file, formats=("PNG", "TIFF", "PPM")) as image:
            if stated_bits(image) != 16 or image.width * image.height > MAX_PIXELS:
                return 0
            return 1 if header_only else int(np.asarray(image).max())
    except Exception:  # decoding will report the reason
        return 0
