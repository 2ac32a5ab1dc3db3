"""Images in groups, such as patients: a group is never divided by the split, and intervals account for groups."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scenes import scene
from tiny import write_images, write_recipe

import linnaeus
from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.report.page import write_report
from linnaeus.runs.penalties import read_penalties
from linnaeus.training import solve
from linnaeus.training.finish import unknown
from linnaeus.training.finish.leave_class_out import LeftOut, leave_classes_out

pytestmark = pytest.mark.usefixtures("undrawn_runs")


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    """A CSV with 3 classes of 16 images, 4 of each patient."""
    write_images(tmp_path / "pictures", each=16)
    with (tmp_path / "patients.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        for label in "012":
            for i in range(16):
                writer.writerow([f"pictures/{label}/{label} {i}.png", label, f"{label}-{i // 4}"])
    return tmp_path / "patients.csv"


def test_a_run_on_patients(say, patients: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    grouped: list[int] = []

    def keep(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> LeftOut | None:
        grouped.append(len(np.unique(groups)))
        return leave_classes_out(features, labels, groups)

    monkeypatch.setattr(unknown, "leave_classes_out", keep)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1}, {"train": ["head"], "head": "auto", "epochs": 1})
    run = tmp_path / "run"
    said = say(
        "train",
        patients,
        "--recipe",
        recipe,
        "--out",
        run,
        "--set",
        "data.split.groups=patient",
        "--set",
        "data.split.valid=0.25",
        "--device",
        "cpu",
    )
    assert said.status == 0, said.err
    assert "train 36 in 9 groups, valid 12 in 3 groups" in said.out
    assert " of 12 in 3 groups, 95 % interval " in said.out
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    valid = found["valid"]
    assert (valid["n"], valid["groups"]) == (12, 3)
    low, high = wilson(valid["correct"], 12)
    assert np.ptp(valid["accuracy_ci95"]) > 1.5 * (high - low)
    assert found["calibration"]["abstention"]["grouped"] is True
    assert grouped == [9], "a class is left out by whole patients"
    known = found["unknown"]["known"]["valid"]
    low, high = wilson(known["accepted"], 12)
    assert np.ptp(known["share_ci95"]) > 1.5 * (high - low)
    assert " are accepted as known (validation: 3 groups of images; fewer than 95 % of those of new groups " in said.out
    write_report(run)
    assert (run / "report.html").read_text().count(
        "come in 3 groups, whose images are alike: of the images of new"
    ) == 1
    with (run / "predictions.csv").open(newline="") as file:
        assert len({row["group"] for row in csv.DictReader(file)}) == 3
    evaluated = say("evaluate", run, patients, "--split", "valid", "--device", "cpu", "--json", tmp_path / "e.json")
    assert f"{valid['correct']} of 12, in 3 groups" in evaluated.out
    assert "tested      none: the images come in groups, whose errors are correlated\n" in evaluated.out
    again = json.loads((tmp_path / "e.json").read_text())["valid"]
    assert again["accuracy_ci95"] == valid["accuracy_ci95"]
    assert again["balanced_accuracy_ci95"] == valid["balanced_accuracy_ci95"]


def test_the_held_out_accuracy_says_of_how_many_groups_it_is(say, patients: Path, tmp_path: Path):
    recipe, run = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1}), tmp_path / "run"
    options = "--set", "data.split.groups=patient", "--set", "data.split.valid=0.25", "--device", "cpu"
    said = say("train", patients, "--recipe", recipe, "--out", run, *options)
    assert re.search(r"training accuracy \S+ % \(\d+ of 36 in 9 groups, 95 % interval ", said.out)
    assert re.search(r"held out  \S+ % of 36 training images in 9 groups, each predicted by a head", said.out)
    held_out = json.loads((run / "metrics.json").read_text())["valid"]["held_out"]
    assert (held_out["n"], held_out["groups"]) == (36, 9)
    assert [trial.groups for trial in read_penalties(run)[1] if trial.n] == [9]


def test_without_groups_there_are_no_messages_about_them(say, patients: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    said = say("train", patients, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert said.status == 0, said.err
    assert "in 9 groups" not in said.err + said.out
    assert (
        "the column 'patient' repeats: if images with the same value belong together, data.split.groups=p" in said.out
    )
    assert "groups" not in json.loads((tmp_path / "run" / "metrics.json").read_text())["valid"]


def test_copies_are_not_called_groups_where_no_groups_were_asked_for(say, patients: Path, tmp_path: Path):
    folder, recipe = tmp_path / "pictures", write_recipe(tmp_path / "r.toml", {"epochs": 1})
    for label in "012":
        shutil.copy(folder / label / f"{label} 0.png", folder / label / "copy.png")
    said = say("train", folder, "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert said.status == 0, said.err
    assert re.search(r"(train|valid) \d+ \(\d+ different images\)", said.out)
    assert " groups" not in said.out.partition("classes ")[0]
    assert "listed in check.json" not in said.err
    assert "findings  all are listed in check.json in the run folder" in said.out


def test_a_head_is_not_evaluated_on_altered_copies_of_what_it_has_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for i in range(20):
        for quality in (95, 85, 75):
            for split, seed in (("train", i), ("valid", 100 + i)):
                (folder := tmp_path / "images" / split / str(i % 2)).mkdir(parents=True, exist_ok=True)
                scene(seed, 96, 80).save(folder / f"{i:02} {quality}.jpg", quality=quality)
    folds: list[np.ndarray] = []

    def keep(*args: Any, **more: Any) -> np.ndarray:
        folds.append(stratified_folds(*args, **more))
        return folds[-1]

    monkeypatch.setattr(solve, "stratified_folds", keep)
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1})
    linnaeus.train(tmp_path / "images", str(recipe), out=tmp_path / "run", device="cpu")
    # By class and name: the three copies of an image are neighbors.
    assert len(folds) == 1
    assert folds[0].min() >= 0
    assert (folds[0].reshape(20, 3) == folds[0].reshape(20, 3)[:, :1]).all()
    assert "train 60, valid 60 (20 different images)\n" in capsys.readouterr().out, (
        "training images: of equal bytes only"
    )


def test_images_that_no_fold_can_hold_out_are_not_called_unseen(say, tmp_path: Path):
    """The training images of class 2 are of one patient, so that every head has seen them."""
    write_images(tmp_path / "pictures", each=16)
    rows = ["path,label,group,split"]
    for label in "012":
        for i in range(16):
            patient = f"{label}-{i // 4 if label != '2' or i < 4 else 4}"
            rows.append(f"pictures/{label}/{label} {i}.png,{label},{patient},{'valid' if i < 4 else 'train'}")
    (tmp_path / "patients.csv").write_text("\n".join(rows))
    recipe = write_recipe(tmp_path / "r.toml", {"train": ["head"], "head": "auto", "epochs": 1})
    said = say("train", tmp_path / "patients.csv", "--recipe", recipe, "--out", tmp_path / "run", "--device", "cpu")
    assert said.status == 0, said.err
    assert "train 36 in 7 groups, valid 12 in 3 groups" in said.out
    assert re.search(r"cross-validated training accuracy \d+\.\d % \(\d+ of 24 in \d+ groups, ", said.out)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["valid"]["held_out"]["n"] == 24


@pytest.mark.parametrize(
    ("splits", "used", "idle"),
    [
        (("train", "valid"), (), ("data.split.valid=0.3", "data.split.seed=4", "data.split.test=0.1")),
        (("train", "test"), ("data.split.valid=0.3", "data.split.seed=4"), ("data.split.test=0.1",)),
    ],
)
def test_settings_of_a_split_that_the_source_defines_are_refused(
    splits: tuple[str, ...], used: tuple[str, ...], idle: tuple[str, ...], say, tmp_path: Path
):
    for split in splits:
        write_images(tmp_path / "images" / split, each=6, seed=len(split))
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    for setting in (*used, *idle):
        said = say("train", tmp_path / "images", "--recipe", recipe, "--out", tmp_path / setting, "--set", setting)
        assert said.status == (2 if setting in idle else 0), said.err
        assert ("has no effect, because the source defines its own splits" in said.err) == (setting in idle)
