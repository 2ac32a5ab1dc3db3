"""The IMAGE arguments of commands: files, folders, globs, and `-` for paths on standard input."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from linnaeus.data import tree
from linnaeus.data.archives.archive import find, is_archive
from linnaeus.data.class_names import natural_key
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.images.formats import LITTER
from linnaeus.errors import UserError, not_read


def expand(images: Iterable[str], lines: Iterable[str] = ()) -> Iterator[str]:
    """Expand IMAGE arguments into paths: files, folders and archives (all images below, in natural order), globs, `-`
    for `lines`.

    Raises UserError for a folder without images and for a glob without matches. A missing file is passed on: it is
    reported as unreadable in its turn and does not stop the others.
    """
    for image in images:
        if image == "-":
            yield from (line.rstrip("\r\n") for line in lines if line.strip())
        elif tree.is_folder(image) or is_archive(image):
            is_empty = True
            for path in _walk(Path(image)):
                is_empty = False
                yield path
            if is_empty:
                raise UserError(f"{image}: no images in this folder, such as .jpg, .png or .webp files; check the path")
        elif glob.has_magic(image) and not Path(image).exists():
            # A file may be called `a[1].jpg`, so an existing path is never a pattern.
            matches = sorted(glob.glob(image, recursive=True), key=natural_key)  # noqa: PTH207 - takes absolute patterns too
            if not matches:
                raise UserError(f"{image}: no file matches this pattern; check it, and quote it against the shell")
            yield from (match for match in matches if not Path(match).is_dir())
        else:
            yield image


def is_missing(image: str) -> bool:
    """Whether an IMAGE argument names a single file that does not exist, also not in an archive."""
    is_file = image != "-" and not glob.has_magic(image) and find(image) is None
    return is_file and not os.path.lexists(image)


def _walk(folder: Path) -> Iterator[str]:
    """Images below `folder`, folder by folder, in natural order, without hidden files and folders."""
    try:
        entries = tree.scan(folder)
    except OSError as error:
        raise not_read(folder, error) from None
    visible = sorted(
        (entry for entry in entries if not entry.name.startswith(".") and entry.name not in LITTER),
        key=lambda e: natural_key(e.name),
    )
    # Files before folders, so that the order does not depend on how the folders are called.
    for entry in visible:
        if entry.is_file() and Path(entry.name).suffix.lower() in IMAGE_SUFFIXES:
            yield entry.path
    for entry in visible:
        # Links to folders are not followed: they may lead back up.
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(Path(entry.path))
