"""Difference hashes: the changes they tolerate, and that the search is complete."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scenes import COPIES, scene

from linnaeus.data.images.hashing import ORIENTATIONS, WINDOWS, difference_hashes, hamming_neighbors, oriented


def brute_force(database: np.ndarray, queries: np.ndarray, radius: int) -> set[tuple[int, int, int]]:
    distance = np.bitwise_count(queries[:, None] ^ database[None])
    return {(int(q), int(d), int(distance[q, d])) for q, d in zip(*np.nonzero(distance <= radius), strict=True)}


@st.composite
def clustered(draw) -> tuple[np.ndarray, np.ndarray]:
    """Clustered hashes: random ones would hardly ever be neighbors."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    centers = generator.integers(0, 2**64, draw(st.integers(1, 5)), dtype=np.uint64)

    def sample(n: int) -> np.ndarray:
        values = centers[generator.integers(0, len(centers), n)]
        for _ in range(draw(st.integers(0, 12))):
            flips = np.uint64(1) << generator.integers(0, 64, n).astype(np.uint64)
            values = values ^ np.where(generator.random(n) < 0.6, flips, np.uint64(0))
        return values

    return sample(draw(st.integers(0, 40))), sample(draw(st.integers(0, 40)))


@settings(max_examples=60, deadline=None)
@given(clustered(), st.integers(0, 9), st.sampled_from([4, 5, 7]))
def test_the_search_finds_exactly_what_brute_force_finds(
    hashes: tuple[np.ndarray, np.ndarray], radius: int, bands: int
):
    """With four bands of equal width, and with bands of different widths."""
    database, queries = hashes
    query, entry, distance = hamming_neighbors(database, queries, radius, bands=bands)
    found = list(zip(query.tolist(), entry.tolist(), distance.tolist(), strict=True))
    assert len(found) == len(set(found))
    assert set(found) == brute_force(database, queries, radius)


def test_pairs_are_compared_in_chunks(monkeypatch: pytest.MonkeyPatch):
    database = np.random.default_rng(0).integers(0, 2**64, 300, dtype=np.uint64) & np.uint64(0xFF00FF00FF00FF00)
    monkeypatch.setattr("linnaeus.data.images.hashing.AT_ONCE", 7)
    assert set(zip(*(x.tolist() for x in hamming_neighbors(database, database, 5)), strict=True)) == brute_force(
        database, database, 5
    )


def test_three_wide_bands():
    generator = np.random.default_rng(0)
    centers = generator.integers(0, 2**64, 10, dtype=np.uint64)
    flips = np.uint64(1) << generator.integers(0, 64, (4, 100)).astype(np.uint64)
    database = centers[generator.integers(0, 10, 100)] ^ np.bitwise_or.reduce(flips)
    found = set(zip(*(x.tolist() for x in hamming_neighbors(database, database, 7, bands=3)), strict=True))
    assert len(found) > 200
    assert found == brute_force(database, database, 7)


def test_crowded_bands_are_skipped():
    """5,000 hashes share three of four bands: the fourth band finds the neighbors without comparing all pairs."""
    database = np.arange(5000, dtype=np.uint64)
    query, entry, distance = hamming_neighbors(database, database[:10], 0, crowded=1.0)
    assert (query == entry).all()
    assert len(query) == 10
    assert (distance == 0).all()


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_near_a_window_of_its_original(kind: str):
    close = []
    for seed in range(20):
        original = scene(seed)
        windows, _ = difference_hashes(original.convert("L"))
        turned = difference_hashes(COPIES[kind](original).convert("L"))[1]
        bits = np.bitwise_count(windows ^ turned[:, None])
        close.append(bits[:, :, 0].min() <= 5 and bits.sum(2).min() <= 10)
    assert np.mean(close) >= 0.95


def test_unrelated_images_have_distant_hashes():
    hashes = np.array([difference_hashes(scene(seed).convert("L"))[0][0] for seed in range(60)])
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None])[np.triu_indices(60, 1)]
    assert (distance.min(0) > 7).all()
    assert (abs(distance.mean(0) - 32) < 3).all()


@pytest.mark.parametrize("orientation", range(ORIENTATIONS))
def test_the_hash_of_an_orientation_is_that_of_the_turned_image(orientation: int):
    gray = scene(3).convert("L")
    expected = ImageOps.mirror(gray) if orientation % 2 else gray
    expected = expected.rotate(90 * (orientation // 2), expand=True)
    assert (oriented(np.asarray(gray), orientation) == np.asarray(expected)).all()
    turned = difference_hashes(gray)[1][orientation]
    assert (np.bitwise_count(turned ^ difference_hashes(expected)[0][0]) <= 1).all()


def test_the_first_window_is_the_whole_image():
    assert WINDOWS[0] == (0, 0, 1, 1)
    assert all(0 <= left < right <= 1 and 0 <= top < bottom <= 1 for left, top, right, bottom in WINDOWS)


def test_images_of_a_few_pixels_with_a_border_have_hashes():
    """Without the pixels at the edge of their content, nothing of them is left."""
    for width, height in product(range(1, 8), repeat=2):
        gray = np.zeros((height, width), np.uint8)
        gray[height // 3 : -(-2 * height // 3), width // 3 : -(-2 * width // 3)] = 200
        windows, turned = difference_hashes(Image.fromarray(gray))
        assert (len(windows) > 0, len(turned)) == (True, 2 * ORIENTATIONS)
