"""Difference hashes of images, and the search for hashes that differ in only a few bits.

An image is reduced to 9 x 8 gray levels; each of 64 bits says whether the level rises from one column to the next. A
second hash does the same for rows. Resizing and encoding hardly change the hashes, but cropping changes them
completely. An image is therefore represented by the hashes of several windows of itself: a cropped copy, as a whole,
resembles one of these windows. Programs that prepare training images cut out the central square or pad to a square, so
that square and the content without a border of one color are windows, too. People and phones also turn and mirror
images, so the whole image has a hash for each of its eight orientations.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise

import numpy as np
from PIL import Image

WINDOWS = (
    # left, top, right, bottom, as shares of the image
    (0.0, 0.0, 1.0, 1.0),
    (0.025, 0.025, 0.975, 0.975),
    (0.05, 0.05, 0.95, 0.95),
    (0.075, 0.075, 0.925, 0.925),
    (0.1, 0.1, 0.9, 0.9),
    (0.1, 0.0, 1.0, 1.0),
    (0.0, 0.1, 1.0, 1.0),
    (0.0, 0.0, 0.9, 1.0),
    (0.0, 0.0, 1.0, 0.9),
)
"""The whole image, the center after cutting 2.5 to 10 % off each side, and the rest after cutting 10 % off one side."""
SQUARES = (1.0, 0.875)
"""Sides of the central squares that are windows, as shares of the short side; 224 of 256 pixels is the usual crop."""
KNOWN_WINDOWS = len(WINDOWS) + len(SQUARES)
"""Windows that follow from the size of an image. One more is its content without border."""
ALL_WINDOWS = KNOWN_WINDOWS + 1
BORDER = 10  # range of gray levels in a border of one color, which JPEG makes uneven
LEAST_CONTENT = 0.3  # of each side, below which what looks like a border is the background

ORIENTATIONS = 8  # orientation k is the image mirrored if k is odd, then turned counterclockwise by k // 2 quarters

MIN_SIDE = 48  # pixels; smaller images of one kind look like copies of each other
FLAT = 12.0  # range of gray levels below which a hash is noise

BITS = 64
MANY = 1 << 20  # entries from which three wide bands are cheaper than four narrow ones
WORKING = 96  # side of the image from which the windows are cut, in pixels
QUERIES = 1 << 16  # queries at once; some arrays are as large
AT_ONCE = 1 << 17  # pairs compared at once; a few MB fit the processor's cache
CROWDED = 20  # times the average count from which a band value is uninformative


def difference_hashes(gray: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """The hashes of an image of mode L by columns and by rows: of its windows, (ALL_WINDOWS, 2) uint64, and of the
    orientations of the whole and of its content, (2 * ORIENTATIONS, 2) uint64."""
    whole, content = gray.resize((WORKING, WORKING), Image.Resampling.BILINEAR), _content(gray)
    windows, turned = np.zeros((ALL_WINDOWS, 2), np.uint64), np.zeros((2 * ORIENTATIONS, 2), np.uint64)
    for k, window in enumerate((*windows_of(*gray.size), WINDOWS[0])):
        left, top, right, bottom = (WORKING * share for share in window)
        small, box = whole if k < KNOWN_WINDOWS else content, (left, top, right, bottom)
        levels = [np.asarray(small.resize(size, Image.Resampling.BILINEAR, box=box)) for size in ((9, 8), (8, 9))]
        windows[k] = _pack(levels[0]), _pack(levels[1].T)
        if k in (0, KNOWN_WINDOWS):
            start = 0 if k == 0 else ORIENTATIONS
            for orientation in range(ORIENTATIONS):
                # Of the levels of a turned image, each row or column is a row or column of these levels.
                wide, high = sorted((oriented(x, orientation) for x in levels), key=len)
                turned[start + orientation] = _pack(wide), _pack(high.T)
    return windows, turned


def windows_of(width: int, height: int) -> tuple[tuple[float, float, float, float], ...]:
    """The windows of an image of this size, as WINDOWS: these, and the SQUARES."""
    short = min(width, height)
    squares = (((1 - share * short / width) / 2, (1 - share * short / height) / 2) for share in SQUARES)
    return (*WINDOWS, *((x, y, 1 - x, 1 - y) for x, y in squares))


def _content(gray: Image.Image) -> Image.Image:
    """The content of an image inside its border, WORKING pixels wide and high."""
    left, top, right, bottom = content_window(np.asarray(gray))
    width, height = gray.size
    # The pixels at an edge are mixtures of content and border, so one is left out.
    start = round(left * width) + (left > 0), round(top * height) + (top > 0)
    end = round(right * width) - (right < 1), round(bottom * height) - (bottom < 1)
    if start[0] < end[0] and start[1] < end[1]:  # an image of a few pixels may have nothing but edges
        gray = gray.crop((*start, *end))
    return gray.resize((WORKING, WORKING), Image.Resampling.BILINEAR)


def content_window(gray: np.ndarray) -> tuple[float, float, float, float]:
    """The window of the content inside a border of one color, of (h, w) uint8; the whole image where there is none."""
    top, bottom = _inside(gray)
    left, right = _inside(gray.T)
    if min(bottom - top, right - left) < LEAST_CONTENT:
        return WINDOWS[0]
    return left, top, right, bottom


def _inside(gray: np.ndarray) -> tuple[float, float]:
    """First and last position, as shares, of the rows that are no border of one color."""
    lines = gray.astype(np.int16)
    flat = lines.max(1) - lines.min(1) <= BORDER
    level = lines.mean(1)
    ends = []
    for step in (1, -1):
        same = flat[::step] & (np.abs(level[::step] - level[::step][0]) <= BORDER)
        ends.append(int(np.argmin(same)) if not same.all() else 0)
    return ends[0] / len(gray), 1 - ends[1] / len(gray)


def oriented(images: np.ndarray, orientation: int) -> np.ndarray:
    """(..., height, width) in one of the ORIENTATIONS."""
    return np.rot90(images[..., ::-1] if orientation % 2 else images, orientation // 2, axes=(-2, -1))


def _pack(levels: np.ndarray) -> int:
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def hamming_neighbors(
    database: np.ndarray, queries: np.ndarray, radius: int, crowded: float | None = None, bands: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a query and a database entry whose hashes differ in at most `radius` of 64 bits.

    (m,) uint64 and (q,) uint64 -> index of the query, index of the entry and distance, (k,) each, ordered by query.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): the hash is divided into four bands of 16 bits. Of two hashes
    within the radius at least one band differs in at most radius // 4 bits, so each band is looked up with every such
    change, and only entries that agree in a band are compared: a thousandth of all pairs for random hashes at radius 7.
    From a million entries on three bands of 21 or 22 bits cost a third of that. With `crowded`, a band value with more
    than so many times the average number of entries is not looked up, so pairs may be missed that agree in crowded
    bands only.
    """
    # Few bands are more selective, and pay off where there are many hashes.
    bands = bands or (4 if len(database) < MANY else 3)
    cuts = [BITS * k // bands for k in range(bands + 1)]
    found = array("q")  # compact: there may be a million steps that give a few pairs each, or none
    for start, stop in pairwise(cuts):
        for pairs in _band_matches(database, queries, start, stop - start, radius // bands, radius, crowded):
            found.frombytes(pairs.tobytes())
    unique = np.unique(np.frombuffer(found, np.int64))  # a pair may agree in several bands
    query, entry = np.divmod(unique, max(1, len(database)))
    return query, entry, np.bitwise_count(queries[query] ^ database[entry]).astype(np.int64)


def _band_matches(
    database: np.ndarray, queries: np.ndarray, start: int, width: int, changes: int, radius: int, crowded: float | None
) -> Iterator[np.ndarray]:
    """Pairs within the radius, as query * m + entry, that agree in `width` bits from `start` on, except `changes`."""
    band = _Band.of(_bits(database, start, width), width)
    if crowded is not None:
        # A value that very many hashes share says nothing and costs most of the time.
        band.most = max(2000, int(crowded * len(database) / (1 << width)))
    # By the pigeonhole principle, close hashes differ in at most radius / bands bits of some band.
    flips = [sum(1 << bit for bit in bits) for k in range(changes + 1) for bits in combinations(range(width), k)]
    # In blocks, because each of a dozen arrays would be as large as all queries.
    for first in range(0, len(queries), QUERIES):
        keys = _bits(queries[first : first + QUERIES], start, width)
        for flip in flips:
            yield from band.matches(database, queries, keys ^ flip, first, radius)


def _bits(hashes: np.ndarray, start: int, width: int) -> np.ndarray:
    """(n,) int32: `width` bits of each hash (n,), from bit `start` on."""
    return ((hashes >> np.uint64(start)) & np.uint64((1 << width) - 1)).astype(np.int32)


@dataclass
class _Band:
    """The database entries sorted by their value in one band."""

    order: np.ndarray  # (m,) int32: entries by value
    starts: np.ndarray  # (values + 1,) int32: where the entries of each value start in `order`
    most: int  # values with more entries are not looked up

    @classmethod
    def of(cls, values: np.ndarray, width: int) -> _Band:
        order = np.argsort(values, kind="stable").astype(np.int32)
        starts = np.zeros((1 << width) + 1, np.int32)
        np.cumsum(np.bincount(values, minlength=1 << width), out=starts[1:])
        return cls(order, starts, len(values))

    def matches(
        self, database: np.ndarray, queries: np.ndarray, keys: np.ndarray, shift: int, radius: int
    ) -> Iterator[np.ndarray]:
        """Pairs within the radius, as query * m + entry, among those whose band value is the query's key.

        `keys` (k,) are those of the queries from number `shift` on.
        """
        counts = self.starts[keys + 1] - self.starts[keys]
        counts[counts > self.most] = 0
        ends = np.cumsum(counts)
        first = 0
        while first < len(keys):
            # As many queries as give AT_ONCE pairs, but at least one.
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
            some = counts[first:last]
            query = np.repeat(np.arange(first + shift, last + shift), some)
            offset = np.arange(len(query)) - np.repeat(np.cumsum(some) - some, some)
            entry = self.order[np.repeat(self.starts[keys[first:last]], some) + offset]
            close = np.bitwise_count(queries[query] ^ database[entry]) <= radius
            yield query[close] * len(database) + entry[close]  # int64, as the queries are
            first = last
