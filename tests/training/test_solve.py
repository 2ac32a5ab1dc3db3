"""What a run says about the head that it solves."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from tiny import write_idx, write_images, write_label_sets, write_recipe

import linnaeus
from linnaeus.export.model_card import model_card
from linnaeus.metrics.intervals import wilson
from linnaeus.models import linear_probe
from linnaeus.report.page import write_report
from linnaeus.training.finish.evaluation import limits_of
from linnaeus.training.solve import _interval, _quality

pytestmark = pytest.mark.usefixtures("undrawn_runs")
SEEN = "; no cross-validated accuracy, because the network below has been trained on these images\n"


@pytest.mark.parametrize("large", [False, True])
def test_the_accuracy_of_one_fold_is_not_called_cross_validated(
    large: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    if large:
        monkeypatch.setattr(linear_probe, "LARGE", 1)
        monkeypatch.setattr(linear_probe, "MIN_HELD_OUT", 1)
    source = write_idx(tmp_path / "idx")
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1})
    linnaeus.train(source, str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    said = capsys.readouterr().out
    accuracy, interval = r"accuracy \d+\.\d % \(\d+ of \d+", r", 95 % interval \d+\.\d % to \d+\.\d %\)"
    assert bool(re.search("cross-validated training " + accuracy + interval, said)) != large
    assert bool(re.search("one fold was held out: its " + accuracy + interval, said)) == large


def test_versions_of_one_image_do_not_narrow_the_interval():
    rng = np.random.default_rng(0)
    labels, images = np.tile(rng.integers(0, 2, 40), 3), np.tile(np.arange(40), 3)
    probabilities = np.eye(2)[np.where(images < 8, 1 - labels, labels)]  # all versions of an image are predicted alike
    head = SimpleNamespace(held_out=np.arange(120), probabilities=probabilities, folds=5)
    low, high = wilson(32, 40)
    stated = _quality(cast(Any, head), labels, _interval(cast(Any, head), labels, images), views=3)
    found = [float(text) for text in re.findall(r"(\d+\.\d) %", stated.partition("interval")[2])]
    assert "accuracy 80.0 % (all views of 40 images, " in stated
    assert found[1] - found[0] > 100 * (high - low) - 0.1


def test_with_few_validation_images_the_held_out_accuracy_stands_beside_theirs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """A figure of 6 images says little where 54 others were each predicted by a head that had not seen them."""
    source = write_idx(tmp_path / "idx", train=60, test=3)
    views = {"views": 2, "augment": {"hflip": 0.5}}
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1} | views)
    run = linnaeus.train(source, str(recipe), out=tmp_path / "run", device="cpu")
    metrics = json.loads((run.path / "metrics.json").read_text())["valid"]
    held_out, valid = metrics["held_out"], metrics["accuracy_ci95"]
    assert held_out["n"] + metrics["n"] == 60
    assert f"(all views of {held_out['n']} images, 95 % interval " in capsys.readouterr().out
    assert held_out["accuracy_ci95"][1] - held_out["accuracy_ci95"][0] < valid[1] - valid[0]
    stated = f"{100 * held_out['accuracy']:.2f} % of {held_out['n']} training images, each predicted by a head"
    assert any(line.startswith(f"held out  {stated}") for line in run.trust)
    assert f"Cross-validated: {stated}" in " ".join(write_report(run.path)[0].read_text(encoding="utf-8").split())
    assert f"Cross-validated: {stated}" in model_card(run.load(), "model.safetensors")
    # Where the network below was trained on these images, its held-out accuracy would be far too high.
    recipe = write_recipe(tmp_path / "t.toml", {}, {"train": ["head"], "head": "auto", "epochs": 1})
    trained = linnaeus.train(source, str(recipe), out=tmp_path / "trained", device="cpu", draw=False)
    assert SEEN in capsys.readouterr().out
    assert "held_out" not in json.loads((trained.path / "metrics.json").read_text())["valid"]
    again = {"train": ["head"], "head": "auto", "epochs": 1}
    recipe = write_recipe(tmp_path / "u.toml", again)
    weights = str(trained.path / "model.safetensors")
    warm = linnaeus.train(source, str(recipe), out=tmp_path / "warm", device="cpu", draw=False, weights=weights)
    found = json.loads((warm.path / "metrics.json").read_text())
    assert "held_out" not in found["valid"]
    assert found["unknown"]["trained_features"], "so images of a class that is left out are recognized too well"
    assert SEEN in (said := capsys.readouterr().out)
    assert "cross-validated training accuracy" not in said
    # Of other images it knows nothing.
    other = write_images(tmp_path / "other", each=20)
    linnaeus.train(other, str(recipe), out=tmp_path / "others", device="cpu", draw=False, weights=weights)
    assert SEEN not in (said := capsys.readouterr().out)
    assert "cross-validated training accuracy" in said
    found = json.loads((tmp_path / "others" / "metrics.json").read_text())
    assert "held_out" in found["valid"]
    assert not found["unknown"]["trained_features"]


HEAD = {"train": ["head"], "head": "auto", "epochs": 1}


def test_a_held_out_accuracy_that_knows_nothing_of_the_images_is_not_left_to_look_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    generator = np.random.default_rng(0)
    for i in range(120):
        folder = tmp_path / "noise" / ("rare" if i % 12 == 0 else "common")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (28, 28), dtype=np.uint8)).save(folder / f"{i}.png")
    recipe = write_recipe(tmp_path / "r.toml", HEAD)
    run = linnaeus.train(tmp_path / "noise", str(recipe), out=tmp_path / "run", device="cpu")
    held_out = json.loads((run.path / "metrics.json").read_text())["valid"]["held_out"]
    share = f"{100 * held_out['most_frequent'] / held_out['n']:.2f} %"
    warning = f"not significantly better than always answering the most frequent class: {share}"
    (line,) = (line for line in run.trust if line.startswith("held out  "))
    assert line.endswith(f"; {warning}")
    assert re.search(f"cross-validated training accuracy .*, {warning}\n", capsys.readouterr().out)
    assert f"{warning}." in model_card(run.load(), "model.safetensors").partition("Cross-validated: ")[2]


@pytest.mark.parametrize("views", [{}, {"views": 2, "augment": {"brightness": 0.1}}])
def test_a_solved_head_finds_labels_that_look_wrong(views: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Each training image is predicted by a head that had not seen it, so a run finds wrong labels at no cost."""
    write_images(tmp_path / "pics" / "valid", each=4, seed=9)
    train = write_images(tmp_path / "pics" / "train", each=16)
    for image in (train / "0" / "0 3.png", train / "1" / "1 5.png"):
        image.rename(train / "2" / image.name)
    recipe = write_recipe(tmp_path / "r.toml", HEAD | views)
    run = linnaeus.train(tmp_path / "pics", str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    content = json.loads((run.path / "check-labels.json").read_text(encoding="utf-8"))
    assert "check-labels.json" in json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["checks"]
    wrong = [finding for finding in content["findings"] if finding["severity"] == "warning"]
    assert {finding["paths"][0]: finding["classes"] for finding in wrong} == {
        "train/2/0 3.png": ["2", "0"],
        "train/2/1 5.png": ["2", "1"],
    }
    assert content["notes"] == ["the labels of 48 training images were compared with heads that had not seen the image"]
    line = "labels    2 of 48 training labels look wrong to heads that had not seen the image. The first: train/2/"
    assert line in capsys.readouterr().out
    page = write_report(run.path)[0].read_text(encoding="utf-8")
    assert "Suspicious labels" in page
    assert "train/2/0 3.png" in page


def test_labels_are_not_compared_with_a_network_that_was_trained_on_their_images(tmp_path: Path):
    """It has learned the wrong labels too."""
    recipe = write_recipe(tmp_path / "r.toml", {}, HEAD)
    folder = write_images(tmp_path / "pics", each=10)
    run = linnaeus.train(folder, str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    assert (run.path / "check.json").exists()
    assert not (run.path / "check-labels.json").exists()


def test_where_many_labels_look_wrong_the_line_doubts_the_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """On noise, half of the labels look wrong, and none is."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 28, 28), dtype=np.uint8)
    for i, image in enumerate(noise):
        (tmp_path / "pics" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "pics" / "ab"[i % 2] / f"{i}.png")
    recipe = write_recipe(tmp_path / "r.toml", HEAD)
    linnaeus.train(tmp_path / "pics", str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    assert (
        "had not seen the image; with so many, most may be mistakes of the heads. The first: "
        in capsys.readouterr().out
    )


def test_a_solved_head_finds_missing_and_wrong_labels_of_several(tmp_path: Path):
    source = write_label_sets(tmp_path / "sets", 300)
    header, *rows = [line.split(",") for line in source.read_text().splitlines()]
    for row in rows[10:12]:
        row[1] = str(1 - int(row[1]))
    split = ["train"] * 260 + ["valid"] * 40
    lines = [[*header, "split"], *([*row, part] for row, part in zip(rows, split, strict=True))]
    source.write_text("\n".join(map(",".join, lines)) + "\n")
    recipe = write_recipe(tmp_path / "r.toml", HEAD)
    run = linnaeus.train(source, str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    content = json.loads((run.path / "check-labels.json").read_text(encoding="utf-8"))
    assert "check-labels.json" in json.loads((run.path / "metrics.json").read_text(encoding="utf-8"))["checks"]
    found = {finding["paths"][0]: finding["detail"] for finding in content["findings"] if finding["classes"] == ["p0"]}
    assert set(list(found)[:4]) >= {"10.png", "11.png"}, "the most suspicious first"
    for path, has, *_ in rows[10:12]:
        assert found[path].startswith("has 'p0', which is only " if has == "1" else "lacks 'p0', which is ")


def test_what_the_figures_cannot_tell_comes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """100 % of one validation image, while two of three classes were never measured."""
    write_images(tmp_path / "pics", each=2)
    write_images(tmp_path / "pics", ("0",), each=10)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    run = linnaeus.train(tmp_path / "pics", str(recipe), out=tmp_path / "run", device="cpu", draw=False)
    said = capsys.readouterr().out
    n = run.valid.n
    few = f"limits    {n} validation image{'s' if n > 1 else ''}: too few for any of the figures below to mean much"
    assert said.index(few) < said.index("limits    no validation image of ") < said.index("\nvalid  ")
    assert said.count("limits    ") == 2, "each once"
    assert sum(line.startswith("limits    ") for line in run.trust) == 2


def test_enough_images_of_every_class_have_no_limits():
    assert limits_of("test", np.array([5, 5]), ("a", "b")) == []
    assert limits_of("test", np.array([0, 12]), ("a", "b")) == [
        "no test image of 'a': the figures below say nothing of this class"
    ]
