"""Statistics of every image, about a kilobyte each: the basis of all checks.

Each image is decoded once, by several threads, and discarded; one row of `STATISTICS` is kept in the cache. A second
check, or a training run after it, therefore opens only new and changed images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.check.hashing import WINDOWS, difference_hashes
from linnaeus.data.decode import DECODE_VERSION, FORMATS, RowSpec, UnreadableError, inspect
from linnaeus.data.resize import with_channels
from linnaeus.data.table import Table
from linnaeus.device import available_cores
from linnaeus.stores.decoding import Decoding, Progress, in_order
from linnaeus.stores.pixels import lookup
from linnaeus.stores.rows import save_array

VERSION = 1
SIDE = 32  # side of the thumbnail by which images are compared, in pixels
SHORT = 256  # short side at which sharpness is measured, in pixels; smaller images are not enlarged
TILES = 8  # tiles a side for the sharpness
ROWS, FAILED = "looks.npy", "failed.json"

STATISTICS = np.dtype(
    [
        ("signature", "<u8"),  # identifies the file; 0 matches none
        ("height", "<i4"),  # of the whole image, upright; 0 if it could not be read
        ("width", "<i4"),
        ("format", "u1"),  # index into FORMATS, or 255 if the source holds arrays
        ("digest", "<u8", (2,)),  # of the decoded pixels and their size
        ("windows", "<u8", (len(WINDOWS),)),  # difference hashes
        ("mirror", "<u8"),  # difference hash of the mirrored image
        ("low", "<f4"),  # 1st and 99th percentile of the gray levels, 0..255
        ("high", "<f4"),
        ("range", "<f4"),  # between these percentiles, for the color channel with the largest range
        ("sharpness", "<f4"),  # root mean square of the Laplacian in the sharpest tiles, in gray levels
        ("tint", "<f4", (3,)),  # shares of red, green and blue; they sum to 1
        ("gray", "u1", (SIDE, SIDE)),  # thumbnail, squashed to a square
    ]
)
IN_MEMORY = np.dtype([(name, STATISTICS[name]) for name in STATISTICS.names or () if name != "gray"])
"""A row without its thumbnail, which is most of it."""


@dataclass(frozen=True)
class ReadFailure:
    """Why an image could not be read."""

    kind: str
    """As in UnreadableError: truncated, empty, too-large or unreadable."""
    reason: str


class StatisticsFile:
    """Rows in a file. They are mapped for each access only, because pages once read count as memory until unmapped.

    The file stays open, so that it can still be read after its removal from the cache.
    """

    def __init__(self, path: Path):
        """Raises OSError or ValueError if the file does not hold rows of `STATISTICS`."""
        mapped = np.load(path, mmap_mode="r")
        if mapped.dtype != STATISTICS or mapped.ndim != 1:
            raise ValueError(f"{path}: {mapped.dtype}")
        self.length, self.offset = len(mapped), getattr(mapped, "offset", 0)
        self.file = path.open("rb")

    def map(self) -> np.ndarray:
        """(n,) of STATISTICS, memory-mapped."""
        if not self.length:
            return np.zeros(0, STATISTICS)
        return np.memmap(self.file, STATISTICS, "r", self.offset, (self.length,))

    def load(self) -> np.ndarray:
        """(n,) of IN_MEMORY."""
        rows = np.empty(self.length, IN_MEMORY)
        for first in range(0, self.length, 4096):
            rows[first : first + 4096] = self.map()[first : first + 4096][list(IN_MEMORY.names or ())]
        return rows


@dataclass(frozen=True)
class ImageStatistics:
    """Statistics of the n images of a table."""

    rows: np.ndarray
    """(n,) of STATISTICS, or of IN_MEMORY if the thumbnails are in `file`."""
    failed: Mapping[int, ReadFailure]
    """Sample -> why it could not be read."""
    file: StatisticsFile | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def full_rows(self) -> np.ndarray:
        """(n,) of STATISTICS, memory-mapped if they are in a file."""
        return self.rows if self.file is None else self.file.map()

    def thumbnails(self, samples: np.ndarray) -> np.ndarray:
        """Samples (k,) -> (k, SIDE, SIDE) uint8."""
        return self.full_rows()["gray"][samples]

    @property
    def readable(self) -> np.ndarray:
        """(k,) int64: the samples that could be read."""
        return np.flatnonzero(self.rows["height"] > 0)


def compute_statistics(table: Table, *, cache: Cache | None, progress: Progress | None = None) -> ImageStatistics:
    """Statistics of every image of `table`, as far as known from the cache. Raises UserError if the disk is full."""
    everything = np.arange(len(table))
    decoding = Decoding(table, everything, RowSpec(SHORT), available_cores(), progress)
    signatures = decoding.signatures()
    if cache is None:
        return _compute(decoding, signatures, None)
    key = hashlib.sha256(f"{VERSION} {DECODE_VERSION}".encode() + signatures.tobytes()).hexdigest()[:32]
    name = f"looks-{key}"
    with cache.lock(name):
        entry = cache.find(name)
        known = _read(entry.path) if entry is not None else _most_similar(cache, signatures)
        if entry is not None and known is not None and (known.rows["signature"] == signatures).all():
            return known
        statistics = _compute(decoding, signatures, known)
        try:
            cache.room(name, statistics.rows.nbytes)
            with cache.building(name) as folder:
                save_array(folder / ROWS, statistics.rows)
                failed = {i: [failure.kind, failure.reason] for i, failure in statistics.failed.items()}
                (folder / FAILED).write_text(json.dumps(failed), encoding="utf-8")
                cache.commit(name, {"form": ["looks", VERSION, DECODE_VERSION], "rows": len(table)})
            entry = cache.find(name)
            # The stored copy is preferred: its thumbnails do not occupy memory.
            return statistics if entry is None else _read(entry.path) or statistics
        except OverBudgetError:
            return statistics  # in memory only; the next check computes them again


def _compute(decoding: Decoding, signatures: np.ndarray, known: ImageStatistics | None) -> ImageStatistics:
    """Statistics of all images; those of unchanged files are copied from `known`."""
    rows = np.zeros(len(signatures), STATISTICS)
    failed: dict[int, ReadFailure] = {}
    place = lookup(known.rows["signature"], signatures) if known is not None else np.full(len(signatures), -1)
    known_rows = rows if known is None else known.full_rows()

    def row_of(k: int) -> np.ndarray | ReadFailure | UnreadableError:
        if known is not None and place[k] >= 0:
            return known.failed.get(int(place[k]), known_rows[place[k]])
        source = decoding.source(k)
        try:
            return pixel_statistics(source) if isinstance(source, np.ndarray) else file_statistics(source)
        except UnreadableError as error:
            return error.with_traceback(None)  # the traceback would keep the image in memory

    for k, result in enumerate(in_order(row_of, 0, len(rows), decoding.threads, decoding.progress)):
        if isinstance(result, np.ndarray | np.void):
            rows[k] = result
        else:
            failed[k] = result if isinstance(result, ReadFailure) else ReadFailure(result.kind, result.reason)
        # A failure that may pass, such as a missing file or a lack of memory, must not be remembered.
        temporary = isinstance(result, UnreadableError) and result.passing
        rows["signature"][k] = 0 if temporary else signatures[k]
    return ImageStatistics(rows, failed)


def file_statistics(path: str | bytes) -> np.ndarray:
    """A row of STATISTICS from a file. Raises UnreadableError.

    A large JPEG is decoded at reduced size, with a short side of at least 512 pixels. The digest is of these pixels;
    two files with the same image are still recognized, because both are reduced alike.
    """
    image = inspect(path, at_least=SHORT)
    return pixel_statistics(image.pixels, image.size, image.format)


def pixel_statistics(pixels: np.ndarray, size: tuple[int, int] | None = None, form: str | None = None) -> np.ndarray:
    """(h, w[, C]) uint8 -> a row of STATISTICS, of shape (). `size` is (height, width) before a reduced decoding."""
    size = size or pixels.shape[:2]
    row = np.zeros((), STATISTICS)
    row["height"], row["width"] = size
    row["format"] = 255 if form is None else FORMATS.index(form)
    # The shape belongs to the digest: other shapes may have the same bytes.
    digest = hashlib.sha256(f"{size} {pixels.shape}".encode())
    digest.update(np.ascontiguousarray(pixels).data)
    row["digest"] = np.frombuffer(digest.digest()[:16], "<u8")
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    colors = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
    low, high = _extremes(colors.reshape(SIDE * SIDE, -1))
    row["range"] = (high - low).max()
    light = colors.reshape(SIDE * SIDE, -1).mean(axis=0) + 1.0  # never 0, for the division
    row["tint"] = light / light.sum() if len(light) == 3 else 1 / 3
    gray = with_channels(image, 1)
    # Sharpness depends on the size, so images are compared at one short side.
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
    """Root mean square of the Laplacian (Pech-Pacheco et al. 2000), (h, w) uint8, in gray levels.

    The 90th percentile over the tiles of a grid: an image with a soft background is as sharp as its sharpest parts.
    """
    g = gray.astype(np.int16)
    if min(g.shape) < 3:
        return 0.0
    laplacian = g[:-2, 1:-1] + g[2:, 1:-1] + g[1:-1, :-2] + g[1:-1, 2:] - 4 * g[1:-1, 1:-1]
    tile_h, tile_w = (max(1, side // TILES) for side in laplacian.shape)
    rows, columns = laplacian.shape[0] // tile_h, laplacian.shape[1] // tile_w
    tiles = laplacian[: rows * tile_h, : columns * tile_w].astype(np.float32).reshape(rows, tile_h, columns, tile_w)
    mean_square = np.einsum("ahbw,ahbw->ab", tiles, tiles) / (tile_h * tile_w)  # the mean of a Laplacian is nearly 0
    return float(np.sqrt(np.percentile(mean_square, 90)))


def _most_similar(cache: Cache, signatures: np.ndarray) -> ImageStatistics | None:
    """The cached statistics of another table that share the most images with this one."""
    best, most = None, 0
    for entry in cache.entries():
        if entry.about.get("form") != ["looks", VERSION, DECODE_VERSION] or cache.find(entry.name) is None:
            continue
        known = _read(entry.path)
        count = 0 if known is None else int((lookup(known.rows["signature"], signatures) >= 0).sum())
        if count > most:
            best, most = known, count
    return best


def _read(folder: Path) -> ImageStatistics | None:
    """Statistics from a folder of the cache; None if it was removed meanwhile or is damaged."""
    try:
        file = StatisticsFile(folder / ROWS)
        failed = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return ImageStatistics(file.load(), {int(i): ReadFailure(*values) for i, values in failed.items()}, file)
    except (OSError, ValueError):
        return None
