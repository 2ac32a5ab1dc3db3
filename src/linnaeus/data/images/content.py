"""Content hashes: recognize an image independently of its path and name."""

from __future__ import annotations

import base64
import hashlib
import stat

import numpy as np

from linnaeus.data import tree
from linnaeus.data.archives.archive import MemberError

HASH = "sha256/48"
"""The first 48 bits of SHA-256. An image that is not among a million others matches one of them with p = 4e-9."""
UNKNOWN = 0  # the hash of an image that cannot be read


def hashes_to_text(hashes: np.ndarray) -> str:
    """Content hashes (k,) uint64 for a model file: 48 bits each, in base64."""
    return base64.b64encode(hashes.astype(">u8").view(np.uint8).reshape(-1, 8)[:, 2:].tobytes()).decode()


def hashes_from_text(text: str) -> np.ndarray:
    """The inverse, (k,) uint64 in ascending order. Raises ValueError or TypeError for anything else."""
    raw = np.frombuffer(base64.b64decode(text, validate=True), np.uint8).reshape(-1, 6)
    wide = np.zeros((len(raw), 8), np.uint8)
    wide[:, 2:] = raw
    return np.sort(wide.reshape(-1).view(">u8").astype(np.uint64))


def pixel_hash(pixels: np.ndarray) -> int:
    """The content hash of decoded pixels (h, w[, C]) uint8 as an array: of gray pixels with one channel."""
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    return content_hash(pixels)


def content_hash(source: str | bytes | np.ndarray) -> int:
    """A hash of the bytes of an image file, or of the pixels of an array: 1 to 2^48 - 1, or UNKNOWN.

    For a file it is the beginning of what `sha256sum` prints.
    """
    if isinstance(source, np.ndarray):
        digest = hashlib.sha256(np.ascontiguousarray(source).data)
    elif isinstance(source, bytes):
        digest = hashlib.sha256(source)
    else:
        try:
            if not stat.S_ISREG(tree.stat(source).st_mode):  # reading a pipe would block forever
                return UNKNOWN
            with tree.open_binary(source) as file:
                digest = hashlib.file_digest(file, "sha256")
        except (OSError, ValueError, MemberError):
            return UNKNOWN
    # Zero means unknown, so a hash that happens to be 0 becomes 1.
    return int.from_bytes(digest.digest()[:6], "big") or 1
