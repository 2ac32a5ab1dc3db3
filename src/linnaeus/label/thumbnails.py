"""Thumbnails of the images of a folder: made when the page asks for one, a bounded number of bytes kept in memory."""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.data.images.encode import to_pillow

SIDES = (160, 640, 1600)
"""Lengths of the short side in pixels: in a grid, as a question, zoomed in. An image is not enlarged."""

KEPT_BYTES = 64 << 20
QUALITY = 82


@dataclass
class Thumbnails:
    """JPEG files of the images of a folder."""

    folder: Path
    paths: Sequence[str]
    _kept: OrderedDict[tuple[int, int], bytes] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def get(self, image: int, side: int) -> bytes:
        """An image with a short side of at most the smallest of SIDES that is `side` or more.

        Raises UnreadableError if it cannot be decoded.
        """
        side = next((s for s in SIDES if s >= side), SIDES[-1])
        with self._mutex:
            if (image, side) in self._kept:
                self._kept.move_to_end((image, side))
                return self._kept[image, side]
        # Decoded outside the lock, so that several images load at once.
        row = load_row(str(self.folder / self.paths[image]), RowSpec(side, "crop", "bilinear", 3))
        data = _encode(to_pillow(row))
        with self._mutex:
            self._kept[image, side] = data
            self._bytes += len(data)
            # The least recently used images make room.
            while self._bytes > KEPT_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return data


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()
