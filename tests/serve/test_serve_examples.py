"""Example images of the page: reduced, without metadata, and shown only to those who may use the model."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import client, png

from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier
from linnaeus.preprocess import Preprocessing
from linnaeus.serve.examples import MOST, read_examples

PREPROCESSING = Preprocessing(256, 224)


def opened(example: dict[str, str]) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(example["image"].partition(",")[2])))


def test_a_photograph_is_turned_reduced_and_loses_its_metadata(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8825)[1] = "N"  # GPS
    Image.linear_gradient("L").resize((3000, 2000)).convert("RGB").save(tmp_path / "a.jpg", exif=exif)
    Image.new("RGB", (300, 200), "red").save(tmp_path / "b.tif")  # browsers cannot show it
    photo, other = read_examples(str(tmp_path), PREPROCESSING)
    assert (photo["name"], other["name"]) == ("a.jpg", "b.tif")
    assert (opened(photo).format, opened(photo).size) == ("JPEG", (683, 1024))
    assert opened(other).format == "JPEG"
    assert (tmp_path / "a.jpg").read_bytes().count(b"a camera") == 1
    assert not opened(photo).getexif()
    assert b"a camera" not in base64.b64decode(photo["image"].partition(",")[2])


def test_small_images_keep_their_pixels(tmp_path: Path):
    (tmp_path / "digit.png").write_bytes(png())
    (example,) = read_examples(str(tmp_path), PREPROCESSING)
    assert opened(example).format == "PNG"
    assert np.array_equal(np.asarray(opened(example)), np.asarray(Image.open(io.BytesIO(png())).convert("RGB")))


def test_sixteen_bits_are_reduced_as_for_the_network(tmp_path: Path):
    values = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)  # a sensor of 12 bits
    Image.fromarray(values).save(tmp_path / "deep.png")
    model = Preprocessing(16, 16, bits=12)
    (example,) = read_examples(str(tmp_path), model)
    (tmp_path / "shown.png").write_bytes(base64.b64decode(example["image"].partition(",")[2]))
    assert np.array_equal(model.load(tmp_path / "shown.png"), model.load(tmp_path / "deep.png"))
    assert np.ptp(np.asarray(opened(example))) == 255, "without the bits of the model, all are nearly black"


def test_too_many_images_and_damaged_ones_are_refused_by_name(tmp_path: Path):
    for i in range(MOST + 1):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    with pytest.raises(UserError, match=f"{MOST + 1} images; a page shows at most {MOST}"):
        read_examples(str(tmp_path), PREPROCESSING)
    (tmp_path / "0.png").write_bytes(b"no image")
    (tmp_path / "1.png").unlink()
    with pytest.raises(UserError, match=r"0\.png"):
        read_examples(str(tmp_path), PREPROCESSING)


@pytest.mark.parametrize("command", [["serve"], ["export", "--to", "web"]])
def test_a_folder_without_images_is_refused_before_the_model_is_loaded(
    model: Path, tmp_path: Path, say: Callable[..., Any], command: list[str], monkeypatch: pytest.MonkeyPatch
):
    name, *rest = command
    monkeypatch.setattr(f"linnaeus.cli.{name}.load_model", None)
    for folder, message in ((tmp_path / "missing", "no such folder"), (tmp_path, "no images in this folder")):
        said = say(name, model, *rest, "--examples", folder)
        assert (said.status, said.err.count("\n")) == (2, 1)
        assert message in said.err


def test_another_export_has_no_examples(model: Path, tmp_path: Path, say: Callable[..., Any]):
    said = say("export", model, "--to", "onnx", "--examples", tmp_path)
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "only --to web writes a page; omit --examples" in said.err


def test_examples_need_the_token(classifier: Classifier):
    examples = ({"name": "a.png", "image": "data:image/png;base64,"},)
    with client(classifier, token="geheim", examples=examples) as web:
        allowed = {"Authorization": "Bearer geheim"}
        assert web.get("/model", headers=allowed).json()["examples"] is True
        assert web.get("/examples.json", headers=allowed).json() == list(examples)
    with client(classifier) as web:
        assert web.get("/model").json()["examples"] is False
