"""10 and 12 bits in a 16-bit file: the used range becomes 0..255, in training and wherever the model is used."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import write_recipe

import linnaeus
from linnaeus.data.images.bitdepth import unstated_range, used_bits
from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.data.sources import open_source
from linnaeus.preprocess import Preprocessing


def write_deep(root: Path, bits: int, suffix: str = ".png") -> Path:
    rng = np.random.default_rng(0)
    for name, low in (("a", 0), ("b", 1 << (bits - 1))):
        (root / name).mkdir(parents=True)
        for k in range(6):
            pixels = rng.integers(low, low + (1 << (bits - 1)), (16, 16)).astype(np.uint16)
            pixels[0, 0] = (1 << bits) - 1
            Image.fromarray(pixels).save(root / name / f"{k}{suffix}")
    return root


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(("bits", "expected"), [(10, 10), (12, 12), (16, None)])
def test_the_used_bits_are_measured(tmp_path: Path, bits: int, expected: int | None, suffix: str):
    table = open_source(write_deep(tmp_path, bits, suffix))
    assert used_bits(table, np.arange(len(table))) == expected
    row = load_row(tmp_path / f"b/0{suffix}", RowSpec(16, channels=1, bits=bits))
    assert row.max() == 255
    assert len(np.unique(row)) > 60  # without it, 10 bits are 4 gray levels


def test_values_beyond_the_range_are_clipped_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    Image.fromarray(np.full((4, 4), 5000, np.uint16)).save(tmp_path / "x.png")
    with caplog.at_level(logging.WARNING):
        assert load_row(tmp_path / "x.png", RowSpec(4, channels=1, bits=11)).min() == 255
    assert "above 2047" in caplog.text


def test_recorded_in_recipe_and_model_file(tmp_path: Path, capfd: pytest.CaptureFixture[str], undrawn_runs: None):
    data = write_deep(tmp_path / "data", 12)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    run = linnaeus.train(data, recipe=str(recipe), out=tmp_path / "run")
    assert "use 12 bits: 4095 becomes white" in capfd.readouterr().err
    assert "bits = 12" in (run.path / "recipe.toml").read_text()
    model = linnaeus.load(run.path)
    assert model.preprocessing.bits == 12
    assert len(np.unique(model.preprocessing.load(data / "b/0.png"))) > 60


def test_model_files_without_bits_keep_their_scale():
    old = Preprocessing(32, 32).to_dict()
    assert "bits" not in old
    assert Preprocessing.from_dict(old).bits == 16
    assert RowSpec(8).key() == (8, "crop", "bilinear", 3)  # the key of stores that exist


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_a_range_that_no_file_states_is_warned_of(
    dtype: type, tmp_path: Path, capfd: pytest.CaptureFixture[str], undrawn_runs: None
):
    """The same value is black in one image and white in another one, because each is scaled by its own pixels."""
    for low, name in enumerate("ab"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for k in range(6):
            pixels = np.arange(256).reshape(16, 16) * (k + 1) - 100 * low
            Image.fromarray(pixels.astype(dtype)).save(tmp_path / "data" / name / f"{k}.tif")
    table = open_source(tmp_path / "data")
    assert unstated_range(table, np.arange(12)).endswith(".tif")
    assert unstated_range(open_source(write_deep(tmp_path / "deep", 12)), np.arange(12)) == ""
    linnaeus.train(tmp_path / "data", str(write_recipe(tmp_path / "r.toml", {"epochs": 1})), out=tmp_path / "run")
    assert "states no range of its floats or 32-bit integers" in capfd.readouterr().err
