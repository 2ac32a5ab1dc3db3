"""A model for which no threshold reaches the stated error answers "unsure" to every image, and says so first."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import GRAY, SIDE, mini, write_images, write_label_sets, write_recipe

from linnaeus.errors import UserError
from linnaeus.inference.classifier import Prediction, load
from linnaeus.inference.runners import Scores, TorchRunner
from linnaeus.inference.writers import open_writer
from linnaeus.modelfile.safetensors import ModelFile, write_model

CLASSES = ("0", "1", "2")
NOTICE = (
    'no threshold is expected to keep wrong answers to 2 % or fewer, so this model answers "unsure" to every image; '
    "train with more images, or allow more errors (--set error=0.1)"
)
CALIBRATION = {
    "temperature": 1.0,
    "split": "valid",
    "abstention": {"target_risk": 0.02, "n": 40, "estimated": None, "tested": None, "threshold": None},
    "curve": [[0.9, 10, 7], [0.0, 40, 28]],
}
"""As files of today have it: they were read as a threshold of 0, which answers everything."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    about = ModelFile(mini(3).arch, CLASSES, CLASSES, GRAY, calibration=CALIBRATION)
    write_model(tmp_path / "model.safetensors", mini(3).state_dict(), about)
    return tmp_path / "model.safetensors"


def test_every_answer_is_unsure(model: Path, tmp_path: Path):
    images = write_images(tmp_path / "images", each=3)
    classifier = load(model, device="cpu")
    assert all(prediction.unsure for prediction in classifier.stream(sorted(images.rglob("*.png"))))


def test_predict_says_so_first(model: Path, tmp_path: Path, say):
    images = write_images(tmp_path / "images", each=2)
    said = say("predict", model, images, "--format", "jsonl")
    assert said.err.splitlines()[0] == f"warning: {model}: {NOTICE}"
    assert {json.loads(line)["unsure"] for line in said.out.splitlines()} == {True}


def test_evaluate_says_so_first_and_counts_no_answer_as_given(model: Path, tmp_path: Path, say):
    images = write_images(tmp_path / "images", each=4)
    said = say("evaluate", model, images)
    assert said.err.splitlines()[0] == f"warning: {model}: {NOTICE}"
    assert "none: no threshold is expected to keep wrong answers so few" in said.out


def test_train_says_so_first_and_once(tmp_path: Path, say):
    data = tmp_path / "data"
    for name in CLASSES:  # the same kind of noise in each class
        (data / name).mkdir(parents=True)
        for i, image in enumerate(np.random.default_rng(int(name)).integers(0, 255, (20, SIDE, SIDE), np.uint8)):
            Image.fromarray(image).save(data / name / f"{i}.png")
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    said = say("train", data, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu")
    lines = said.out.splitlines()
    (place,) = [k for k, line in enumerate(lines) if NOTICE in line]
    assert lines[place] == f"unsure    {NOTICE}"
    assert place < next(k for k, line in enumerate(lines) if line.startswith("valid "))


def test_a_recipe_allows_more_errors(tmp_path: Path, say):
    """The share goes into the rule of the model; it means nothing where images have several labels."""
    images, recipe = write_images(tmp_path / "images", each=12), write_recipe(tmp_path / "r.toml", {"epochs": 1})
    said = say("train", images, "--recipe", recipe, "--set", "error=0.9", "--out", tmp_path / "run", "--device", "cpu")
    assert "(90 % are allowed; " in said.out
    calibration = load(tmp_path / "run").calibration
    assert calibration is not None
    assert (calibration.rule.target_risk, calibration.rule.threshold) == (0.9, 0)
    several = write_label_sets(tmp_path / "several")
    refused = say("train", several, "--recipe", recipe, "--set", "error=0.1", "--out", tmp_path / "no")
    assert refused.status == 2
    assert refused.err.startswith("error: error = 0.1 needs one label per image")


def test_a_probability_that_is_not_a_number_is_unsure():
    broken = Prediction("a.png", ("a", "b"), ("a", "b"), np.full(2, np.nan), threshold=0.5)
    assert broken.unsure
    assert not Prediction("a.png", ("a", "b"), ("a", "b"), np.array([0.5, 0.5]), threshold=0.5).unsure


def break_bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the network compute NaN for images that are bright: each second class of the images here."""
    original = TorchRunner.scores

    def broken(self: TorchRunner, images: torch.Tensor) -> Scores:
        scores = original(self, images)
        scores.logits[images.float().mean((1, 2, 3)).numpy() > 128] = np.nan
        return scores

    monkeypatch.setattr(TorchRunner, "scores", broken)


def bright_and_dark(folder: Path) -> Path:
    for name, value in (("a.png", 10), ("b.png", 250), ("c.png", 20)):
        folder.mkdir(exist_ok=True)
        Image.new("L", (28, 28), value).save(folder / name)
    return folder


@pytest.mark.parametrize("form", ["jsonl", "csv", "table"])
def test_an_answer_that_is_not_finite_is_an_error_of_its_image(
    form: str, model: Path, tmp_path: Path, say, monkeypatch
):
    break_bright(monkeypatch)
    said = say("predict", model, bright_and_dark(tmp_path / "i"), "--format", form)
    assert said.status == 1
    assert "b.png: the network computes values that are not finite" in said.err
    assert "1 of 3 images could not be read" not in said.err
    assert "1 of 3 images got no answer" in said.err
    assert "nan" not in said.out.lower()
    assert said.out.count("a.png") == said.out.count("c.png") == 1
    if form == "jsonl":
        lines = [json.loads(line, parse_constant=pytest.fail) for line in said.out.splitlines()]
        assert [(bool(line["error"]), len(line["top"])) for line in lines] == [(False, 1), (True, 0), (False, 1)]
    if form == "csv":
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert [bool(row["error"]) for row in rows] == [False, True, False]


def test_no_figure_counts_an_answer_that_is_not_finite(model: Path, tmp_path: Path, monkeypatch):
    break_bright(monkeypatch)
    for label in ("0", "1"):
        (tmp_path / "d").mkdir(exist_ok=True)
        bright_and_dark(tmp_path / "d" / label)
    with pytest.raises(UserError, match=r"^2 of 6 images: the network computes values that are not finite"):
        load(model, device="cpu").evaluate(tmp_path / "d")
    with pytest.raises(UserError, match="not finite"):
        load(model, device="cpu").predict(tmp_path / "d" / "0" / "b.png")


@pytest.mark.parametrize("form", ["jsonl", "csv", "table"])
def test_no_writer_writes_nan(form: str):
    file = io.StringIO()
    broken = Prediction("a.png", ("a", "b"), ("a", "b"), np.full(2, np.nan), threshold=0.5)
    open_writer(form, file, 2)(broken)
    assert "nan" not in file.getvalue().lower()


def test_a_model_without_calibration_says_that_it_is_never_unsure(model: Path, tmp_path: Path, say):
    about = ModelFile(mini(3).arch, CLASSES, CLASSES, GRAY)
    write_model(tmp_path / "plain.safetensors", mini(3).state_dict(), about)
    said = say("predict", tmp_path / "plain.safetensors", bright_and_dark(tmp_path / "i"))
    assert said.err.startswith(f"warning: {tmp_path / 'plain.safetensors'}: the model is not calibrated, so its prob")
    assert 'never answers "unsure"' in said.err
