"""What a download is to bring, and whether it did: by size and checksum, else by the format of the file itself."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from linnaeus.data.archives.compression import DAMAGE, FORMATS, open_compressed

BLOCK = 512  # bytes of a tar archive, which ends with blocks of zeros
IMAGES = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
MAX_HEADER = 100_000_000  # bytes, of a safetensors file


@dataclass(frozen=True)
class Wanted:
    """What is to arrive."""

    destination: Path
    sha256: str | None
    md5: str | None
    size: int | None
    bearer: tuple[str, str] | None = None
    """(address, token): what is sent to that address, and to no other host it redirects to."""

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is known by which the end of the file could be recognized."""
        return self.sha256 is self.md5 is self.size is None

    def fault(self, path: Path) -> str | None:
        """What is wrong with the file at `path`; None if it is what was published."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"{size} bytes instead of {self.size}"
        for name, expected in (("sha256", self.sha256), ("md5", self.md5)):
            if expected is not None:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, name).hexdigest()
                if not digest.startswith(expected.lower()):
                    return f"{name} {digest} instead of {expected}"
        return None


def is_cut_short(path: Path) -> bool:
    """Whether a file lacks its end; False also for a format that cannot tell, such as text.

    Archives, Parquet and safetensors files are known by their ends. Compressed files and images are read whole.
    """
    with path.open("rb") as file:
        head = file.read(BLOCK)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - BLOCK))
        tail = file.read()
    if head[:2] == b"PK":
        return not zipfile.is_zipfile(path)
    if head[:4] == b"PAR1":
        return size < 12 or tail[-4:] != b"PAR1"
    if head[257:262] == b"ustar":
        return size % BLOCK != 0 or any(tail)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
        return size < _end_of_safetensors(path)
    try:
        if head.startswith(tuple(FORMATS)):
            with open_compressed(path) as unpacked:
                while unpacked.read(1 << 20):
                    pass
        _read_image(path)
    except (*DAMAGE, SyntaxError):
        return True
    return False


def _end_of_safetensors(path: Path) -> int:
    """The number of bytes that the header of a safetensors file states, or those of a header that is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        text = file.read(length)
    if len(text) < length:
        return 8 + length
    try:
        ends = [int(entry["data_offsets"][1]) for name, entry in json.loads(text).items() if name != "__metadata__"]
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        ends = []  # whoever reads the file says what is wrong with it
    return 8 + length + max(ends, default=0)


def _read_image(path: Path) -> None:
    """Decode a file that is an image. Raises OSError, SyntaxError or ValueError where it ends early."""
    try:
        with Image.open(path, formats=IMAGES) as image:
            image.load()
    except (UnidentifiedImageError, Image.DecompressionBombError):
        pass
