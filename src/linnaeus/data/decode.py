"""From the bytes of an image to its pixels: the only place that opens images.

Whatever a file holds comes out as upright 8-bit RGB or gray, the same in training, evaluation, export and the server:
orientation (EXIF, XMP) is applied; 16-bit is scaled, not clipped; palettes are looked up; transparency is laid over
white; CMYK, YCbCr, LAB and HSV become RGB; of an animation the first frame counts. Embedded color profiles are not
applied, except that LAB is converted to sRGB. Everything is safe to call from many threads.
"""

from __future__ import annotations

import ctypes
import functools
import io
import logging
import math
import os
import re
import stat
import threading
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, UnidentifiedImageError

from linnaeus.data.resize import MAX_ASPECT, RowSpec, Upright, fit_row, is_row, pixels, resize, with_channels
from linnaeus.errors import UserError

__all__ = ["DECODE_VERSION", "FORMATS", "IMAGE_SUFFIXES", "MAX_ASPECT", "Inspected", "RowSpec", "UnreadableError"]
__all__ += ["decode", "fit_row", "header_size", "inspect", "is_row", "load_row"]

DECODE_VERSION = f"1-{PIL.__version__}"
"""Changes whenever the same file may give other pixels; stores are keyed by it."""

FORMATS = ("JPEG", "PNG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM", "TGA")
"""What is opened: what cameras, scanners, the web and research write. Never what runs a program (EPS, PDF, WMF)."""

_SUFFIXES = """.jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .tif .tiff .webp .avif .jp2 .j2k .j2c .jpc .jpf .jpx
.ppm .pgm .pbm .pnm .pfm .tga .heic .heif"""  # HEIC so that it is refused by name and not passed over
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())

MAX_PIXELS = 80_000_000
"""Pixels of the largest image that is decoded: with it, one decode stays under 1 GB (12 bytes a pixel at worst)."""

MAX_HEADER_PIXELS = 178_956_970
"""Pixels of the largest JPEG that is opened to be decoded at a fraction of its size. Pillow opens no larger one."""

MAX_BYTES = 1 << 30
"""Size of the largest file that is opened, in bytes."""

# Bytes of memory for one pixel beyond what others need: these decoders keep the whole image in a form of their own.
_HEAVY_FORMATS = {"JPEG2000": 4, "AVIF": 2, "WEBP": 2}
_HEAVY_MODES = {"F": 2, "I": 2, "LAB": 2, "PA": 2, "La": 2, "RGBa": 2}
_LARGE = 16_000_000  # pixels; images above it are decoded one at a time, so that threads together stay near 1 GB
_one_large = threading.Lock()

# How much larger than a row a JPEG is decoded, at least. With 1.5 rows are within 0.5 of 255 of those from the full
# image, on average (84 photographs, 49 dB), with 2 within 0.4 (51 dB); 1.5 halves the time for 1024 x 768.
_HEADROOM = 1.5

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

_NOT_OURS = ("ignore", None, Warning, re.compile(r"PIL\."), 0)  # what filterwarnings() makes of an order to be quiet
logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors reach stderr where nobody set up logging


class UnreadableError(UserError):
    """An image that cannot be decoded; `reason` says why, without the name.

    `passing`: it may go away without the image changing, as with a missing file, a permission, or lack of memory.
    `kind`: "empty", "truncated", "too-large", or "unreadable" for everything else.
    """

    def __init__(self, name: str, reason: str, *, passing: bool = False, kind: str = "unreadable"):
        super().__init__(f"{name}: {reason}")
        self.reason = reason
        self.passing = passing
        self.kind = kind


@dataclass(frozen=True)
class Inspected:
    """An image as `decode` gives it, and what its file says beside."""

    pixels: np.ndarray
    """(h, w, 3) uint8, upright"""
    size: tuple[int, int]
    """Height and width at full size, upright"""
    format: str
    """One of FORMATS: what the file holds, whatever its name says"""


def decode(source: str | Path | bytes, *, channels: int = 3, at_least: int | None = None) -> np.ndarray:
    """The pixels of an image, given as a path or as the bytes of a file: (H, W, channels) uint8, upright.

    `at_least`: a JPEG may be decoded at 1/2, 1/4 or 1/8, as long as its short side stays at least twice this.
    Gray is Rec. 601 luma. Raises UnreadableError where the image is cut short, damaged, too large or none at all.
    """
    return pixels(_load(source, channels, None if at_least is None else 2 * at_least).image)


def inspect(source: str | Path | bytes, *, at_least: int) -> Inspected:
    """As `decode`, with the image's full size and format. Raises UnreadableError."""
    upright = _load(source, 3, 2 * at_least)
    width, height = upright.size
    return Inspected(pixels(upright.image), (height, width), upright.format)


def load_row(source: str | Path | bytes | np.ndarray, spec: RowSpec) -> np.ndarray:
    """An image, from a file, its bytes or an array, as a row: (h, w, C) uint8. Raises UnreadableError."""
    if isinstance(source, np.ndarray):
        return fit_row(source, spec)
    return pixels(resize(_load(source, spec.channels, math.ceil(_HEADROOM * spec.size)), spec))


def header_size(source: str | Path | bytes) -> tuple[int, int] | None:
    """(height, width) as an image's header says, before orientation; None where nothing can be read from it."""
    try:
        with _open_file(source) as file, Image.open(file, formats=_formats()) as image:
            return image.height, image.width
    except Exception:  # as in _load; the decoder will give the reason
        return None


def _load(source: str | Path | bytes, channels: int, short_side: int | None) -> Upright:
    """An image, upright, of mode RGB or L. A JPEG may come smaller, with its short side at least `short_side`."""
    name = "image" if isinstance(source, bytes) else os.fspath(source)
    try:
        with _open_file(source) as file, Image.open(file, formats=_formats()) as image:
            _refuse_too_large(name, image, image.width * image.height, MAX_HEADER_PIXELS)
            size = image.size
            if image.info.get("progressive"):  # libjpeg then holds the whole image, at whatever fraction
                _refuse_too_large(name, image, image.width * image.height, MAX_PIXELS)
            box: tuple[float, ...] = (0, 0, *size)
            if short_side is not None and (drafted := image.draft(None, (short_side, short_side))) is not None:
                box = drafted[1]
            weight = _HEAVY_FORMATS.get(image.format or "", 1) * _HEAVY_MODES.get(image.mode, 1)
            cost = image.width * image.height * weight
            _refuse_too_large(name, image, cost, MAX_PIXELS)
            turn: AbstractContextManager = _one_large if cost > _LARGE else nullcontext()
            with turn:
                image.load()
                orientation = _orientation(image)
                if image.format == "TIFF":  # Pillow has turned it while loading
                    size, box = image.size, (0, 0, *image.size)
                upright = _turn(with_channels(_flatten(image), channels), size, box, orientation)
                return replace(upright, format=image.format or "")
    except UnreadableError:
        raise
    except (UnidentifiedImageError, SyntaxError):
        raise UnreadableError(name, _what_else(source)) from None
    except Image.DecompressionBombError:
        reason = f"too large: its header claims over {MAX_HEADER_PIXELS:,} pixels"
        raise UnreadableError(name, reason, kind="too-large") from None
    except MemoryError:
        raise UnreadableError(name, "needs more memory than there is", passing=True) from None
    except Exception as error:  # hostile files reach every kind of error in a decoder, and each of them means the same
        cut = (
            "truncated" if re.search("truncated|cut short|end of file|EOF", str(error), re.IGNORECASE) else "unreadable"
        )
        raise UnreadableError(name, _reason(error), passing=_is_passing(error), kind=cut) from error


@functools.cache
def _formats() -> tuple[str, ...]:
    """The formats of FORMATS that this build of Pillow knows."""
    Image.init()
    _quiet_libtiff()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _quiet_libtiff() -> None:
    """Keep libtiff, in C, from writing hundreds of lines about one bad file to stderr: Pillow has no switch for it.

    The library is the copy that Pillow has loaded already. Where it is not found, nothing changes.
    """
    packages = Path(PIL.__file__).parent
    bundled = [*packages.parent.glob("pillow.libs/libtiff*"), *packages.glob(".dylibs/libtiff*")]
    for name in [str(path) for path in bundled] or ["libtiff.so.6"]:
        try:
            library = ctypes.CDLL(name)
            for setter in (library.TIFFSetErrorHandler, library.TIFFSetWarningHandler):
                setter.argtypes, setter.restype = [ctypes.c_void_p], ctypes.c_void_p
                setter(None)
        except (OSError, AttributeError):
            continue


def _open_file(source: str | Path | bytes) -> BinaryIO:
    """The file, opened for reading. Never memory-mapped by Pillow: a file cut meanwhile would end the process."""
    if warnings.filters[:1] != [_NOT_OURS]:  # others may have reset the filters; catch_warnings is not for threads
        warnings.filterwarnings("ignore", module=r"PIL\.")
    if isinstance(source, bytes):
        if not source:
            raise UnreadableError("image", "empty", kind="empty")
        return io.BytesIO(source)
    name = os.fspath(source)
    try:
        found = Path(name).stat()
        if not stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            raise UnreadableError(name, "a folder" if stat.S_ISDIR(found.st_mode) else "not a file")
        if found.st_size == 0:
            raise UnreadableError(name, "empty file", kind="empty")
        if found.st_size > MAX_BYTES:
            reason = f"too large: {found.st_size:,} bytes (at most {MAX_BYTES:,})"
            raise UnreadableError(name, reason, kind="too-large")
        return open(name, "rb", buffering=1 << 16)  # noqa: PTH123 (buffering, and the caller closes it)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise UnreadableError(name, getattr(error, "strerror", None) or str(error), passing=True) from None


def _refuse_too_large(name: str, image: Image.Image, cost: int, limit: int) -> None:
    if cost > limit:
        what = f"{image.width} x {image.height} pixels in {image.format}"
        raise UnreadableError(name, f"too large: {what} need too much memory to decode", kind="too-large")


def _orientation(image: Image.Image) -> int:
    """The EXIF or XMP orientation, 1 to 8. Read after load(), since PNG may hold it behind the pixels."""
    if image.format == "TIFF":
        return 1  # Pillow has turned it while loading
    try:
        return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged metadata says nothing about the pixels
        return 1


def _turn(image: Image.Image, size: tuple[int, int], box: tuple[float, ...], orientation: int) -> Upright:
    """Apply an EXIF orientation to the pixels, the size, and the box that starts at 0, 0."""
    (width, height), (_, _, right, bottom) = size, box
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    if orientation >= 5:
        width, height, right, bottom = height, width, bottom, right
    left = image.width - right if orientation in (2, 3, 6, 7) else 0
    top = image.height - bottom if orientation in (3, 4, 7, 8) else 0
    return Upright(image, (width, height), (left, top, left + right, top + bottom))


def _flatten(image: Image.Image) -> Image.Image:
    """Any mode without its transparency and with 8 bits a channel."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:  # nearly all images
        return image
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bit(image))
    if not image.has_transparency_data:
        return image
    if image.mode in ("LA", "La"):
        image = image.convert("LA") if image.mode == "La" else image
        white = Image.new("L", image.size, 255)
        white.paste(image.getchannel("L"), mask=image.getchannel("A"))
        return white
    image = image if image.mode == "RGBA" else image.convert("RGBA")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _to_8_bit(image: Image.Image) -> np.ndarray:
    """(H, W) uint8 from modes I;16 (16-bit), I (32-bit integers) and F (floats).

    Where the file says how many bits it means, the upper eight are kept, as libpng does, so that 255 is white.
    Where it does not (32-bit integers, floats) the range is read off the pixels: [0, 1], [0, 255] and [0, 65535] are
    taken for what they look like, anything else is stretched from its minimum to its maximum.
    """
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        bits = (tags.get(258) or (16,))[0]  # BitsPerSample: 12 comes as 0..4095
        gray = (np.clip(values, 0, 65535) >> max(0, int(bits) - 8)).clip(0, 255).astype(np.uint8)
        gray = 255 - gray if tags.get(262) == 0 else gray  # PhotometricInterpretation: WhiteIsZero
        transparent = image.info.get("transparency")
        return np.where(values == transparent, np.uint8(255), gray) if isinstance(transparent, int) else gray
    finite = np.isfinite(values)
    values = np.where(finite, values, 0).astype(np.float32, copy=False)
    low, high = (float(values.min()), float(values.max())) if finite.any() else (0.0, 0.0)
    if low >= 0 and high <= 65535:
        top = next(top for top in ((1, 255, 65535) if image.mode == "F" else (255, 65535)) if high <= top)
        low, high = 0.0, float(top)
    return np.rint((values - low) * (255 / max(high - low, 1e-30))).clip(0, 255).astype(np.uint8)


def _what_else(source: str | Path | bytes) -> str:
    """Why nothing recognized a file, in words that help."""
    if isinstance(source, bytes):
        head = source[:16]
    else:
        with open(source, "rb") as file:  # noqa: PTH123
            head = file.read(16)
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypmsf1", b"ftyphevc"):
        return "HEIC is not read; convert it to JPEG"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")):
        return "damaged in its header, or of a kind that is not read (such as 12-bit or lossless JPEG)"
    if head.startswith((b"%PDF", b"%!PS", b"<svg", b"<?xml", b"<!DOCTYPE", b"<html")):
        return "a document, not an image"
    return "not an image, or of a kind that is not read"


def _is_passing(error: Exception) -> bool:
    """Whether the system failed and not the image."""
    return isinstance(error, OSError) and bool(error.errno)


def _reason(error: Exception) -> str:
    """What Pillow says, as one short line."""
    if isinstance(error, OSError) and error.errno:
        return f"could not be read: {error.strerror}"
    text = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return f"cut short or damaged ({text[:100]})"
