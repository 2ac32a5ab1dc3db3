"""A model for which no threshold reaches the stated error answers "unsure" to every image, and says so first."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import GRAY, mini, write_images

from linnaeus.inference.classifier import Prediction, load
from linnaeus.modelfile.safetensors import ModelFile, write_model

CLASSES = ("0", "1", "2")
NOTICE = 'at no threshold are at most 2 % of the answers wrong, so this model answers "unsure" to every image'
CALIBRATION = {
    "temperature": 1.0,
    "split": "valid",
    "abstention": {"error": 0.02, "n": 40, "estimated": None, "promised": None, "threshold": None},
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
    assert "none: even the most confident answers are wrong more often" in said.out


def test_a_probability_that_is_not_a_number_is_unsure():
    broken = Prediction("a.png", ("a", "b"), ("a", "b"), np.full(2, np.nan), threshold=0.5)
    assert broken.unsure
    assert not Prediction("a.png", ("a", "b"), ("a", "b"), np.array([0.5, 0.5]), threshold=0.5).unsure
