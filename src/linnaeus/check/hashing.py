"""Difference hashes, and the search for those that differ in a few bits.

A hash has a bit for each step to the right among 9 x 8 gray levels: whether it gets brighter. It hardly changes when an
image is resized or encoded again, and very much when it is cropped. So an image is known by the hashes of several
windows of itself: a cropped copy, as a whole, looks like one of these.
"""

from __future__ import annotations

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
"""The whole, the middle after cutting 2.5 to 10 % a side, and what is left after cutting 10 % off one side."""

BITS = 64
MANY = 1 << 20  # entries from which on three wide bands cost less than four narrow ones
WORKING = 96  # pixels a side of what the windows are cut from
AT_ONCE = 1 << 17  # pairs compared at once: some MB, which the cache of the processor holds
CROWDED = 20  # times the average: a part of a hash that so many share says nothing


def difference_hashes(gray: Image.Image) -> tuple[np.ndarray, int]:
    """((len(WINDOWS),) uint64 of the windows, the hash of the whole image mirrored), of an image of mode L."""
    small = gray.resize((WORKING, WORKING), Image.Resampling.BILINEAR)
    hashes = np.zeros(len(WINDOWS), np.uint64)
    mirror = 0
    for k, window in enumerate(WINDOWS):
        left, top, right, bottom = (WORKING * share for share in window)
        levels = np.asarray(small.resize((9, 8), Image.Resampling.BILINEAR, box=(left, top, right, bottom)))
        hashes[k] = _pack(levels)
        if k == 0:
            mirror = _pack(levels[:, ::-1])
    return hashes, mirror


def _pack(levels: np.ndarray) -> int:
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


def near(
    database: np.ndarray, queries: np.ndarray, radius: int, crowded: float | None = None, bands: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All pairs of a query and an entry of the database that differ in at most `radius` of 64 bits.

    (m,) uint64, (q,) uint64 -> position of the query, of the entry, and the distance, (k,) each, ordered by query.

    Multi-index hashing (Norouzi, Punjani and Fleet 2012): of four bands of 16 bits one differs in at most radius // 4,
    so each band is looked up as it is and with that many bits flipped; only what agrees there is compared, of random
    hashes a thousandth of all pairs at radius 7. Among a million entries and more the bands are three, of 21 bits or
    22, which makes it a third of that. With `crowded`, values of a band that more than so many times the average share
    are not looked up: then pairs can be missed, if they are near in crowded bands alone.
    """
    bands = bands or (4 if len(database) < MANY else 3)
    cuts = [BITS * k // bands for k in range(bands + 1)]
    found: list[np.ndarray] = []
    for start, stop in pairwise(cuts):
        width = stop - start
        mask = np.uint64((1 << width) - 1)
        ours, theirs = (((values >> np.uint64(start)) & mask).astype(np.int64) for values in (queries, database))
        order = np.argsort(theirs, kind="stable")
        starts = np.searchsorted(theirs[order], np.arange((1 << width) + 1))
        sizes = np.diff(starts)
        if crowded is not None:
            sizes[sizes > max(2000, crowded * len(database) / (1 << width))] = 0
        for k in range(radius // bands + 1):
            for bits in combinations(range(width), k):
                flip = sum(1 << bit for bit in bits)
                found += _compare(database, queries, ours ^ flip, order, starts, sizes, radius)
    if not found:
        empty = np.zeros(0, np.int64)
        return empty, empty, empty
    pairs = np.unique(np.concatenate(found))  # a pair may agree in several bands
    q, d = np.divmod(pairs, len(database))
    return q, d, np.bitwise_count(queries[q] ^ database[d]).astype(np.int64)


def _compare(
    database: np.ndarray, queries: np.ndarray, keys: np.ndarray, order: np.ndarray, starts: np.ndarray,
    sizes: np.ndarray, radius: int,
) -> list[np.ndarray]:  # fmt: skip
    """The pairs (query * m + entry) within the radius among those where the entry's band is the query's key."""
    counts = sizes[keys]
    found = []
    ends = np.cumsum(counts)
    first = 0
    while first < len(keys):  # as many queries as give AT_ONCE pairs, one at least
        before = ends[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + AT_ONCE, side="right")))
        some = counts[first:last]
        q = np.repeat(np.arange(first, last), some)
        inside = np.arange(len(q)) - np.repeat(np.cumsum(some) - some, some)
        d = order[np.repeat(starts[keys[first:last]], some) + inside]
        close = np.bitwise_count(queries[q] ^ database[d]) <= radius
        found.append(q[close] * len(database) + d[close])
        first = last
    return found
