"""Copies among the measured images: they widen no sample, and their labels are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scenes import write_scenes
from tiny import write_images, write_recipe, write_tiny_model

import linnaeus
from linnaeus.inference.perceptual import RunHashes
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.safetensors import read_model, write_model
from linnaeus.stores.contents import with_copies


@pytest.mark.parametrize(
    ("groups", "copies", "expected"),
    [
        (None, [1, 2, 3], None),
        (None, [5, 2, 5], [0, 1, 0]),
        (None, [0, 0, 3], None),  # unknown
        ([7, 7, 8, 9], [1, 2, 2, 3], [0, 0, 0, 3]),
        ([4, 5, 5, 6, 6], [1, 1, 2, 2, 3], [0, 0, 0, 0, 0]),
    ],
)
def test_groups_with_copies(groups: list[int] | None, copies: list[int], expected: list[int] | None):
    found = with_copies(None if groups is None else np.array(groups), np.array(copies, np.uint64))
    assert (None if found is None else found.tolist()) == expected


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model that knows the images of its run, of which there are none."""
    write_tiny_model(tmp_path / "m.safetensors")
    network, about = read_model(tmp_path / "m.safetensors")
    about.data["contents"] = {"hash": "sha256/48", "train": "", "valid": "", "test": ""}
    about.data["perceptual"] = RunHashes({}, 9).to_dict() | {"train": "", "valid": ""}
    write_model(tmp_path / "m.safetensors", network.state_dict(), about)
    return tmp_path / "m.safetensors"


@pytest.mark.parametrize("altered", [False, True], ids=["exact", "altered"])
def test_copies_do_not_narrow_the_interval(tmp_path: Path, model: Path, say, altered: bool):
    source = write_scenes(tmp_path / "images", ("0", "1"), each=6)
    for path in sorted(source.glob("*/*.jpg")):
        for k in range(3):
            if altered:
                with Image.open(path) as image:
                    image.save(path.with_name(f"{path.stem} {k}.jpg"), quality=70 + k)
            else:
                shutil.copy(path, path.with_name(f"{path.stem} {k}.jpg"))
    said = say("evaluate", model, source, "--json", tmp_path / "e.json", "--device", "cpu")
    assert said.status == 0, said.err
    assert "36 of these 48 images repeat another one: intervals count each image once" in said.err
    (figures,) = json.loads((tmp_path / "e.json").read_text()).values()
    assert (figures["n"], figures["groups"]) == (48, 12)
    if not altered:
        correct = np.zeros(12, bool)
        correct[: figures["correct"] // 4] = True
        expected = proportion_interval(np.repeat(correct, 4), np.repeat(np.arange(12), 4))
        assert figures["accuracy_ci95"] == pytest.approx(expected)


def test_exact_copies_with_two_labels(tmp_path: Path, model: Path, say):
    source = write_images(tmp_path / "images", each=4)
    shutil.copy(source / "0" / "0 0.png", source / "1" / "copy.png")
    said = say("evaluate", model, source, "--device", "cpu")
    assert "2 of 13 images have an exact copy with a different label" in said.err
    with pytest.warns(UserWarning, match="2 of 13 images have an exact copy with a different label"):
        linnaeus.load(model).evaluate(source)


@pytest.mark.parametrize("altered", [False, True], ids=["exact", "altered"])
def test_copies_among_the_validation_images_of_a_run(tmp_path: Path, altered: bool, say):
    for split, seed in (("train", 0), ("valid", 50)):
        write_scenes(tmp_path / "images" / split, each=9, seed=seed)
    for path in sorted((tmp_path / "images" / "valid").glob("*/*.jpg")):
        if altered:
            with Image.open(path) as image:
                image.save(path.with_name(f"copy of {path.name}"), quality=70)
        else:
            shutil.copy(path, path.with_name(f"copy of {path.name}"))
    recipe, run = write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "run"
    said = say("train", tmp_path / "images", "--recipe", recipe, "--out", run)
    assert "valid 36 (18 different images)" in said.out
    valid = json.loads((run / "metrics.json").read_text())["valid"]
    assert (valid["n"], valid["groups"]) == (36, 18)
    assert say("evaluate", run, tmp_path / "images", "--json", tmp_path / "e.json").status == 0
    found = json.loads((tmp_path / "e.json").read_text())["valid"]
    assert (found["groups"], found["accuracy_ci95"]) == (18, valid["accuracy_ci95"])


def test_other_shares_of_the_classes_are_warned_of(tmp_path: Path, model: Path, say):
    """The probabilities of a model that was calibrated on equal shares hold for these."""
    source = write_scenes(tmp_path / "images", ("0", "1"), each=20)
    for path in sorted((source / "1").iterdir())[1:]:
        path.unlink()
    network, about = read_model(model)
    out = Outputs(np.arange(200) % len(about.classes), np.random.default_rng(0).normal(size=(200, len(about.classes))))
    about.calibration = Calibration.fit(out, "valid", 1).to_dict()
    write_model(model, network.state_dict(), about)
    said = say("evaluate", model, source)
    assert said.status == 0, said.err
    assert "of those that calibrated the model: probabilities and the limit for wrong answers hold" in said.err
    about.calibration["class_counts"] = []  # a file of an earlier version
    write_model(model, network.state_dict(), about)
    assert "calibrated the model" not in say("evaluate", model, source).err
