"""Content hashes: what an image is known again by, wherever it lies and whatever it is called."""

from __future__ import annotations

import hashlib
import stat

import numpy as np

from linnaeus.data import tree
from linnaeus.data.archives.archive import MemberError

HASH = "sha256/48"
"""The first 48 bits of SHA-256. An image that is not among a million others matches one of them with p = 4e-9."""
UNKNOWN = 0
"""The hash of an image that cannot be read."""


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
