"""Count the color images that become gray because the model sees only gray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import numpy as np
from PIL import Image

from linnaeus.errors import UnreadableError

CELLS = 32  # an image is classified by the mean color of this many cells per side: noise and JPEG leave gray means
SPREAD, SHARE = 16, 0.02  # a cell is colored if its channels differ by more; an image, if this share of its cells is
SAMPLE = 64  # images of an evaluation that are looked at again for their color

_watching: ContextVar[list[bool] | None] = ContextVar("_watching", default=None)


class DiscardedColor:
    """Decodes images and counts those whose color was discarded. Can be used by several threads."""

    def __init__(self, load: Callable[[Any], np.ndarray]):
        self._load, self._lock = load, threading.Lock()
        self.decoded = self.in_color = 0

    def load(self, source: Any, was_in_color: bool = False) -> np.ndarray:
        """The decoded image. `was_in_color`: of a source that has become gray already."""
        with watch() as seen:
            image = self._load(source)
        with self._lock:
            self.decoded += 1
            self.in_color += was_in_color or any(seen)
        return image

    def sample(self, n: int, source: Callable[[int], Any]) -> None:
        """Decode up to SAMPLE of n images, evenly spread, for their colors; `source` gives image k."""
        for k in np.unique(np.linspace(0, n - 1, SAMPLE).round().astype(int)).tolist():
            with suppress(UnreadableError):  # changed since it was decoded
                self.load(source(k))

    def take_line(self) -> str:
        """A warning with the number of images in color since the last call; empty if there are none."""
        with self._lock:
            n, of = self.in_color, self.decoded
            self.decoded = self.in_color = 0
        if not n:
            return ""
        images = "image is" if of == 1 else "images are"
        return f"{n:,} of {of:,} {images} in color, but the model sees only gray; it may be made for other images"


@contextmanager
def watch() -> Iterator[list[bool]]:
    """While the context is open, each RGB image that this thread turns gray appends whether it is in color."""
    seen: list[bool] = []
    token = _watching.set(seen)
    try:
        yield seen
    finally:
        _watching.reset(token)


def note(image: Image.Image) -> None:
    """Called with each RGB image that becomes gray. Free unless somebody watches."""
    seen = _watching.get()
    if seen is not None:
        seen.append(is_colored(image))


def is_colored(image: Image.Image) -> bool:
    """Whether an RGB image shows colors, and not only gray in three channels."""
    cells = np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX)).astype(np.int16)
    return bool(((cells.max(2) - cells.min(2)) > SPREAD).mean() > SHARE)
