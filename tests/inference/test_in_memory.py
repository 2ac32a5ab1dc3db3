"""`predict` takes what Python programs hold: Pillow images, arrays, tensors, files, folders. The rest is refused."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import write_images, write_tiny_model

from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier, load
from linnaeus.inference.evaluate import evaluate_model
from linnaeus.inference.in_memory import readable
from linnaeus.inference.prediction import Prediction, Predictions
from linnaeus.metrics.assessment import Assessment
from linnaeus.metrics.classification import Figures

GRADIENT = np.add.outer(np.arange(28), np.arange(28)).astype(np.uint8) * 4
COLOR = np.stack([GRADIENT, GRADIENT[::-1], GRADIENT.T // 2], -1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(write_tiny_model(tmp_path_factory.mktemp("m") / "m.safetensors"), device="cpu")


class Somewhere(os.PathLike):
    def __init__(self, path: Path):
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_every_way_to_give_an_image_gives_the_same_answer(classifier: Classifier, tmp_path: Path):
    path = tmp_path / "a.png"
    Image.fromarray(COLOR).save(path)
    expected = classifier.predict(path).readable()
    read_only = COLOR.copy()
    read_only.flags.writeable = False
    ways: list[Any] = [
        str(path),
        Somewhere(path),
        path.read_bytes(),
        bytearray(path.read_bytes()),
        memoryview(path.read_bytes()),
        io.BytesIO(path.read_bytes()),
        Image.open(path),
        Image.fromarray(COLOR),
        COLOR,
        read_only,
        COLOR[::-1][::-1],
        np.asfortranarray(COLOR),
        COLOR[:, :, ::-1][:, :, ::-1],
        COLOR / 255,
        (COLOR / 255).astype(np.float32),
        COLOR.astype(np.int64),
        np.concatenate([COLOR, np.full((28, 28, 1), 255, np.uint8)], 2),
        torch.from_numpy(COLOR).permute(2, 0, 1),
        torch.from_numpy(COLOR / 255).permute(2, 0, 1).requires_grad_(),
        (torch.from_numpy(COLOR).permute(2, 0, 1) / 255).half().double(),
    ]
    for way in ways:
        found = classifier.predict(way)
        assert isinstance(found, Prediction)
        assert found.probabilities == pytest.approx(expected, abs=2e-3), type(way)
    with path.open("rb") as file:
        assert classifier.predict(file).probabilities == pytest.approx(expected)
    several = classifier.predict(ways[:10])
    assert [p.index for p in several] == [int(np.argmax(expected))] * 10


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "I;16", "I", "F"])
def test_pillow_images_of_all_modes(mode: str):
    if mode == "I;16":
        image = Image.fromarray(GRADIENT.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(COLOR).convert("L" if mode in ("LA", "PA") else "RGB").convert(mode)
    assert image.mode == mode
    pixels = readable(image, "image 1")
    assert isinstance(pixels, np.ndarray)
    assert pixels.dtype == np.uint8
    assert pixels.shape in ((28, 28), (28, 28, 3))
    assert pixels.std() > 0


def test_a_pillow_image_is_turned_upright(tmp_path: Path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOR[:14]).save(tmp_path / "a.png", exif=exif)
    assert np.asarray(readable(Image.open(tmp_path / "a.png"), "a")).shape == (28, 14, 3)


def test_gray_in_every_shape(classifier: Classifier):
    expected = classifier.predict(GRADIENT).probabilities
    for way in (GRADIENT[:, :, None], torch.from_numpy(GRADIENT), torch.from_numpy(GRADIENT)[None]):
        assert classifier.predict(way).probabilities == pytest.approx(expected)


def test_a_mask_that_hides_nothing_is_no_mask(classifier: Classifier):
    plain, masked = (classifier.predict(image) for image in (GRADIENT, np.ma.masked_greater(GRADIENT, 250)))
    assert plain.top() == masked.top()


def test_folders_batches_and_lists(classifier: Classifier, tmp_path: Path):
    folder = tmp_path / "f"
    (folder / "g").mkdir(parents=True)
    for name in ("1.png", "2.png", "g/3.png"):
        Image.fromarray(COLOR).save(folder / name)
    inside = [str(folder / name) for name in ("1.png", "2.png", "g/3.png")]
    found: Any = classifier.predict(folder)
    assert [p.path for p in found] == inside
    assert [p.path for p in classifier.predict([COLOR, str(folder), inside[0]])] == ["image 1", *inside, inside[0]]
    assert [p.path for p in classifier.predict(np.array(inside))] == inside
    for batch in (np.stack([COLOR] * 3), torch.rand(3, 3, 28, 28)):
        found = classifier.predict(batch)
        assert len(found) == 3
    assert len(classifier.predict(path for path in inside)) == 3
    assert classifier.predict([]) == []
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in this folder"):
        classifier.predict(tmp_path / "empty")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (None, "NoneType is not an image"),
        (3, "int is not an image"),
        ({"a": 1}, "dict is not an image"),
        ([COLOR], "list is not an image"),
        (io.StringIO("x"), "a file opened as text"),
        (COLOR.transpose(2, 0, 1), r"an array of shape \(3, 28, 28\).* array.transpose\(1, 2, 0\)"),
        (np.zeros((0, 3), np.uint8), r"an array of shape \(0, 3\)"),
        (COLOR * 1.0, "float64 values from 0 to 216; give uint8, or float in 0 to 1"),
        (np.full((28, 28), np.nan), "float64 values from nan to nan"),
        (COLOR.astype(np.int16) - 20, "int16 values from -20 to"),
        (COLOR.astype(complex), "an array of complex128"),
        (torch.zeros(28, 28, 3), r"a tensor of shape \(28, 28, 3\).* tensor.permute\(2, 0, 1\)"),
        (torch.randn(3, 28, 28), "float32 values from -"),
        (np.ma.masked_greater(GRADIENT, 200), "a masked array, 10 of whose values are masked; fill them"),
    ],
)
def test_what_is_no_image_is_named_with_its_position(wrong: Any, told: str, classifier: Classifier):
    with pytest.raises(UserError, match=f"^image 2: {told}") as caught:
        classifier.predict([COLOR, wrong])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("https://a.org/x.jpg", "an address"),
        ("s3://a/x.jpg", "an address"),
        ("data:image/png;base64,iVBO", "an address"),
        ("*.jpg", "no such file; of a pattern give the files"),
        ("x.jpg", "No such file or directory"),
    ],
)
def test_an_address_and_a_pattern_are_no_missing_files(name: str, told: str, classifier: Classifier):
    with pytest.raises(UserError, match=re.escape(f"{name}: {told}")):
        classifier.predict(name)


def test_a_file_opened_as_text_is_not_read(classifier: Classifier, tmp_path: Path):
    Image.fromarray(COLOR).save(tmp_path / "x.png")  # its first byte is no UTF-8
    with (tmp_path / "x.png").open(encoding="utf-8") as file, pytest.raises(UserError, match="binary mode"):
        classifier.predict(file)


def test_a_damaged_file_in_memory_is_an_error_of_its_image(classifier: Classifier, tmp_path: Path):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)).save(whole, "PNG")
    cut = io.BytesIO(whole.getvalue()[:2000])
    found = classifier.predict([COLOR, Image.open(cut), b"", COLOR])
    assert [p.error is None for p in found] == [True, False, False, True]
    assert "cannot be decoded" in str(found[1].error)


def test_a_prediction_is_short_in_a_terminal_and_a_notebook(classifier: Classifier):
    found = Prediction("<b>.jpg", ("0", "1"), ("rose", "<i>x"), np.array([0.03, 0.97]), threshold=0.98)
    assert repr(found) == "Prediction('<b>.jpg', '<i>x', 97.0 %, unsure)"
    shown = found._repr_html_()
    assert "<b>" not in shown
    assert "<i>" not in shown
    assert "&lt;b&gt;.jpg: unsure" in shown
    assert repr(Prediction("a.jpg", ("0",), ("0",), None, error="empty")) == "Prediction('a.jpg', error='empty')"
    assert "unsure" in Predictions([found])._repr_html_()
    several = classifier.predict([COLOR] * 12)
    assert "12 predictions, the first 10" in several._repr_html_()


def test_predictions_are_a_table_without_pixels(classifier: Classifier):
    pandas = pytest.importorskip("pandas")
    table = classifier.predict([COLOR, b"no image"]).to_pandas(top=2)
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns)[:7] == ["path", "predicted", "probability", "unsure", "error", "class_1", "name_1"]
    assert len(table.columns) == 13
    assert table["predicted"].tolist()[:1] == table["name_1"].tolist()[:1]
    assert table["predicted"].isna().tolist() == [False, True]
    assert table["probability_1"][0] >= table["probability_2"][0]
    assert table["class_1"].isna().tolist() == [False, True]
    with pytest.raises(UserError, match="its column of paths"):
        classifier.predict(table)
    assert len(classifier.predict([COLOR, b"x"]).to_pandas()) == 2


def test_without_pandas_one_line_says_what_to_install(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pandas", None)
    with pytest.raises(UserError, match=r"^to_pandas needs pandas: pip install pandas$"):
        classifier.predict([COLOR]).to_pandas()


@pytest.mark.parametrize("absolute", [False, True])
def test_the_tables_of_evaluate_and_predict_can_be_joined(
    absolute: bool, classifier: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The paths of one were relative to the source, those of the other to the working directory."""
    pandas = pytest.importorskip("pandas")
    write_images(tmp_path / "d", each=2)
    monkeypatch.chdir(tmp_path)
    source = str(tmp_path / "d") if absolute else "d"
    answers = classifier.predict(source)
    assert isinstance(answers, Predictions)
    measured, predicted = classifier.evaluate(source).to_pandas(), answers.to_pandas()
    same = ["path", "predicted", "probability", "unsure", "unknown", "distance"]
    joined = pandas.merge(measured, predicted, on="path")
    assert len(joined) == len(measured) == len(predicted) == 6
    assert set(same) <= set(measured.columns) & set(predicted.columns)
    assert (joined["predicted_x"] == joined["predicted_y"]).all()
    assert all(Path(path).is_file() and Path(path).is_absolute() == absolute for path in measured["path"])


def test_an_evaluation_has_its_confusion_and_a_table(classifier: Classifier, tmp_path: Path):
    pytest.importorskip("pandas")
    write_images(tmp_path / "d" / "test", each=4)
    found = classifier.evaluate(tmp_path / "d")
    assert found.confusion.shape == (3, 3)
    assert (found.confusion.sum(), np.trace(found.confusion)) == (found.n, found.correct)
    assert found.confusion.sum(1).tolist() == [4, 4, 4]
    table = found.to_pandas()
    assert list(table.columns) == [
        "path",
        "true",
        "predicted",
        "probability",
        "correct",
        "unsure",
        "unknown",
        "distance",
    ]
    assert table["correct"].sum() == found.correct
    assert set(table["true"]) == {"name of 0", "name of 1", "name of 2"}
    assert f"{found.correct} of {found.n}" in found._repr_html_()
    whole = evaluate_model(classifier, classifier.images(tmp_path / "d"), console=Console(quiet=True))
    assert whole is not None
    assert isinstance(whole.assessment, Assessment)
    assert (whole.assessment.metrics.confusion == found.confusion).all()
    same = Figures.from_dict(found.to_dict())
    assert found == same
    assert same == found
