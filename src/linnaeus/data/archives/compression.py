"""Open compressed files by their first bytes, whatever their name says, and tell damaged bytes from a failing disk."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

FORMATS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
"""How a compressed file begins -> what opens it."""
DAMAGE = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)
"""What these raise, while they read, for damaged or missing bytes. An OSError with `errno` is of the file system."""


def open_compressed(path: Path | str) -> Any:
    """The decompressed bytes of a file, or its own bytes if it is in none of FORMATS, as a binary file to read."""
    with open(path, "rb") as file:
        head = file.read(8)
    for start, opener in FORMATS.items():
        if head.startswith(start):
            return opener(path, "rb")
    return open(path, "rb")
