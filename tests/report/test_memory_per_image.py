"""Memory that a run needs per image: rows of arrays, no Python object for each image of the source."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fabricate import fabricate, write_source

from linnaeus.check.duplicates import find_duplicates
from linnaeus.data.images.pixel_statistics import STATISTICS
from linnaeus.inference.perceptual import RunHashes
from linnaeus.runs.reader import read_run
from linnaeus.stores.image_statistics import ROWS, ImageStatistics, StatisticsFile


def bytes_per_image(work: Callable[[int], Any], few: int, many: int) -> tuple[float, float]:
    """(kept, at the peak) bytes of each image more, by `work(n)` with `few` and `many` images."""
    measured = []
    work(few)  # imports
    for n in (few, many):
        gc.collect()
        tracemalloc.start()
        result = work(n)
        gc.collect()
        measured.append(np.array(tracemalloc.get_traced_memory()))
        tracemalloc.stop()
        del result
    kept, peak = (measured[1] - measured[0]) / (many - few)
    return float(kept), float(peak)


def write_statistics(file: Path, n: int) -> StatisticsFile:
    """Statistics of n images of 96 x 72 pixels that do not resemble each other."""
    rng = np.random.default_rng(n)
    rows = np.zeros(n, STATISTICS)
    rows["signature"] = np.arange(1, n + 1)
    rows["height"], rows["width"], rows["high"], rows["tint"] = 72, 96, 255, 1 / 3
    for column in ("digest", "windows", "turned"):
        rows[column] = rng.integers(0, 1 << 63, rows[column].shape)
    np.save(file, rows)
    return StatisticsFile(file)


@pytest.fixture
def statistics(tmp_path: Path) -> Callable[[int], ImageStatistics]:
    files = {n: write_statistics(tmp_path / f"{n}-{ROWS}", n) for n in (4_000, 16_000)}
    return lambda n: ImageStatistics(files[n].load(), {}, files[n])


def test_statistics_and_hashes_of_a_run(statistics: Callable[[int], ImageStatistics], monkeypatch: pytest.MonkeyPatch):
    """519 and 521 bytes were kept: all hashes, once more in the array under those of the whole images."""
    monkeypatch.setattr("linnaeus.inference.perceptual.BUDGET", 16_000 * 18)
    kept, _ = bytes_per_image(statistics, 4_000, 16_000)
    assert kept < 80
    known = {n: statistics(n) for n in (4_000, 16_000)}
    kept, peak = bytes_per_image(lambda n: RunHashes.of(known[n], np.full(n, "train")), 4_000, 16_000)
    assert kept < 30
    assert peak < 80


def test_the_search_for_duplicates(statistics: Callable[[int], ImageStatistics]):
    """It took 1,130 bytes: a dozen arrays as large as the hashes of all images in all orientations."""
    known = {n: statistics(n) for n in (4_000, 16_000)}
    kept, peak = bytes_per_image(lambda n: find_duplicates(known[n]), 4_000, 16_000)
    assert kept < 10
    assert peak < 700


def test_the_report_reads_a_run(tmp_path: Path):
    """split.csv has a row for each image of the source: 850 bytes each were read at once."""
    for n in (200, 2_000):
        fabricate(write_source(tmp_path / f"images-{n}", ["oak", "elm"]), tmp_path / f"run-{n}")
        split = tmp_path / f"run-{n}" / "split.csv"
        header, row, *_ = split.read_text(encoding="utf-8").splitlines()
        split.write_text("\n".join([header, *[row] * n]) + "\n", encoding="utf-8")
    kept, peak = bytes_per_image(lambda n: read_run(tmp_path / f"run-{n}"), 200, 2_000)
    assert kept < 40
    assert peak < 80
