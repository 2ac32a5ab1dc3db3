"""Image file formats: which ones this installation reads, and what to tell about a file that is none of them."""

from __future__ import annotations

import ctypes
import functools
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import PIL
from PIL import Image

from linnaeus.data import tree
from linnaeus.errors import install

FORMATS = ("JPEG", "PNG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM", "TGA")
"""Supported formats, as Pillow names them. Formats whose decoder runs a program (EPS, PDF, WMF) are excluded."""

_SUFFIXES = """.jpg .jpeg .jpe .jfif .mpo .png .apng .gif .bmp .tif .tiff .webp .avif .jp2 .j2k .j2c .jpc .jpf .jpx
.ppm .pgm .pbm .pnm .pfm .tga .heic .heif"""  # HEIC is listed so that it is reported where its extra is missing
IMAGE_SUFFIXES = frozenset(_SUFFIXES.split())

LITTER = frozenset(("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"))
"""Folders that operating systems create beside those of the user."""

HEIC = f"HEIC needs `{install('heic')}`; or convert it: magick mogrify -format jpg *.heic"
AVIF = "AVIF needs Pillow 11.3 or newer: pip install -U pillow; or convert it: magick mogrify -format jpg *.avif"
HEIC_BRANDS = tuple(b"ftyp" + brand for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"))
INSTALLABLE = (HEIC, AVIF)  # reasons that an installation removes: the same file may be read the next time


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats of FORMATS that this build of Pillow knows."""
    Image.init()
    _quiet_libtiff()
    with suppress(ImportError):  # the extra `heic`, a decoder in a library
        import_module("pi_heif").register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _quiet_libtiff() -> None:
    """Stop libtiff, a C library, from writing hundreds of lines to stderr about one damaged file.

    Pillow has no option for this. The handlers are set in the copy of libtiff that Pillow has already loaded; if it is
    not found, nothing changes.
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


def what_else(source: str | Path | bytes) -> str:
    """Why no decoder recognized the file, guessed from its first bytes."""
    if isinstance(source, bytes):
        head = source[:32]
    else:
        with tree.open_binary(source) as file:
            head = file.read(32)
    # ISO media files carry their brand after the box size: `....ftypheic`.
    brand, known = head[4:12], formats()
    if brand in HEIC_BRANDS and "HEIF" not in known:
        return HEIC
    if brand in (b"ftypavif", b"ftypavis") and "AVIF" not in known:
        return AVIF
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image itself; run `git lfs pull` in its repository"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"II*\0", b"MM\0*", b"RIFF")) or brand in HEIC_BRANDS:
        return "its header is damaged, or its format is not supported (such as 12-bit or lossless JPEG)"
    if head.startswith((b"%PDF", b"%!PS", b"<svg", b"<?xml", b"<!DOCTYPE", b"<html")):
        return "a document, not an image"
    return "not an image, or in an unsupported format"
