"""Decompress a tar into the cache, once: a compressed tar can only be read from front to back."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from linnaeus.console import Console
from linnaeus.environment import cache_dir
from linnaeus.errors import DiskError, UserError
from linnaeus.files import atomic, locked, write_text

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
FOLDER = "archives"  # in the cache
PIECE = 1 << 20  # bytes
RATIO = 200
"""Bytes per compressed byte; the same limit as for a zip."""
FREELY = 64 << 20  # bytes that any archive may have
RESERVE = 1 << 30  # bytes of the disk that stay free


def unpacked(place: str) -> str:
    """Path of the tar in the cache that a compressed tar decompresses to. Its name is the hash of the compressed bytes.

    Several processes that need it wait for the first. Raises UserError where the archive is damaged or decompresses to
    more than RATIO times its size, and DiskError where the disk has no room.
    """
    folder = cache_dir() / FOLDER
    status = Path(place).stat()
    stamp = hashlib.sha256(json.dumps([place, status.st_size, status.st_mtime_ns]).encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / f"{stamp}.lock"):
        known = folder / f"{stamp}.json"
        try:
            key, size = json.loads(known.read_text(encoding="utf-8"))
            tar = folder / f"{key}.tar"
            if tar.stat().st_size == size:
                os.utime(known)
                return str(tar)
        except (OSError, ValueError, TypeError):
            pass
        with open(place, "rb") as file:  # noqa: PTH123
            key = hashlib.file_digest(file, "sha256").hexdigest()[:32]
        tar = folder / f"{key}.tar"
        if not tar.is_file():
            Console().say(f"{place}: decompressing into the cache, since a compressed tar cannot be read at random")
            with atomic(tar) as temporary:
                _decompress(place, temporary, status.st_size)
        write_text(known, json.dumps([key, tar.stat().st_size]))
    return str(tar)


def _decompress(place: str, target: Path, packed: int) -> None:
    limit = max(FREELY, RATIO * packed)
    room = shutil.disk_usage(target.parent).free - RESERVE
    written = 0
    try:
        with opened(place) as source, target.open("wb") as file:
            while piece := source.read(PIECE):
                written += len(piece)
                if written > limit:
                    raise UserError(
                        f"{place}: decompresses to over {limit:,} bytes, {RATIO} times its own, as a bomb does; unpack "
                        "it yourself, and give the folder"
                    )
                if written > room:
                    raise DiskError(
                        f"{place}: decompressed it needs over {written:,} bytes, and {target.parents[1]} has no room "
                        "for them; free some, or set LINNAEUS_CACHE to a folder on another disk"
                    )
                file.write(piece)
    except (gzip.BadGzipFile, EOFError, lzma.LZMAError, zlib.error, ValueError) as error:
        raise _damaged(place, error) from None
    except OSError as error:
        if error.errno is None:  # of bz2, for damaged bytes
            raise _damaged(place, error) from None
        raise


def _damaged(place: str, error: Exception) -> UserError:
    return UserError(f"{place}: not a readable tar archive ({error}); download it again, or write it again")


def opened(place: str) -> Any:
    """The decompressed bytes as a file, by the first bytes of the archive and not by its name."""
    file: BinaryIO = open(place, "rb")  # noqa: PTH123, SIM115 - the caller closes it
    head = file.read(6)
    file.close()
    if head[:3] == b"BZh":
        return bz2.open(place, "rb")
    if head == b"\xfd7zXZ\0":
        return lzma.open(place, "rb")
    return gzip.open(place, "rb") if head[:2] == b"\x1f\x8b" else open(place, "rb")  # noqa: PTH123
