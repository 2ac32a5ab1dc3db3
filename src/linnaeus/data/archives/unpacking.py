"""Decompress a tar into the cache, once: a compressed tar can only be read from front to back."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import BinaryIO

from linnaeus.cache import Cache, Entry, OverBudgetError, default_cache
from linnaeus.console import Console
from linnaeus.data.archives.compression import DAMAGE, open_compressed
from linnaeus.data.archives.tar import unreadable
from linnaeus.errors import UserError

COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
COPY = "data.tar"  # the file of an entry
CHUNK = 1 << 20  # bytes
STEP = 64 << 20  # bytes for which the cache makes room at a time
RATIO = 200  # bytes per compressed byte; the same limit as for a zip
FREELY = 64 << 20  # bytes that any archive may have


def unpacked(place: str) -> BinaryIO:
    """The tar that a compressed tar decompresses to, an entry of the cache named by the hash of the compressed bytes.

    It is open, since the cache may evict the entry later. Several processes that need it wait for the first. Raises
    UserError if the archive is damaged, decompresses to more than RATIO times its size, or has no room.
    """
    cache = default_cache()
    with open(place, "rb") as file:
        name = f"archive-{hashlib.file_digest(file, 'sha256').hexdigest()[:32]}"
    with cache.lock(name):
        entry = cache.find(name)
        if entry is None:
            Console().say(f"{place}: decompressing into the cache, because a compressed tar has no random access")
            with cache.building(name) as folder:
                _decompress(place, folder / COPY, cache, name)
            entry = cache.commit(name, {"archive": place})
        return (entry.path / COPY).open("rb")


def discard(copy: str) -> None:
    """Remove the copy of an archive that cannot be read as one."""
    folder = Path(copy).parent
    default_cache().remove(Entry(folder.name, folder, 0, 0.0, {}))


def _decompress(place: str, target: Path, cache: Cache, name: str) -> None:
    limit = max(FREELY, RATIO * Path(place).stat().st_size)
    written = room = 0
    try:
        with open_compressed(place) as source, target.open("wb") as file:
            while chunk := source.read(CHUNK):
                written += len(chunk)
                if written > limit:
                    raise UserError(
                        f"{place}: decompresses to over {limit:,} bytes, {RATIO} times its size, like a decompression "
                        "bomb; unpack it yourself, and give the folder"
                    )
                # Room is made step by step, because the size is unknown until the end.
                if written > room:
                    cache.room(name, STEP)
                    room += STEP
                file.write(chunk)
    except OverBudgetError as error:
        raise UserError(
            f"{place}: its decompressed copy does not fit into the cache ({error}); raise LINNAEUS_CACHE_GB, or "
            "unpack it yourself, and give the folder"
        ) from None
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise unreadable(place, error) from None
