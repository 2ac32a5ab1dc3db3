"""One look at every image: all that the check needs of it, in about a kilobyte.

Images are decoded once, by threads, and forgotten; what is kept of each is a row of `LOOK`, in the cache, so that a
second check, or a training after it, opens only what is new or has changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from linnaeus.check.hashing import WINDOWS, difference_hashes
from linnaeus.data.decode import DECODE_VERSION, FORMATS, RowSpec, UnreadableError, inspect
from linnaeus.data.resize import with_channels
from linnaeus.data.table import Table
from linnaeus.device import available_cores
from linnaeus.stores.cache import Cache, OverBudgetError
from linnaeus.stores.decoding import Decoding, Progress, in_order
from linnaeus.stores.pixels import lookup

VERSION = 1
SIDE = 32  # pixels of the thumbnail by which images are compared
SHORT = 256  # pixels of the short side at which sharpness is measured; smaller images are not enlarged
TILES = 8  # a side: an image is as sharp as its sharpest parts, for a soft background is no fault
LOOKS, FAILED = "looks.npy", "failed.json"

LOOK = np.dtype(
    [
        ("signature", "<u8"),  # by which the image is known again; 0 fits none
        ("height", "<i4"),  # of the whole image, upright; 0 where it could not be read
        ("width", "<i4"),
        ("format", "u1"),  # an index into FORMATS, or 255 where the source holds arrays
        ("digest", "<u8", (2,)),  # of the decoded pixels and their size
        ("windows", "<u8", (len(WINDOWS),)),  # difference hashes
        ("mirror", "<u8"),  # that of the whole image, mirrored
        ("low", "<f4"),  # 1st and 99th percentile of the gray levels, 0..255
        ("high", "<f4"),
        ("range", "<f4"),  # between those percentiles, of the color that has the most of it
        ("sharpness", "<f4"),  # root mean square of the Laplacian in the sharpest parts, in gray levels
        ("tint", "<f4", (3,)),  # shares of red, green and blue in all its light
        ("gray", "u1", (SIDE, SIDE)),  # the image squashed to a square
    ]
)
LIGHT = np.dtype([(name, LOOK[name]) for name in LOOK.names or () if name != "gray"])
"""A look without its thumbnail, which is most of it."""


@dataclass(frozen=True)
class Failure:
    """Why an image could not be read."""

    kind: str
    """As in UnreadableError"""
    reason: str


class Stored:
    """Looks in a file: mapped for a moment each time, since a page that was read counts as memory until it is unmapped.

    The file stays open, so that it may be removed from the cache meanwhile.
    """

    def __init__(self, path: Path):
        """Raises OSError or ValueError where it does not hold looks."""
        mapped = np.load(path, mmap_mode="r")
        if mapped.dtype != LOOK or mapped.ndim != 1:
            raise ValueError(f"{path}: {mapped.dtype}")
        self.length, self.offset = len(mapped), getattr(mapped, "offset", 0)
        self.file = path.open("rb")

    def whole(self) -> np.ndarray:
        """(n,) of LOOK, memory-mapped."""
        if not self.length:
            return np.zeros(0, LOOK)
        return np.memmap(self.file, LOOK, "r", self.offset, (self.length,))

    def light(self) -> np.ndarray:
        """(n,) of LIGHT, in memory."""
        rows = np.empty(self.length, LIGHT)
        for first in range(0, self.length, 4096):
            rows[first : first + 4096] = self.whole()[first : first + 4096][list(LIGHT.names or ())]
        return rows


@dataclass(frozen=True)
class Looks:
    """What was seen of the n images of a table."""

    rows: np.ndarray
    """(n,) of LOOK, or of LIGHT where the thumbnails are left on the disk"""
    failed: Mapping[int, Failure]
    stored: Stored | None = None
    """Where the thumbnails are left"""

    def __len__(self) -> int:
        return len(self.rows)

    def whole(self) -> np.ndarray:
        """(n,) of LOOK, perhaps memory-mapped."""
        return self.rows if self.stored is None else self.stored.whole()

    def thumbnails(self, chosen: np.ndarray) -> np.ndarray:
        """(k, SIDE, SIDE) uint8 of k samples."""
        return self.whole()["gray"][chosen]

    @property
    def readable(self) -> np.ndarray:
        """(k,) int64: the samples that could be read."""
        return np.flatnonzero(self.rows["height"] > 0)


def look(table: Table, *, cache: Cache | None, progress: Progress | None = None) -> Looks:
    """Look at every image of `table`, or remember what was seen of it. Raises UserError where the disk is full."""
    everything = np.arange(len(table))
    decoding = Decoding(table, everything, RowSpec(SHORT), available_cores(), progress)
    signatures = decoding.signatures(False)
    if cache is None:
        return _look(decoding, signatures, None)
    key = hashlib.sha256(f"{VERSION} {DECODE_VERSION}".encode() + signatures.tobytes()).hexdigest()[:32]
    name = f"looks-{key}"
    with cache.lock(name):
        found = cache.find(name)
        known = _read(found.path) if found is not None else _best_known(cache, signatures)
        if found is not None and known is not None and (known.rows["signature"] == signatures).all():
            return known
        looks = _look(decoding, signatures, known)
        try:
            cache.room(name, looks.rows.nbytes)
            with cache.building(name) as folder:
                np.save(folder / LOOKS, looks.rows)
                failed = {i: [failure.kind, failure.reason] for i, failure in looks.failed.items()}
                (folder / FAILED).write_text(json.dumps(failed), encoding="utf-8")
                cache.commit(name, {"form": ["looks", VERSION, DECODE_VERSION], "rows": len(table)})
            kept = cache.find(name)
            return looks if kept is None else _read(kept.path) or looks
        except OverBudgetError:
            pass  # what was seen is in memory, and will be looked at anew next time
    return looks


def _look(decoding: Decoding, signatures: np.ndarray, known: Looks | None) -> Looks:
    rows = np.zeros(len(signatures), LOOK)
    failed: dict[int, Failure] = {}
    at = lookup(known.rows["signature"], signatures) if known is not None else np.full(len(signatures), -1)
    before = rows if known is None else known.whole()

    def see(k: int) -> np.ndarray | Failure | UnreadableError:
        if known is not None and at[k] >= 0:
            return known.failed.get(int(at[k]), before[at[k]])
        source = decoding.source(k)
        try:
            return measure(source) if isinstance(source, np.ndarray) else look_at(source)
        except UnreadableError as error:
            return error.with_traceback(None)  # which would keep the image's memory

    for k, seen in enumerate(in_order(see, 0, len(rows), decoding.threads, decoding.progress)):
        if isinstance(seen, np.ndarray | np.void):
            rows[k] = seen
        else:
            failed[k] = seen if isinstance(seen, Failure) else Failure(seen.kind, seen.reason)
        passing = isinstance(seen, UnreadableError) and seen.passing
        rows["signature"][k] = 0 if passing else signatures[k]
    return Looks(rows, failed)


def look_at(path: str | bytes) -> np.ndarray:
    """A row of LOOK from a file. Raises UnreadableError.

    A large JPEG is decoded at a fraction at which its short side has 512 pixels or more; for the digest that makes no
    difference between files that hold the same image.
    """
    seen = inspect(path, at_least=SHORT)
    return measure(seen.pixels, seen.size, seen.format)


def measure(picture: np.ndarray, size: tuple[int, int] | None = None, form: str | None = None) -> np.ndarray:
    """(h, w[, C]) uint8 -> a row of LOOK, () in shape. `size` is (height, width) where the image came reduced."""
    size = size or picture.shape[:2]
    row = np.zeros((), LOOK)
    row["height"], row["width"] = size
    row["format"] = 255 if form is None else FORMATS.index(form)
    digest = hashlib.sha256(f"{size} {picture.shape}".encode())
    digest.update(np.ascontiguousarray(picture).data)
    row["digest"] = np.frombuffer(digest.digest()[:16], "<u8")
    image = Image.fromarray(picture[:, :, 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture)
    colors = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
    low, high = _extremes(colors.reshape(SIDE * SIDE, -1))
    row["range"] = (high - low).max()
    light = colors.reshape(SIDE * SIDE, -1).mean(axis=0) + 1.0
    row["tint"] = light / light.sum() if len(light) == 3 else 1 / 3
    gray = with_channels(image, 1)
    scale = SHORT / min(gray.size)
    if scale < 1:
        gray = gray.resize((round(gray.width * scale), round(gray.height * scale)), Image.Resampling.BILINEAR)
    row["sharpness"] = sharpness(np.asarray(gray))
    row["windows"], row["mirror"] = difference_hashes(gray)
    row["gray"] = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    row["low"], row["high"] = _extremes(row["gray"].reshape(-1, 1))
    return row


def _extremes(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, c) uint8 -> the 1st and the 99th percentile of each column, float32."""
    ordered = np.sort(values, axis=0).astype(np.float32)
    skipped = len(values) // 100
    return ordered[skipped], ordered[-1 - skipped]


def sharpness(gray: np.ndarray) -> float:
    """Root mean square of the Laplacian (Pech-Pacheco et al. 2000) in the sharper tiles of a grid. (h, w) uint8."""
    g = gray.astype(np.int16)
    if min(g.shape) < 3:
        return 0.0
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    tile_h, tile_w = (max(1, side // TILES) for side in laplacian.shape)
    rows, columns = laplacian.shape[0] // tile_h, laplacian.shape[1] // tile_w
    tiles = laplacian[: rows * tile_h, : columns * tile_w].astype(np.float32).reshape(rows, tile_h, columns, tile_w)
    mean_square = np.einsum("ahbw,ahbw->ab", tiles, tiles) / (tile_h * tile_w)  # the mean of a Laplacian is nearly 0
    return float(np.sqrt(np.percentile(mean_square, 90)))


def _best_known(cache: Cache, signatures: np.ndarray) -> Looks | None:
    """Of earlier looks in the cache, those that have the most of these images."""
    best, most = None, 0
    for entry in cache.entries():
        if entry.about.get("form") != ["looks", VERSION, DECODE_VERSION] or cache.find(entry.name) is None:
            continue
        known = _read(entry.path)
        count = 0 if known is None else int((lookup(known.rows["signature"], signatures) >= 0).sum())
        if count > most:
            best, most = known, count
    return best


def _read(folder: Path) -> Looks | None:
    try:
        stored = Stored(folder / LOOKS)
        failed = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return Looks(stored.light(), {int(i): Failure(*found) for i, found in failed.items()}, stored)
    except (OSError, ValueError):
        return None  # gone since, or damaged
