"""Perceptual hashes in a model file: their budget, their form, and which images count as copies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import COPIES, PADDED, scene

from linnaeus.data.images.pixel_statistics import STATISTICS, pixel_statistics
from linnaeus.errors import UserError
from linnaeus.inference.perceptual import HASH, PerceptualHashes, RunHashes
from linnaeus.stores.image_statistics import ImageStatistics


def statistics_of(*images: Image.Image) -> ImageStatistics:
    return ImageStatistics(np.array([pixel_statistics(np.asarray(image)) for image in images], STATISTICS), {})


@pytest.fixture(scope="module")
def known() -> RunHashes:
    """Ten training images and two validation images, as a file keeps them."""
    splits = np.array(["train"] * 10 + ["valid"] * 2)
    run = RunHashes.of(statistics_of(*map(scene, range(12))), splits)
    read = RunHashes.from_dict(run.to_dict(), Path("m"))
    assert read is not None
    return read


@pytest.mark.parametrize("kind", [*COPIES, *PADDED])
def test_copies_of_earlier_splits_are_found(known: RunHashes, kind: str):
    statistics = statistics_of(*((COPIES | PADDED)[kind](scene(seed)) for seed in (0, 5, 11, 40)))
    assert known.copies(statistics, "test").tolist() == [True, True, True, False]
    assert known.copies(statistics, "valid").tolist() == [True, True, False, False]


def test_an_image_of_which_a_training_image_is_a_part(known: RunHashes):
    whole = scene(60)
    part = whole.crop((8, 8, whole.width - 8, whole.height - 8))
    run = RunHashes.of(statistics_of(part), np.array(["train"]))
    assert run.copies(statistics_of(whole), "test").all()


def test_small_and_flat_images_and_other_colors_are_no_copies(known: RunHashes):
    red, green, blue = scene(0).split()
    small = scene(0).resize((40, 40))
    flat = Image.new("RGB", (100, 100), (90, 90, 90))
    statistics = statistics_of(small, flat, Image.merge("RGB", (blue.point(lambda v: v // 3), green, red)))
    assert not known.copies(statistics, "test").any()


def test_more_images_have_fewer_windows_and_then_none(known: RunHashes, monkeypatch: pytest.MonkeyPatch):
    statistics, splits = statistics_of(*map(scene, range(12))), np.array(["train"] * 12)
    found = {}
    for budget in (12 * 194, 12 * 194 - 1, 12 * 18 - 1):
        monkeypatch.setattr("linnaeus.inference.perceptual.BUDGET", budget)
        run = RunHashes.of(statistics, splits)
        found[run.windows] = int(run.copies(statistics, "test").sum())
        assert RunHashes.from_dict(run.to_dict(), Path("m")) is not None
    assert found == {12: 12, 1: 12, 0: 0}


@pytest.mark.parametrize("change", [{"windows": 13}, {"windows": "9"}, {"train": "AAAA"}, {"valid": None}])
def test_a_damaged_record_is_refused(known: RunHashes, change: dict):
    with pytest.raises(UserError, match="m: its perceptual hashes are damaged"):
        RunHashes.from_dict(known.to_dict() | change, Path("m"))
    assert RunHashes.from_dict({"hash": "other"}, Path("m")) is None
    assert known.to_dict()["hash"] == HASH


def test_a_padded_original_is_known_without_its_border():
    run = RunHashes.of(
        statistics_of(*(PADDED["white border"](scene(seed)) for seed in range(4))), np.array(["train"] * 4)
    )
    assert run.copies(statistics_of(scene(2), scene(50)), "test").tolist() == [True, False]


def test_records_of_nine_windows_are_read():
    """Those of earlier versions."""
    statistics = statistics_of(*map(scene, range(4)))
    hashes = {
        "train": PerceptualHashes.of(statistics, np.arange(4), 9),
        "valid": PerceptualHashes.of(statistics, np.arange(0), 9),
    }
    read = RunHashes.from_dict(RunHashes(hashes, 9).to_dict(), Path("m"))
    assert read is not None
    assert read.copies(statistics_of(COPIES["cropped by 5 %"](scene(1)), scene(50)), "test").tolist() == [True, False]
