"""Find the file that a listed path most likely means, for the message that the path does not exist."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress

from linnaeus.data import tree
from linnaeus.data.images.formats import IMAGE_SUFFIXES

MOST_FOLDERS = 2000  # folders that are looked through: enough for a folder per class, and seconds on a network drive


def namesake(text: str, folder: str) -> str | None:
    """The path, relative to `folder`, of an image below it with the name of `text`; None if there is none.

    A name in other case or with another suffix counts too, after the exact one.
    """
    name = text.replace("\\", "/").rsplit("/", 1)[-1].casefold()
    known = os.path.splitext(name)[1] in IMAGE_SUFFIXES
    stem = os.path.splitext(name)[0] if known else name
    similar = None
    waiting = deque([folder])
    for _ in range(MOST_FOLDERS):
        if not waiting:
            break
        place = waiting.popleft()
        with suppress(OSError):
            for entry in tree.scan(place):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                    continue
                other, suffix = os.path.splitext(entry.name.casefold())
                if other == stem and suffix in IMAGE_SUFFIXES:
                    path = os.path.relpath(entry.path, folder)
                    if entry.name.casefold() == name:
                        return path
                    similar = similar or path
    return similar
