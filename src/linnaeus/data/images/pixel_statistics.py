"""Statistics of one image: what the checks compare, about a kilobyte."""

from __future__ import annotations

import hashlib
import io

import numpy as np
from PIL import Image

from linnaeus.data import tree
from linnaeus.data.images.content import UNKNOWN, pixel_hash
from linnaeus.data.images.decode import FORMATS, INSPECTED, inspect
from linnaeus.data.images.hashing import ALL_WINDOWS, FLAT, MIN_SIDE, ORIENTATIONS, content_window, difference_hashes
from linnaeus.data.images.resize import UprightImage, with_channels

SIDE = 32  # side of the thumbnail by which images are compared, in pixels
SHORT = 256  # short side at which sharpness is measured, in pixels; smaller images are not enlarged
TINT_TOLERANCE = 0.1
"""Difference in a color share from which images in the same frame are variants, such as a red and a blue car, and no
copies, unless one of them is gray. It does not apply to different frames: zoomed in, a red flower fills the image."""
GRAY_TOLERANCE = 0.01  # distance of the color shares of a gray image from 1/3
MULTIPLE = ("GIF", "TIFF", "WEBP")
"""Formats in which files of several pages or frames are usual. A second image in an MPO is a preview or for 3D."""
TILES = 8  # tiles a side for the sharpness
assert SHORT <= INSPECTED

STATISTICS = np.dtype(
    [
        ("signature", "<u8"),  # identifies the file; 0 matches none
        ("height", "<i4"),  # of the whole image, upright; 0 if it could not be read
        ("width", "<i4"),
        ("format", "u1"),  # index into FORMATS, or 255 if the source holds arrays
        ("pages", "<u2"),  # pages or frames of the file; 1 where its format is not in MULTIPLE
        ("digest", "<u8", (2,)),  # of the decoded pixels and their size
        ("pixels", "<u8"),  # content hash of the pixels, if the image is too small or flat for the hashes below; else 0
        ("windows", "<u8", (ALL_WINDOWS, 2)),  # difference hashes, by columns and by rows
        ("turned", "<u8", (2 * ORIENTATIONS, 2)),  # of the image and of its content, mirrored and turned
        ("low", "<f4"),  # 1st and 99th percentile of the gray levels, 0..255
        ("high", "<f4"),
        ("range", "<f4"),  # between these percentiles, for the color channel with the largest range
        ("sharpness", "<f4"),  # root mean square of the Laplacian in the sharpest tiles, in gray levels
        ("tint", "<f4", (3,)),  # shares of red, green and blue inside a border; they sum to 1
        ("gray", "u1", (SIDE, SIDE)),  # thumbnail, squashed to a square
    ]
)


def file_statistics(path: str | bytes) -> np.ndarray:
    """A row of STATISTICS from a file. Raises UnreadableError.

    A large JPEG is decoded at reduced size. The digest is of these pixels; two files with the same image are still
    recognized, because both are reduced alike.
    """
    upright = inspect(path)
    row = statistics_of(upright)
    row["pages"] = page_count(path, upright.format)
    return row


def page_count(source: str | bytes, form: str) -> int:
    """Pages or frames of a file of a format, or its bytes, at most 65,535. Only files of MULTIPLE are opened."""
    if form not in MULTIPLE:
        return 1
    try:
        opened = io.BytesIO(source) if isinstance(source, bytes) else tree.open_binary(source)
        with opened as file, Image.open(file, formats=MULTIPLE) as image:
            return min(getattr(image, "n_frames", 1), 65_535)
    except Exception:  # a damaged directory behind a first page that can be read
        return 1


def pixel_statistics(pixels: np.ndarray) -> np.ndarray:
    """(h, w[, C]) uint8 -> a row of STATISTICS, of shape ()."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels)
    return statistics_of(UprightImage(image, image.size, (0, 0, *image.size)))


def statistics_of(upright: UprightImage) -> np.ndarray:
    """A row of STATISTICS, of shape (), with one page."""
    image, (width, height) = upright.image, upright.size
    row = np.zeros((), STATISTICS)
    row["height"], row["width"] = height, width
    row["pages"] = 1
    row["format"] = FORMATS.index(upright.format) if upright.format else 255
    pixels = np.asarray(image)
    # The shape belongs to the digest: other shapes may have the same bytes.
    digest = hashlib.sha256(f"{upright.size} {pixels.shape}".encode())
    digest.update(pixels.data)
    row["digest"] = np.frombuffer(digest.digest()[:16], "<u8")
    colors = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0))
    low, high = _extremes(colors.reshape(SIDE * SIDE, -1))
    row["range"] = (high - low).max()
    gray = with_channels(image, 1)
    # Sharpness depends on the size, so images are compared at one short side.
    scale = SHORT / min(gray.size)
    if scale < 1:
        gray = gray.resize((round(gray.width * scale), round(gray.height * scale)), Image.Resampling.BILINEAR)
    row["tint"] = _tint(colors, content_window(np.asarray(gray)))
    row["sharpness"] = sharpness(np.asarray(gray))
    row["windows"], row["turned"] = difference_hashes(gray)
    row["gray"] = np.asarray(gray.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    row["low"], row["high"] = _extremes(row["gray"].reshape(-1, 1))
    row["pixels"] = UNKNOWN if hashable(row) else pixel_hash(pixels)
    return row


def hashable(rows: np.ndarray) -> np.ndarray:
    """Whether altered copies can be recognized of each of rows (...) of STATISTICS: images neither small nor flat."""
    short = np.minimum(rows["height"], rows["width"])
    return (short >= MIN_SIDE) & (rows["high"] - rows["low"] >= FLAT)


def _tint(colors: np.ndarray, window: tuple[float, float, float, float]) -> np.ndarray | float:
    """The shares of the colors (SIDE, SIDE[, C]) uint8 in a window, that of the content: a border would change them."""
    left, top, right, bottom = (round(SIDE * share) for share in window)
    light = colors[top:bottom, left:right].reshape((bottom - top) * (right - left), -1).mean(axis=0) + 1.0  # never 0
    return light / light.sum() if len(light) == 3 else 1 / 3


def same_tint(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """(k,) bool: color shares (k, 3) and (k, 3) of the same colors, or one of them of a gray image."""
    gray = (np.abs(one - 1 / 3).max(1) < GRAY_TOLERANCE) | (np.abs(two - 1 / 3).max(1) < GRAY_TOLERANCE)
    return gray | (np.abs(one - two).max(1) < TINT_TOLERANCE)


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
