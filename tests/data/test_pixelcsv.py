"""CSVs with pixels in their cells: FER2013, and digits as Kaggle publishes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from laid_out import refused
from tiny import SIDE, samples, write_recipe

import linnaeus
from linnaeus.data.sources import open_source


def row(*values: object, side: int = 4) -> str:
    return " ".join(str(values[k % len(values)]) for k in range(side * side))


def test_fer2013_with_its_splits_and_names(tmp_path: Path):
    parts = ("Training", "PublicTest", "PrivateTest")
    lines = [f'{k % 7},"{row(k, 255)}",{part}' for part in parts for k in range(14)]
    (tmp_path / "fer2013.csv").write_text("\n".join(["emotion,pixels,Usage", *lines, ""]))
    table = open_source(tmp_path / "fer2013.csv")
    assert table.names == ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
    assert table.sizes() == {"train": 14, "valid": 14, "test": 14}
    assert table.images is not None
    assert table.images[3].tolist() == [[3, 255, 3, 255]] * 4
    assert (table.labels[3], table.sample_id(3)) == (3, "train[3]")
    assert table.notes[0] == "fer2013.csv: 42 images of 4 x 4 gray pixels are in its cells"
    assert "names of the emotions are those of FER2013" in table.notes[-1]


def test_digits_with_a_column_for_each_pixel_are_trained_on(tmp_path: Path):
    images, labels = samples(90)
    header = ",".join(["label", *(f"pixel{k}" for k in range(SIDE * SIDE))])
    lines = [",".join(map(str, [label, *image.ravel()])) for image, label in zip(images, labels, strict=True)]
    (tmp_path / "train.csv").write_text("\n".join([header, *lines]))
    table = open_source(tmp_path / "train.csv")
    assert table.images is not None
    assert np.array_equal(table.images, images)
    assert table.classes == ("0", "1", "2")
    recipe = write_recipe(tmp_path / "r.toml")
    run = linnaeus.train(tmp_path / "train.csv", str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    assert run.load().evaluate(tmp_path / "train.csv").n > 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"0,{row(1, side=3)}", ":3: not a square of whole numbers from 0 to 255, as wide as the first"),
        (f"0,{row(256)}", ":3: not a square"),
        (f"0,{row(-1)}", ":3: not a square"),
        (f"0,{row('x')}", ":3: not a square"),
        ("0", ":3: not a square"),
        (f",{row(1)}", ":3: no label; write one"),
    ],
)
def test_a_row_that_is_no_image_is_named(tmp_path: Path, line: str, said: str):
    (tmp_path / "f.csv").write_text(f"label,pixels\n0,{row(1)}\n{line}\n1,{row(2)}\n")
    refused(tmp_path / "f.csv", said)


def test_pixels_without_images_or_labels(tmp_path: Path):
    (tmp_path / "f.csv").write_text("label,pixels\n")
    refused(tmp_path / "f.csv", "no images below the header")
    (tmp_path / "g.csv").write_text(f"id,pixels\n1,{row(1)}\n")
    refused(tmp_path / "g.csv", "g.csv")
