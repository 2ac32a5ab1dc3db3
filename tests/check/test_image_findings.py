"""Findings about single images: misnamed, empty or unlike the others; and none for good images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scenes import scene, write_scenes

from linnaeus.check.findings import Finding
from linnaeus.check.image_findings import SUFFIXES, file_findings, image_findings, page_findings
from linnaeus.data.images.decode import FORMATS, IMAGE_SUFFIXES
from linnaeus.data.sources import open_source
from linnaeus.data.table import Table
from linnaeus.stores.image_statistics import compute_statistics


def findings(folder: Path) -> list[Finding]:
    table = open_source(folder)
    statistics = compute_statistics(table, cache=None)
    return [*file_findings(table, statistics), *image_findings(table, statistics)]


def kinds(folder: Path) -> dict[str, str]:
    """Sample -> kind of the finding about this sample alone."""
    return {finding.paths[0]: finding.kind for finding in findings(folder) if len(finding.paths) == 1}


def test_good_images_have_no_findings(tmp_path: Path):
    assert findings(write_scenes(tmp_path, each=20)) == []


def test_every_unusual_image_is_found(tmp_path: Path):
    write_scenes(tmp_path, each=20)
    oak = tmp_path / "oak"
    image = scene(50)
    Image.new("RGB", (240, 200), (90, 120, 40)).save(oak / "flat.png")
    image.point(lambda v: v // 12).save(oak / "dark.png")
    image.point(lambda v: 230 + v // 12).save(oak / "bright.png")
    image.filter(ImageFilter.GaussianBlur(15)).save(oak / "blurred.png")
    image.resize((48, 40)).save(oak / "small.png")
    image.resize((1200, 1000)).save(oak / "large.png")
    image.resize((800, 200)).save(oak / "long.png")
    image.save(oak / "png.jpg", "PNG")
    (oak / "empty.jpg").write_bytes(b"")
    found = kinds(tmp_path)
    assert found.pop("oak/large.png") in ("large", "blurred")  # an image enlarged five times is both
    assert found == {
        "oak/flat.png": "one-color",
        "oak/dark.png": "dark",
        "oak/bright.png": "bright",
        "oak/blurred.png": "blurred",
        "oak/small.png": "small",
        "oak/long.png": "elongated",
        "oak/png.jpg": "wrong-extension",
        "oak/empty.jpg": "empty",
    }


def test_a_wrong_extension_names_the_right_one(tmp_path: Path):
    write_scenes(tmp_path)
    scene(5).save(tmp_path / "oak" / "a.jpg", "PNG")
    (finding,) = findings(tmp_path)
    assert finding.severity == "warning"
    assert finding.detail == "contains PNG but has the extension .jpg; rename it to .png"


def test_a_property_of_all_images_is_reported_once(tmp_path: Path):
    for k, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        for i in range(10):
            scene(20 * k + i).point(lambda v: v // 12).save(tmp_path / name / f"{i}.png")
    (finding,) = findings(tmp_path)
    assert (finding.kind, finding.severity, len(finding.paths)) == ("dark", "info", 20)


def test_arrays_have_no_extension():
    pixels = np.stack([np.asarray(scene(i, 40, 40)) for i in range(4)])
    table = Table("t", "idx", ("a", "b"), ("a", "b"), np.array([0, 0, 1, 1]), np.array([""] * 4), images=pixels)
    assert file_findings(table, compute_statistics(table, cache=None)) == []


def test_every_format_and_suffix_is_listed():
    """HEIF needs an extra, so its files are not among those whose suffixes are compared."""
    assert set(SUFFIXES) == set(FORMATS) - {"HEIF"}
    assert IMAGE_SUFFIXES - {s for text in SUFFIXES.values() for s in text.split()} == {".heic", ".heif"}


@pytest.mark.long
@pytest.mark.parametrize(("name", "most"), [("flowers16", 2), ("food10", 0)])
def test_few_false_alarms_on_photographs(name: str, most: int, shared_data: Path):
    """The false alarm in flowers16 is a photograph without a sharp edge."""
    alarms = findings(shared_data / name)
    assert len(alarms) <= most, alarms


@pytest.mark.long
def test_blur_is_found_among_photographs(shared_data: Path, tmp_path: Path):
    """Most of 20 photographs out of focus are found among 200 sharp ones."""
    names = sorted((shared_data / "flowers16" / "train").glob("*/*.jpg"))[::5][:220]
    for k, path in enumerate(names):
        folder = tmp_path / path.parent.name
        folder.mkdir(exist_ok=True)
        with Image.open(path) as image:
            changed = image.filter(ImageFilter.GaussianBlur(0.012 * min(image.size))) if k % 11 == 0 else image
            changed.save(folder / f"{'blurred' if k % 11 == 0 else 'good'} {k}.jpg", quality=90)
    alarms = [finding.paths[0] for finding in findings(tmp_path) if finding.kind == "blurred"]
    right = sum("blurred" in name for name in alarms)
    assert right >= 15
    assert len(alarms) - right <= 1


def test_files_of_several_pages_are_reported_once(tmp_path: Path):
    write_scenes(tmp_path, each=3)
    pages = [scene(k) for k in range(60, 63)]
    pages[0].save(tmp_path / "oak" / "scan.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "oak" / "clip.webp", save_all=True, append_images=pages[1:2])
    pages[0].save(tmp_path / "oak" / "one.tif")
    table = open_source(tmp_path)
    (finding,) = page_findings(table, compute_statistics(table, cache=None))
    assert finding.paths == ("oak/scan.tif", "oak/clip.webp")
    assert finding.classes == ("oak",)
    assert "2 files with several pages or frames (up to 3), of which only the first is used" in finding.detail
