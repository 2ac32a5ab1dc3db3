"""Find the folder of images in an archive, or recognize that it holds a dataset in another format."""

from __future__ import annotations

from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from linnaeus.data import tree
from linnaeus.data.archives.archive import is_archive, open_archive
from linnaeus.data.archives.compression import open_compressed
from linnaeus.data.archives.tar import ANY_LENGTH, members
from linnaeus.data.images.formats import IMAGE_SUFFIXES, LITTER
from linnaeus.data.readers.webdataset import is_shard
from linnaeus.data.table import SPLIT_NAMES
from linnaeus.errors import UserError

LOOKED_AT = 64
"""Files at the beginning of a tar that show what it holds; to see all of a compressed one, all of it is read."""
TABLES = (".csv", ".tsv", ".txt")


def holds_folder(path: Path) -> bool:
    """Whether a file is an archive of a folder of images: every zip, and a tar that is neither CIFAR nor a shard."""
    if not is_archive(path):
        return False
    if path.suffix.lower() == ".zip":
        return True
    # A tar with labels beside its images is a shard of WebDataset, read by another module.
    if path.suffix.lower() == ".tar" and is_shard(path):
        return False
    try:
        with open_compressed(path) as file:
            # The first names suffice: listing a compressed tar to its end would decompress all of it.
            files = (member for member in members(str(path), file, ANY_LENGTH) if not member.isdir())
            names = [PurePosixPath(member.name) for member in islice(files, LOOKED_AT)]
    except (OSError, UserError):
        return False  # the reader of CIFAR reports the damage
    return any(name.suffix.lower() in IMAGE_SUFFIXES for name in names)


def top_folder(path: Path) -> tuple[Path, list[str]]:
    """The folder in an archive that unpacking it would give, and lines on how it was understood.

    Where everything lies in one folder, as most programs pack it, it is that folder, unless it is a class or a split.
    Raises UserError if the archive cannot be read, or holds nothing.
    """
    archive = open_archive(str(path))
    place, notes = Path(archive.place), list(archive.notes)
    while True:
        entries = [entry for entry in tree.scan(place) if not entry.name.startswith(".") and entry.name not in LITTER]
        if not entries:
            raise UserError(f"{path}: holds no files; pack the folder again")
        only = entries[0]
        if len(entries) > 1 or not only.is_dir() or only.name.lower() in SPLIT_NAMES or not _is_parent(only):
            return place, notes
        place = Path(only.path)
        notes = [*archive.notes, f"{path.name}: the source is its folder {place.relative_to(archive.place)}"]


def _is_parent(entry: Any) -> bool:
    """Whether a folder holds folders or a table, and no images of its own."""
    inside = list(tree.scan(entry.path))
    suffixes = {Path(member.name).suffix.lower() for member in inside if not member.is_dir()}
    return suffixes.isdisjoint(IMAGE_SUFFIXES) and (
        any(member.is_dir() for member in inside) or bool(suffixes & {*TABLES})
    )
