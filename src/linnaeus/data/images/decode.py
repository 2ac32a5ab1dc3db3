"""Decode an image file to pixels: the only module that opens images.

Every file is decoded to upright 8-bit RGB or gray, identically in training, evaluation, export and the server: the
orientation (EXIF, XMP) is applied; 16-bit samples are scaled, not clipped; palettes are resolved; transparency is
composited over white; CMYK, YCbCr, LAB and HSV are converted to RGB; only the first frame of an animation is used.
Embedded color profiles are not applied, except that LAB is converted to sRGB. All functions are thread-safe.
"""

from __future__ import annotations

import glob
import io
import logging
import math
import os
import re
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from linnaeus.data import tree
from linnaeus.data.archives.archive import MemberError
from linnaeus.data.images.formats import FORMATS, IMAGE_SUFFIXES, INSTALLABLE, formats, what_else
from linnaeus.data.images.modes import flatten
from linnaeus.data.images.resize import (
    MAX_ASPECT,
    RowSpec,
    UprightImage,
    fit_row,
    is_row,
    pixels,
    resize,
    with_channels,
)
from linnaeus.errors import UnreadableError, UserError

__all__ = ["DECODE_VERSION", "FORMATS", "IMAGE_SUFFIXES", "MAX_ASPECT", "RowSpec", "UnreadableError"]
__all__ += ["decode", "fit_row", "header_size", "inspect", "is_row", "load_row", "read_header"]

DECODE_VERSION = f"1-{PIL.__version__}"
"""Changes whenever the same file may decode to different pixels; part of the key of every store."""

MAX_PIXELS = 80_000_000  # limit on decoded pixels: keeps one decode below 1 GB, at 12 bytes a pixel in the worst case

_NARROW = 16  # pixels of a row whose memory is that of its pixels, and not of its pointers

MAX_HEADER_PIXELS = 178_956_970
"""Limit on the pixels of a JPEG that is decoded at a fraction of its size; also Pillow's own limit."""

MAX_BYTES = 1 << 30  # limit on the size of a file, in bytes

# Memory per pixel relative to other decoders: these keep a second copy of the whole image.
_HEAVY_FORMATS = {"JPEG2000": 4, "AVIF": 2, "HEIF": 2, "WEBP": 2}
_REDUCED_FORMATS = ("JPEG", "MPO")  # that can be decoded at a fraction of their size
_HEAVY_MODES = {"F": 2, "I": 2, "LAB": 2, "PA": 2, "La": 2, "RGBa": 2}
_LARGE = 16_000_000  # pixels; larger images are decoded one at a time, so that all threads together stay near 1 GB
_one_large = threading.Lock()

# Minimum size of a decoded JPEG relative to the row. At 1.5, rows differ from those of the full image by 0.5 of 255 on
# average (84 photographs, 49 dB), at 2 by 0.4 (51 dB); 1.5 halves the decoding time at 1024 x 768.
_HEADROOM = 1.5
INSPECTED = 384
"""Short side, in pixels, that `inspect` needs: as a row of 256, the usual size, so that one decoding serves both."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {  # EXIF 2.32, section 4.6.4 A, tag 274
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_NOT_OURS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # the filter that filterwarnings() adds
logging.getLogger("PIL").addHandler(logging.NullHandler())  # otherwise Pillow's errors reach stderr


@dataclass(frozen=True)
class Header:
    """The header of an image; `format` is one of FORMATS."""

    height: int
    width: int
    format: str
    progressive: bool
    in_python: bool  # whether Pillow's decoder for it is written in Python, and slow


def decode(source: str | Path | bytes, *, channels: int = 3, at_least: int | None = None, bits: int = 16) -> np.ndarray:
    """The pixels of an image, given as a path or as the bytes of a file: (H, W, channels) uint8, upright.

    `at_least`: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side is at least twice this.
    `bits`: as of RowSpec. Gray is Rec. 601 luma. Raises UnreadableError for a file that is truncated, damaged, too
    large or not an image.
    """
    return pixels(_load(source, channels, None if at_least is None else 2 * at_least, bits).image)


def inspect(source: str | Path | bytes) -> UprightImage:
    """A decoded image of mode RGB, with its full size and its format. Raises UnreadableError.

    A JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, as long as its short side is at least INSPECTED.
    """
    return _load(source, 3, INSPECTED)


def load_row(
    source: str | Path | bytes | np.ndarray, spec: RowSpec, observe: Callable[[UprightImage], None] | None = None
) -> np.ndarray:
    """An image, from a file, its bytes or an array, as a row: (h, w, C) uint8. Raises UnreadableError.

    `observe` gets the decoded image before it is resized, if `inspect` would decode the file to the same pixels.
    """
    if isinstance(source, np.ndarray):
        return fit_row(source, spec)
    short_side = math.ceil(_HEADROOM * spec.size)
    upright = _load(source, spec.channels, short_side, spec.bits)
    if observe is not None and (spec.channels, spec.bits) == (3, 16):
        reduced = upright.format in _REDUCED_FORMATS
        if not reduced or _reduction(upright.size, short_side) == _reduction(upright.size, INSPECTED):
            observe(upright)
    return pixels(resize(upright, spec))


def _reduction(size: tuple[int, int], short_side: int) -> int:
    """The fraction, as 1, 2, 4 or 8, at which Pillow's `draft` decodes a JPEG whose short side must not get smaller."""
    scale = min(size) // short_side
    return next((fraction for fraction in (8, 4, 2) if scale >= fraction), 1)


def read_header(source: str | Path | bytes) -> Header | None:
    """What the header of an image says, before orientation is applied; None if the header is unreadable."""
    try:
        with _open_file(source) as file, Image.open(file, formats=formats()) as image:
            in_python = any(tile[0] in Image.DECODERS for tile in getattr(image, "tile", ()))
            return Header(image.height, image.width, image.format or "", bool(image.info.get("progressive")), in_python)
    except Exception:  # as in _load; decoding will report the reason
        return None


def header_size(source: str | Path | bytes) -> tuple[int, int] | None:
    """(height, width) from the header of an image, before orientation is applied; None if the header is unreadable."""
    header = read_header(source)
    return None if header is None else (header.height, header.width)


def _load(source: str | Path | bytes, channels: int, short_side: int | None, bits: int = 16) -> UprightImage:
    """An upright image of mode RGB or L. A JPEG may be decoded smaller, its short side being at least `short_side`."""
    name = "image" if isinstance(source, bytes) else os.fspath(source)
    try:
        with _open_file(source) as file, Image.open(file, formats=formats()) as image:
            _refuse_too_large(name, image, image.width * image.height, MAX_HEADER_PIXELS)
            size = image.size
            if image.info.get("progressive"):  # libjpeg then keeps the whole image in memory at any scale
                _refuse_too_large(name, image, image.width * image.height, MAX_PIXELS)
            box: tuple[float, ...] = (0, 0, *size)
            if short_side is not None and (drafted := image.draft(None, (short_side, short_side))) is not None:
                box = drafted[1]
            weight = _HEAVY_FORMATS.get(image.format or "", 1) * _HEAVY_MODES.get(image.mode, 1)
            cost = max(image.width, _NARROW) * image.height * weight
            _refuse_too_large(name, image, cost, MAX_PIXELS)
            turn: AbstractContextManager = _one_large if cost > _LARGE else nullcontext()
            with turn:
                image.load()
                orientation = _orientation(image)
                if image.format == "TIFF":  # Pillow rotates TIFF while loading
                    size, box = image.size, (0, 0, *image.size)
                upright = _turn(with_channels(flatten(image, bits), channels), size, box, orientation)
                return replace(upright, format=image.format or "")
    except UserError:  # UnreadableError, or an archive that was replaced
        raise
    except (UnidentifiedImageError, SyntaxError):
        reason = what_else(source)
        raise UnreadableError(name, reason, passing=reason in INSTALLABLE) from None
    except Image.DecompressionBombError:
        reason = f"too large: its header claims over {MAX_HEADER_PIXELS:,} pixels"
        raise UnreadableError(name, reason, kind="too-large") from None
    except MemoryError:
        raise UnreadableError(name, "not enough memory to decode it", passing=True) from None
    except Exception as error:  # a damaged file can raise any exception in a decoder, with the same meaning
        cut = (
            "truncated" if re.search("truncated|cut short|end of file|EOF", str(error), re.IGNORECASE) else "unreadable"
        )
        raise UnreadableError(name, _reason(error), passing=_is_passing(error), kind=cut) from error


def _open_file(source: str | Path | bytes) -> BinaryIO:
    """The file, opened for reading. Pillow gets a file object, because it memory-maps paths: truncating a mapped file
    would kill the process."""
    if warnings.filters[:1] != [_NOT_OURS]:  # other code may have reset the filters; catch_warnings is not thread-safe
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if isinstance(source, bytes):
        if not source:
            raise UnreadableError("image", "empty", kind="empty")
        return io.BytesIO(source)
    name = os.fspath(source)
    try:
        status = tree.stat(name)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
            raise UnreadableError(name, "a folder" if stat.S_ISDIR(status.st_mode) else "not a file")
        if status.st_size == 0:
            raise UnreadableError(name, "empty file", kind="empty")
        if status.st_size > MAX_BYTES:
            reason = f"too large: {status.st_size:,} bytes (at most {MAX_BYTES:,})"
            raise UnreadableError(name, reason, kind="too-large")
        return tree.open_binary(name)
    except MemberError as error:
        raise UnreadableError(name, error.reason) from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        reason = no_path(name) or getattr(error, "strerror", None) or str(error)
        raise UnreadableError(clipped(name), reason, passing=True) from None


def clipped(name: str) -> str:
    """A name for a message: an address `data:` holds a whole image."""
    return f"{name[:100]}…" if name.startswith("data:") and len(name) > 100 else name


def no_path(name: str) -> str:
    """Why a name that no file has cannot be one: it is an address or a pattern; "" for a path."""
    if re.match(r"data:|[a-z][a-z0-9+.-]+:/", name, re.IGNORECASE):
        return "an address, and images are read from files; download it, and give the file or its bytes"
    if glob.has_magic(name):
        return "no such file; of a pattern give the files, as glob.glob finds them"
    return ""


def _refuse_too_large(name: str, image: Image.Image, cost: int, limit: int) -> None:
    if cost > limit:
        description = f"{image.width} x {image.height} pixels in {image.format}"
        raise UnreadableError(name, f"too large: {description} need too much memory to decode", kind="too-large")


def _orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8. Call it after load(), because PNG may store it after the pixels."""
    if image.format == "TIFF":
        return 1  # Pillow rotates TIFF while loading
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata does not make the pixels unreadable
        return 1


def _turn(image: Image.Image, size: tuple[int, int], box: tuple[float, ...], orientation: int) -> UprightImage:
    """Apply an EXIF orientation to the pixels, the size, and the box, which starts at (0, 0)."""
    (width, height), (_, _, right, bottom) = size, box
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        width, height, right, bottom = height, width, bottom, right
    left = image.width - right if orientation in (2, 3, 6, 7) else 0
    top = image.height - bottom if orientation in (3, 4, 7, 8) else 0
    return UprightImage(image, (width, height), (left, top, left + right, top + bottom))


def _is_passing(error: Exception) -> bool:
    """Whether the operating system failed, not the decoder."""
    return isinstance(error, OSError) and bool(error.errno)


def _reason(error: Exception) -> str:
    """Pillow's message as one short line."""
    if isinstance(error, OSError) and error.errno:
        return f"could not be read: {error.strerror}"
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return text[:100] if "truncated" in text else f"truncated or damaged ({text[:100]})"
