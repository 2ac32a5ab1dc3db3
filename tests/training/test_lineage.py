"""Images that the initial weights were trained on measure nothing: not in the run, nor in the runs after it."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tiny import write_images, write_label_sets, write_recipe

import linnaeus
from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.errors import UserError
from linnaeus.inference.membership import images_of_weights
from linnaeus.label.backbone import open_backbone, warn_of_trained_images
from linnaeus.label.session import list_images
from linnaeus.modelfile.safetensors import MODEL

QUIET = Console(quiet=True)
ONCE = {"epochs": 1}
SOLVED = {"train": ["head"], "head": "auto", "epochs": 1}
pytestmark = pytest.mark.usefixtures("undrawn_runs")


def train(source: Path, out: Path, phase: dict = ONCE, console: Console = QUIET, **more) -> Path:
    recipe = write_recipe(out.with_suffix(".toml"), phase)
    return linnaeus.train(source, str(recipe), out=out, console=console, **more).path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run `first`, trained by gradient descent, its images `old`, and `more`: these and as many new ones."""
    from killing import undrawn

    folder = tmp_path_factory.mktemp("lineage")
    write_images(folder / "old", each=12)
    write_images(folder / "more", each=12, seed=70)
    for path in list((folder / "old").rglob("*.png")):
        shutil.copy(path, folder / "more" / path.parent.name / f"old {path.name}")
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        train(folder / "old", folder / "first")
    return folder


def split_of(run: Path) -> dict[str, str]:
    with (run / "split.csv").open(newline="") as file:
        return {Path(row["path"]).name: row["split"] for row in csv.DictReader(file)}


def trained(place: Path) -> list[str]:
    return [name for name, split in split_of(place / "first").items() if split == "train"]


def test_they_are_not_drawn_for_validation(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    weights, settings = str(place / "first"), {"data.split.seed": 3, "data.split.valid": 0.25, "data.split.test": 0.1}
    run = train(place / "more", tmp_path / "b", console=Console(), weights=weights, settings=settings)
    splits = split_of(run)
    assert Counter(splits.values()) == {"train": 47, "valid": 18, "test": 7}, "the shares are those of all images"
    assert {splits[f"old {name}"] for name in trained(place)} == {"train"}
    said = capsys.readouterr()
    assert "split     the initial weights were trained on 32 of 72 images: these stay in training" in said.out
    assert "without_leaks" not in json.loads((run / "metrics.json").read_text())["valid"]


def test_where_the_source_says_so_figures_are_given_without_them(place: Path, tmp_path: Path, say):
    for split in ("train", "valid"):
        for label in "012":
            (tmp_path / "s" / split / label).mkdir(parents=True)
            for path in (place / "more" / label).glob("*.png"):
                if (int(path.stem.split()[-1]) < 3) == (split == "valid"):
                    shutil.copy(path, tmp_path / "s" / split / label)
    n = sum(int(name[2:].partition(".")[0]) < 3 for name in trained(place))
    recipe = write_recipe(tmp_path / "r.toml", ONCE)
    command = ("train", tmp_path / "s", "--recipe", recipe, "--weights", place / "first", "--out", tmp_path / "run")
    strict = say(*command, "--strict")
    assert (strict.status, f"were trained on {n} of 18 valid images; remove them" in strict.err) == (2, True)
    said = say(*command)
    assert f"were trained on {n} of 18 valid images: the valid figures are optimistic" in said.err
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["valid"]["without_leaks"]["n"] == 18 - n
    said = say("evaluate", tmp_path / "run", tmp_path / "s", "--json", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["valid"]["n"] == 18 - n


def test_the_record_is_handed_on(place: Path, tmp_path: Path):
    """The backbone of the third run comes from the first by the second, whose head alone was solved on other images."""
    write_images(tmp_path / "new", each=8, seed=30)
    second = train(tmp_path / "new", tmp_path / "second", SOLVED, weights=str(place / "first"))
    third = train(tmp_path / "new", tmp_path / "third", SOLVED, weights=str(second))
    known = images_of_weights(place / "first", with_head=False)
    assert len(known) == 32
    assert np.array_equal(images_of_weights(third, with_head=False), known), "solving a head teaches no backbone"
    assert len(images_of_weights(second, with_head=True)) > len(known)
    with pytest.warns(UserWarning, match="32 of 36 images were used for training and are left out"):
        assert linnaeus.load(third, device="cpu").evaluate(place / "old").n == 4


def test_images_are_not_forgotten_by_a_head_above_a_backbone_that_knows_them(place: Path, tmp_path: Path, say):
    second = train(place / "old", tmp_path / "second", SOLVED, weights=str(place / "first"))
    third = train(place / "old", tmp_path / "third", SOLVED, weights=str(second))
    (tmp_path / "list").write_text(f"{place / 'old' / '0' / trained(place)[0]}\n")
    said = say("forget", third, "--images", tmp_path / "list")
    assert said.status == 2
    assert "was trained by gradient descent on 1 of these images" in said.err


def test_probe_does_not_evaluate_on_them(place: Path, say):
    sizes = [word for key in ("size", "resize") for word in ("--set", f"data.{key}=28")]
    probe = say("probe", place / "old", "--backbones", place / "first", *sizes, "--set", "data.channels=1")
    assert probe.status == 1
    assert "was trained on 32 of these 36 images" in probe.err


def test_label_warns_of_them(place: Path, capsys: pytest.CaptureFixture[str]):
    backbone = open_backbone("colors", "cpu")
    backbone.weights = str(place / "first" / MODEL)
    warn_of_trained_images(place / "more", list_images(place / "more"), backbone, Console())
    assert "was trained on 32 of these 72 images" in " ".join(capsys.readouterr().err.split())


def test_several_labels(tmp_path: Path):
    table = open_source(write_label_sets(tmp_path / "sets"))
    seen = np.arange(60) < 30
    split = split_table(table, valid=0.2, test=0.1, seed=0, trained=seen).split
    assert set(split[seen]) == {"train"}
    assert abs((split == "valid").sum() - 12) <= 2
    assert abs((split == "test").sum() - 6) <= 2
    with pytest.raises(UserError, match="the initial weights were trained on 60 of 60"):
        split_table(table, valid=0.2, test=0.1, seed=0, trained=seen | ~seen)
