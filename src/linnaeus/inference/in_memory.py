"""Images that a caller holds in memory: Pillow images, arrays, tensors, bytes and open files."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from linnaeus.data import tree
from linnaeus.data.archives.archive import is_archive
from linnaeus.data.images.decode import MAX_PIXELS, UnreadableError
from linnaeus.data.images.modes import flatten
from linnaeus.data.masked import refuse_masked
from linnaeus.errors import UserError
from linnaeus.inference.inputs import expand

ACCEPTED = "a path, bytes, an open binary file, a Pillow image, an array (H, W[, C]) or a tensor ([C, ]H, W)"
CHANNELS = (1, 2, 3, 4)  # gray, gray with alpha, RGB, RGB with alpha


def readable(image: Any, name: str, bits: int = 16) -> str | Path | bytes | np.ndarray:
    """What `load_row` takes: a path, the bytes of a file, or pixels (H, W[, 3]) uint8.

    `name` says which image it is in errors; `bits` is the range of gray levels above 8 bits. Raises UserError, naming
    type or values, for anything that is not an image, and UnreadableError for a file or Pillow image that cannot be
    decoded.
    """
    if isinstance(image, str | bytes):
        return image
    if isinstance(image, os.PathLike):
        return Path(image)
    if isinstance(image, bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Image.Image):
        return _of_pillow(image, name, bits)
    if isinstance(image, torch.Tensor):
        pixels = image.detach().cpu()
        # NumPy has no bfloat16.
        pixels = pixels.float() if pixels.dtype in (torch.bfloat16, torch.float16) else pixels
        return _of_array(_channels_last(pixels.numpy(), name), name, bits)
    if isinstance(image, np.ndarray):
        return _of_array(image, name, bits)
    # Any object with read(): files, uploads, responses.
    if callable(getattr(image, "read", None)):
        if callable(getattr(image, "seekable", None)) and image.seekable():
            image.seek(0)  # as Pillow does, so that a file can be given twice
        # Reading a text file would fail where the bytes of the image are no text.
        content = "" if isinstance(image, io.TextIOBase) else image.read()
        if isinstance(content, bytes):
            return content
        raise UserError(f"{name}: a file opened as text; open it in binary mode ('rb')")
    raise UserError(f"{name}: {type(image).__name__} is not an image; give {ACCEPTED}")


def is_several(images: Any) -> bool:
    """Whether the argument of `predict` is several images: a sequence, a batch (N, …), or an array of paths."""
    if isinstance(images, np.ndarray):
        return images.ndim == 4 or images.dtype.kind in "OU"
    if isinstance(images, torch.Tensor):
        return images.ndim == 4
    if isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image | dict | set | frozenset):
        return False
    if type(images).__name__ == "DataFrame":  # iterating over it would give the names of its columns
        raise UserError("predict: a DataFrame is not a list of images; give its column of paths, such as frame['path']")
    return hasattr(images, "__iter__") and not callable(getattr(images, "read", None))


def _of_pillow(image: Image.Image, name: str, bits: int) -> np.ndarray:
    """The pixels of a Pillow image of any mode, upright."""
    if image.width * image.height > MAX_PIXELS:
        raise UnreadableError(name, f"too large: {image.width} x {image.height} pixels", kind="too-large")
    try:
        return np.asarray(_plain(flatten(ImageOps.exif_transpose(image), bits)))
    except Exception as error:  # Pillow decodes when the pixels are needed, and a damaged file can raise anything
        raise UnreadableError(name, f"cannot be decoded ({' '.join(str(error).split())[:120]})") from error


def _plain(image: Image.Image) -> Image.Image:
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")


def _channels_last(pixels: np.ndarray, name: str) -> np.ndarray:
    """(C, H, W), as tensors have it, -> (H, W, C); (H, W) stays."""
    if pixels.ndim == 2:
        return pixels
    if pixels.ndim != 3 or pixels.shape[0] not in CHANNELS:
        hint = ""
        if pixels.ndim == 3 and pixels.shape[2] in CHANNELS:
            hint = "; the channels come last, so move them: tensor.permute(2, 0, 1)"
        raise UserError(
            f"{name}: a tensor of shape {pixels.shape}; give (C, H, W) with 1 to 4 channels, or (H, W){hint}"
        )
    return np.moveaxis(pixels, 0, -1)


def _of_array(pixels: np.ndarray, name: str, bits: int) -> np.ndarray:
    """Pixels of any stride and type, (H, W[, C]), as uint8 (H, W[, 3])."""
    refuse_masked(pixels, name)
    if pixels.ndim not in (2, 3) or not pixels.size or (pixels.ndim == 3 and pixels.shape[2] not in CHANNELS):
        hint = ""
        if pixels.ndim == 3 and pixels.shape[0] in CHANNELS:
            hint = "; the channels come first, so move them: array.transpose(1, 2, 0)"
        raise UserError(
            f"{name}: an array of shape {pixels.shape}; give (H, W) or (H, W, C) with 1 to 4 channels{hint}"
        )
    pixels = np.ascontiguousarray(_eight_bits(pixels, name))
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):  # with alpha, composited as in a file
        return _of_pillow(Image.fromarray(pixels, "LA" if pixels.shape[2] == 2 else "RGBA"), name, bits)
    return pixels


def _eight_bits(pixels: np.ndarray, name: str) -> np.ndarray:
    """Values as uint8. Floats are on the scale 0..1; other scales are refused: a guess would change the image."""
    if pixels.dtype == np.uint8:
        return pixels
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.dtype.kind not in "iuf":
        raise UserError(f"{name}: an array of {pixels.dtype}; give uint8, or float in 0 to 1")
    low, high = float(pixels.min()), float(pixels.max())
    # Integers other than uint8 must already be in 0..255; wider ranges have no agreed scale.
    most = 1.0 if pixels.dtype.kind == "f" else 255.0
    if not (low >= 0 and high <= most):  # NaN fails both
        raise UserError(
            f"{name}: {pixels.dtype} values from {low:g} to {high:g}; give uint8, or float in 0 to 1 before any "
            "normalization"
        )
    return np.rint(pixels * 255).astype(np.uint8) if most == 1 else pixels.astype(np.uint8)


def failed(error: UnreadableError) -> Future[np.ndarray]:
    """The result of a conversion that has failed already."""
    future: Future[np.ndarray] = Future()
    future.set_exception(error)
    return future


def is_folder(image: Any) -> bool:
    """Whether an image is named by a folder or an archive, which stands for the images in it."""
    return isinstance(image, str | os.PathLike) and (tree.is_folder(image) or is_archive(image))


def expanded(images: Iterable[Any]) -> Iterator[Any]:
    """The images, with those below a folder in its place. Raises UserError for a folder without images."""
    for image in images:
        if is_folder(image):
            yield from expand([os.fspath(image)])
        else:
            yield image
