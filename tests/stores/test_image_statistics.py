"""Image statistics: the values, their cache, and the reasons why a file cannot be read."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scenes import bomb, encoded, scene, write_scenes

from linnaeus.cache import default_cache
from linnaeus.data import tree
from linnaeus.data.images.decode import FORMATS, RowSpec, UnreadableError, load_row
from linnaeus.data.images.pixel_statistics import STATISTICS, file_statistics, pixel_statistics, sharpness
from linnaeus.data.sources import open_source
from linnaeus.stores import image_statistics
from linnaeus.stores.contents import HashedImages
from linnaeus.stores.image_statistics import StatisticsBuilder, compute_statistics
from linnaeus.stores.purge import purge_images
from linnaeus.stores.samples import decode_split


def count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list to which the name of every opened file is added."""
    opened: list[str] = []

    def counting(path: str) -> np.ndarray:
        opened.append(path)
        return file_statistics(path)

    monkeypatch.setattr(image_statistics, "file_statistics", counting)
    return opened


def test_every_fault_has_its_kind(tmp_path: Path):
    write_scenes(tmp_path)
    whole = (tmp_path / "oak" / "0.jpg").read_bytes()
    (tmp_path / "oak" / "1.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "oak" / "2.jpg").write_bytes(b"")
    (tmp_path / "oak" / "3.jpg").write_bytes(b"no image at all")
    bomb(tmp_path / "oak" / "4.png")
    table = open_source(tmp_path)
    found = compute_statistics(table, cache=None)
    kinds = {table.sample_id(i): failure.kind for i, failure in found.failed.items()}
    expected = {"oak/1.jpg": "truncated", "oak/2.jpg": "empty", "oak/3.jpg": "unreadable", "oak/4.png": "too-large"}
    assert kinds == expected
    assert len(found.readable) == len(table) - 4
    assert not found.rows["height"][list(found.failed)].any()


def test_a_second_check_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (write_scenes(tmp_path) / "oak" / "2.jpg").write_bytes(b"broken")
    table = open_source(tmp_path)
    first = compute_statistics(table, cache=default_cache())
    opened = count(monkeypatch)
    second = compute_statistics(table, cache=default_cache())
    assert opened == []
    assert (second.rows == first.rows).all()
    assert second.failed == first.failed != {}


def test_thumbnails_stay_on_disk(tmp_path: Path):
    """Thumbnails are most of a row. Rows in memory have none, and they stay readable after the cache was cleared."""
    (write_scenes(tmp_path) / "oak" / "2.jpg").write_bytes(b"broken")
    table = open_source(tmp_path)
    everything, kept = compute_statistics(table, cache=None), compute_statistics(table, cache=default_cache())
    default_cache().clear()
    assert everything.file is None
    assert kept.rows.nbytes < everything.rows.nbytes / 2.5
    assert (kept.rows == everything.rows[list(kept.rows.dtype.names or ())]).all()
    chosen = np.array([3, 0, 3, len(table) - 1])
    np.testing.assert_array_equal(kept.thumbnails(chosen), everything.thumbnails(chosen))
    assert kept.thumbnails(chosen).any()
    assert (kept.full_rows() == everything.full_rows()).all()


def test_only_changed_files_are_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_scenes(tmp_path)
    first = compute_statistics(open_source(tmp_path), cache=default_cache())
    scene(99, 300, 200).save(tmp_path / "oak" / "2.jpg")
    scene(98).save(tmp_path / "pine" / "new.jpg")
    opened = count(monkeypatch)
    table = open_source(tmp_path)
    second = compute_statistics(table, cache=default_cache())
    assert sorted(opened) == [str(tmp_path / "oak" / "2.jpg"), str(tmp_path / "pine" / "new.jpg")]
    assert second.rows["width"][table.paths.index(str(tmp_path / "oak" / "2.jpg"))] == 300  # type: ignore[union-attr]
    assert len(second) == len(first) + 1


def decode_observed(builder: StatisticsBuilder, folder: Path, channels: int = 3) -> None:
    """Decode all images for a pixel store in two parts, as a run decodes its splits, while the builder looks on."""
    table = open_source(folder)
    images = HashedImages(table, default_cache(), builder.observe)
    for part in (np.arange(1, len(table), 2), np.arange(0, len(table), 2)):
        decode_split(table, part, RowSpec(130, channels=channels), None, images=images)


@pytest.mark.parametrize("chunk", [2, 4096])
def test_images_decoded_for_a_store_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int):
    """Only a JPEG that a row of 130 pixels reduces more than the statistics do is decoded again."""
    monkeypatch.setattr(image_statistics, "CHUNK", chunk)
    oak = write_scenes(tmp_path) / "oak"
    (oak / "2.jpg").write_bytes(b"broken")
    scene(97, 1000, 800).save(oak / "large.png")
    scene(98, 1000, 800).save(oak / "large.jpg")
    table = open_source(tmp_path)
    expected = compute_statistics(table, cache=None)
    opened = count(monkeypatch)
    builder = StatisticsBuilder(table, default_cache())
    decode_observed(builder, tmp_path)
    found = builder.finish()
    assert sorted(opened) == [str(oak / "2.jpg"), str(oak / "large.jpg")]
    assert (found.full_rows() == expected.full_rows()).all()
    assert found.failed == expected.failed
    decode_observed(builder := StatisticsBuilder(table, default_cache()), tmp_path)
    assert (builder.finish().full_rows() == expected.full_rows()).all()
    assert len(opened) == 2, "all are in the cache"


def test_gray_rows_show_no_colors(tmp_path: Path):
    table = open_source(write_scenes(tmp_path))
    builder = StatisticsBuilder(table, default_cache())
    decode_observed(builder, tmp_path, channels=1)
    assert (builder.finish().full_rows() == compute_statistics(table, cache=None).full_rows()).all()


def test_statistics_lost_on_a_full_disk_are_computed_again(tmp_path: Path):
    table = open_source(write_scenes(tmp_path))
    builder = StatisticsBuilder(table, default_cache())
    write = builder._observed.write

    def full(data: bytes) -> int:
        write(data[:100])
        raise OSError(errno.ENOSPC, "full")

    builder._observed.write = full  # type: ignore[method-assign, assignment]
    decode_observed(builder, tmp_path)
    assert (builder.finish().full_rows() == compute_statistics(table, cache=None).full_rows()).all()


def test_a_missing_file_is_tried_again(tmp_path: Path):
    """A file that was missing during the first check is found by the second."""
    image = write_scenes(tmp_path) / "oak" / "2.jpg"
    table = open_source(tmp_path)
    moved = image.rename(tmp_path / "elsewhere.jpg")
    assert len(compute_statistics(table, cache=default_cache()).failed) == 1
    moved.rename(image)
    assert not compute_statistics(table, cache=default_cache()).failed


def test_a_lack_of_memory_is_not_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    table = open_source(write_scenes(tmp_path))

    def starved(path: str) -> np.ndarray:
        raise UnreadableError(path, "not enough memory to decode it", passing=True)

    with monkeypatch.context() as short:
        short.setattr(image_statistics, "file_statistics", starved)
        assert len(compute_statistics(table, cache=default_cache()).failed) == len(table)
    assert not compute_statistics(table, cache=default_cache()).failed


def test_the_digest_is_of_the_pixels(tmp_path: Path):
    image = scene(1)
    for name in ("a.png", "b.bmp", "c.jpg"):
        image.save(tmp_path / name)
    a, b, c = (file_statistics(str(tmp_path / name)) for name in ("a.png", "b.bmp", "c.jpg"))
    assert (a["digest"] == b["digest"]).all()
    assert (a["digest"] != c["digest"]).any()
    assert [FORMATS[row["format"]] for row in (a, b, c)] == ["PNG", "BMP", "JPEG"]
    pixels = np.asarray(image)
    wider, taller = (pixel_statistics(pixels.reshape(shape))["digest"] for shape in ((100, 480, 3), (400, 120, 3)))
    assert (wider != taller).any()  # the same bytes in another shape


def test_a_large_jpeg_keeps_its_full_size(tmp_path: Path):
    scene(1, 1600, 1300).save(tmp_path / "large.jpg")
    row = file_statistics(str(tmp_path / "large.jpg"))
    assert (row["width"], row["height"]) == (1600, 1300)


@pytest.mark.parametrize("shape", [(1, 1), (1, 1, 3), (2, 500, 3), (28, 28), (8, 8), (300, 7, 3)])
def test_images_of_any_shape(shape: tuple[int, ...]):
    row = pixel_statistics(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert (row["height"], row["width"]) == shape[:2]
    assert np.isfinite(row["sharpness"])
    assert row.dtype == STATISTICS


def test_gray_levels_and_colors():
    black, white, red = (
        np.zeros((40, 40, 3), np.uint8),
        np.full((40, 40), 255, np.uint8),
        np.zeros((40, 40, 3), np.uint8),
    )
    red[:20, :, 0] = 200
    assert (pixel_statistics(black)["high"], pixel_statistics(white)["low"]) == (0, 255)
    assert pixel_statistics(black)["range"] == pixel_statistics(white)["range"] == 0
    assert pixel_statistics(red)["range"] == 200


def test_blurring_reduces_the_sharpness():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 240), dtype=np.uint8))
    values = [sharpness(np.asarray(image.filter(ImageFilter.GaussianBlur(radius)))) for radius in (0, 1, 2, 4)]
    assert values == sorted(values, reverse=True)
    assert values[0] > 5 * values[2]


def test_a_soft_background_does_not_matter():
    """An image of which only a quarter is in focus is as sharp as one in focus throughout."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 240), dtype=np.uint8))
    soft = image.filter(ImageFilter.GaussianBlur(5))
    soft.paste(image.crop((0, 0, 120, 100)), (0, 0))
    assert sharpness(np.asarray(soft)) > 0.7 * sharpness(np.asarray(image))


def test_a_damaged_cache_entry_is_not_used(tmp_path: Path):
    write_scenes(tmp_path)
    table = open_source(tmp_path)
    first = compute_statistics(table, cache=default_cache())
    (entry,) = [entry for entry in default_cache().entries() if entry.name.startswith("statistics")]
    (entry.path / "statistics.npy").write_bytes(b"garbage")
    assert (compute_statistics(table, cache=default_cache()).rows == first.rows).all()


def test_forgetting_an_image_removes_what_an_earlier_version_stored(tmp_path: Path):
    cache, name = default_cache(), f"looks-{0:032x}"
    with cache.building(name) as folder:
        (folder / "looks.npy").write_bytes(b"of an earlier version")
        cache.commit(name, {})
    assert [entry.name for entry in cache.entries()] == [name]
    assert purge_images(cache, np.array([7], np.uint64)).entries == 1
    assert cache.entries() == []


def test_files_truncated_anywhere_are_reported(tmp_path: Path):
    buffer = io.BytesIO()
    encoded(scene(5)).save(buffer, "JPEG")
    folder = tmp_path / "a"
    folder.mkdir()
    (tmp_path / "b").mkdir()
    scene(6).save(tmp_path / "b" / "b.jpg")
    whole = buffer.getvalue()
    for k, share in enumerate(np.linspace(0, 0.98, 25)):
        (folder / f"{k}.jpg").write_bytes(whole[: int(share * len(whole))])
    found = compute_statistics(open_source(tmp_path), cache=None)
    assert len(found.failed) == 25
    assert {failure.kind for failure in found.failed.values()} <= {"empty", "truncated", "unreadable"}


def test_pages_are_counted_once_and_then_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Of what a check decodes, and of what is decoded for a pixel store."""
    folder = write_scenes(tmp_path / "images", each=2)
    frames = [Image.new("RGB", (300, 280), (k, 90, 40)) for k in range(3)]
    frames[0].save(folder / "oak" / "scan.tif", save_all=True, append_images=frames[1:])
    table = open_source(folder)
    cache = default_cache()
    (k,) = (k for k, path in enumerate(table.paths or ()) if path.endswith("scan.tif"))
    builder = image_statistics.StatisticsBuilder(table, cache)
    load_row(table.image(k), RowSpec(64), lambda image: builder.observe(k, image))
    assert builder.finish().rows["pages"].tolist() == [3 if i == k else 1 for i in range(len(table))]
    assert compute_statistics(table, cache=None).rows["pages"][k] == 3
    monkeypatch.setattr(image_statistics, "page_count", None)
    monkeypatch.setattr(image_statistics, "file_statistics", None)
    assert compute_statistics(table, cache=cache).rows["pages"][k] == 3


def test_a_file_that_changes_while_it_is_checked_is_known_by_its_new_content(tmp_path: Path):
    """It is edited after its content was hashed, while others still are."""
    write_scenes(tmp_path)
    images = HashedImages(open_source(tmp_path), default_cache())
    images.image(0)
    everything = np.arange(len(images.paths or ()))
    edited = Path((images.paths or ())[0])
    edited.write_bytes(edited.read_bytes() + b"edited")
    images.hashes(everything)
    table = open_source(tmp_path)
    expected = HashedImages(table, None).hashes(everything)
    assert (HashedImages(table, default_cache()).hashes(everything) == expected).all()


def test_statistics_of_a_file_that_was_restored_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It is replaced before its turn comes, and restored with its version, as where no time of change is kept."""
    monkeypatch.setattr(tree, "version", lambda path: (Path(path).stat().st_size, Path(path).stat().st_mtime_ns))
    oak = write_scenes(tmp_path) / "oak"
    image, table = oak / "2.jpg", open_source(tmp_path)
    original, status, expected = image.read_bytes(), image.stat(), compute_statistics(table, cache=None)

    def replaced(path: str) -> np.ndarray:
        image.write_bytes((oak / "1.jpg").read_bytes())
        return file_statistics(path)

    with monkeypatch.context() as patch:
        patch.setattr(image_statistics, "file_statistics", replaced)
        compute_statistics(table, cache=default_cache())
    image.write_bytes(original)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    found = compute_statistics(table, cache=default_cache())
    assert (found.full_rows()["digest"] == expected.full_rows()["digest"]).all()
