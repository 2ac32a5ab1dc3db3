"""Bytes that a failing disk changes while the time of the file stays: no store uses them; lost rows are rebuilt."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_activations import SHAPE, N, Source
from test_activations import build as build_rows
from test_pixels import SPEC, Images, cache, decoded, table  # noqa: F401 - fixtures

from linnaeus import cache as caches
from linnaeus.cache import Cache
from linnaeus.data.images.decode import load_row
from linnaeus.data.sources import open_source
from linnaeus.stores import pixels, rows
from linnaeus.stores.image_statistics import compute_statistics
from linnaeus.stores.pixels import build_pixels
from linnaeus.stores.pixelstore import PixelStore

FLIPS = 25


@pytest.fixture
def flip() -> Callable[[Path, float], None]:
    """Flip a bit at a fraction of a file, keep its time, and forget which files this process has verified."""

    def flip(path: Path, share: float) -> None:
        status, data = path.stat(), bytearray(path.read_bytes())
        data[int(share * (len(data) - 1))] ^= 1 << int(100 * share) % 8
        path.write_bytes(data)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        caches._seen.clear()

    return flip


def content(table: Images, cache: Cache, order: np.ndarray) -> list[bytes]:  # noqa: F811
    """The rows of the images in this order, and which could not be read."""
    store = build_pixels(table, order, SPEC, cache=cache)
    assert isinstance(store, PixelStore)
    return [b"failed" if k in store.failed else store.read(k).tobytes() for k in range(len(store))]


def files_of(cache: Cache) -> list[Path]:  # noqa: F811
    """The files of the only entry, without its header."""
    (entry,) = cache.entries()
    return sorted(path for path in entry.path.iterdir() if path.name != "header.json")


@pytest.mark.parametrize("share", np.linspace(0, 1, FLIPS))
def test_a_flip_in_any_file_of_a_pixel_store_changes_nothing(share: float, table, cache, flip, capsys):  # noqa: F811
    order = np.arange(len(table))
    expected = content(table, cache, order)
    for k in range(len(files_of(cache))):
        file = files_of(cache)[k]
        flip(file, share)
        assert content(table, cache, order) == expected, file.name
        assert "damaged on the disk" in capsys.readouterr().err
    assert content(table, cache, order) == expected
    assert capsys.readouterr().err == ""  # the damaged row was repaired


def test_a_store_and_its_file_go_when_nobody_uses_them(table, cache):  # noqa: F811
    """The code that restores rows must not reference the store: its file would stay open until a garbage collection."""
    build_pixels(table, np.arange(len(table)), SPEC, cache=cache)
    store = build_pixels(table, np.arange(len(table)), SPEC, cache=cache)
    assert isinstance(store, PixelStore)
    assert store.guard is not None
    alive = weakref.ref(store)
    gc.disable()
    try:
        del store
        assert alive() is None
    finally:
        gc.enable()


def test_only_the_damaged_row_is_decoded_again(table, cache, flip, decoded, capsys):  # noqa: F811
    """Also in another order, and with the file as it was, time included."""
    order = np.arange(len(table))[::-1].copy()
    build_pixels(table, np.arange(len(table)), SPEC, cache=cache)
    (file,) = (path for path in files_of(cache) if path.name == rows.ROWS)
    before, status = file.read_bytes(), file.stat()
    flip(file, 0.5)
    decoded.clear()
    store = build_pixels(table, order, SPEC, cache=cache)
    assert isinstance(store, PixelStore)
    for k in store.failed.keys() ^ set(range(len(store))):
        assert np.array_equal(store.read(k), load_row(table.paths[order[k]], SPEC))
        store.gather(np.array([k]))
    assert len(decoded) - len(store.failed) <= 1 + len(store)  # `load_row` above decodes each once
    assert capsys.readouterr().err.count("decoded again") == 1
    assert file.read_bytes() == before
    assert file.stat().st_mtime_ns == status.st_mtime_ns


def test_a_damaged_row_whose_image_has_changed_is_an_error(table, cache, flip):  # noqa: F811
    store = build_pixels(table, np.array([0]), SPEC, cache=cache)
    assert isinstance(store, PixelStore)
    assert store.path is not None
    flip(store.path, 0.5)
    store = build_pixels(table, np.array([0]), SPEC, cache=cache)
    Path(table.paths[0]).write_bytes(b"gone")
    with pytest.raises(rows.DamagedRowError, match=r"row 0 was damaged on the disk.*cache --clear"):
        store.gather(np.array([0]))


def test_stores_of_earlier_versions_are_read_and_checked(table, cache, flip, capsys, monkeypatch):  # noqa: F811
    order = np.arange(len(table))
    write = rows.write_index
    monkeypatch.setattr(pixels, "write_index", lambda folder, index: write(folder, replace(index, checksums=None)))
    expected = content(table, cache, order)
    assert [file.name for file in files_of(cache)] == ["failed.json", "index.npy", "rows.bin"]
    caches._seen.clear()
    assert content(table, cache, order) == expected
    monkeypatch.undo()
    flip(files_of(cache)[2], 0.3)
    assert content(table, cache, order) == expected
    assert "rows.bin: damaged on the disk; the store is ignored and built again" in capsys.readouterr().err
    assert len(files_of(cache)) == 4


@pytest.mark.parametrize("share", np.linspace(0, 1, FLIPS))
def test_a_flip_in_an_activation_store_is_computed_again(share: float, cache, flip, capsys):  # noqa: F811
    source = Source()
    expected = np.array(build_rows(cache, source).array)
    flip(files_of(cache)[0], share)
    again = build_rows(cache, source)
    assert np.array_equal(again.gather(np.arange(N))[0], expected.reshape(N, *SHAPE))
    assert "damaged on the disk" in capsys.readouterr().err
    build_rows(cache, source)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("share", np.linspace(0, 1, FLIPS))
def test_a_flip_in_the_statistics_of_a_check_is_noticed(share: float, table, cache, flip, capsys, tmp_path):  # noqa: F811
    folder = tmp_path / "source"
    (folder / "b").mkdir(parents=True)
    (tmp_path / "pictures").rename(folder / "a")
    Path(folder / "a" / "1 ü.png").rename(folder / "b" / "1.png")
    source = open_source(folder)
    expected = compute_statistics(source, cache=cache).full_rows().tobytes()
    for k in range(2):
        flip(files_of(cache)[k], share)
        again = compute_statistics(source, cache=cache)
        assert again.full_rows().tobytes() == expected
        assert len(again.failed) == 1
        assert "damaged on the disk" in capsys.readouterr().err
