"""`linnaeus classes`: a new run with other classes, from stored features."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import draw, mini, write_images, write_recipe, write_tiny_model

from linnaeus.inference.classifier import load
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.training.run import train

HEAD = {"train": ["head"], "head": "auto", "epochs": 1}
VIEWS = {**HEAD, "views": 2, "augment": {"hflip": 0.5}}


def make_run(folder: Path, phase: dict = HEAD) -> Path:
    weights = mini(seed=3)
    preprocessing = load(write_tiny_model(folder / "t.safetensors")).preprocessing
    about = ModelFile(weights.arch, ("0", "1", "2"), ("a", "b", "c"), preprocessing)
    write_model(folder / "w.safetensors", weights.state_dict(), about)
    write_images(folder / "images", each=20)
    recipe = write_recipe(folder / "r.toml", phase)
    train(folder / "images", str(recipe), weights=str(folder / "w.safetensors"), out=folder / "run", draw=False)
    return folder / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def splits(run: Path) -> dict[str, tuple[str, str]]:
    with (run / "split.csv").open(newline="") as file:
        return {Path(row["path"]).name: (row["label"], row["split"]) for row in csv.DictReader(file)}


def write_class(folder: Path, place: int, n: int = 12) -> Path:
    folder.mkdir()
    for i, image in enumerate(draw(np.full(n, place), seed=50)):
        Image.fromarray(image).save(folder / f"new {i}.png")
    return folder


@pytest.mark.parametrize("phase", [HEAD, VIEWS], ids=["center", "views"])
def test_added_images_alone_go_through_the_network(say, tmp_path: Path, phase: dict, monkeypatch: pytest.MonkeyPatch):
    from linnaeus.stores.frozen import _CutRows

    run = make_run(tmp_path, phase)
    before, computed = contents(run), []
    compute = _CutRows.at

    def count(self: _CutRows, indices: np.ndarray):
        computed.extend(indices.tolist())
        return compute(self, indices)

    monkeypatch.setattr(_CutRows, "at", count)
    monkeypatch.setattr(_CutRows, "batches", lambda *a: pytest.fail("all images were computed again"))
    said = say("classes", run, "--add", write_class(tmp_path / "star", 3), "--out", tmp_path / "new")
    assert said.status == 0, said.err
    assert contents(run) == before
    old, new = splits(run), splits(tmp_path / "new")
    assert {name: row for name, row in new.items() if name in old} == old
    added = [split for name, (label, split) in new.items() if name not in old and label == "star"]
    assert len(added) == 12
    assert {"train", "valid"} <= set(added)
    assert len(computed) == added.count("train") * phase.get("views", 1) + added.count("valid")
    assert load(tmp_path / "new").classes == ("0", "1", "2", "star")
    assert "images added" in said.out
    assert "McNemar p" in said.out


def test_features_taken_over_are_those_of_training_on_the_changed_images(say, tmp_path: Path):
    run = make_run(tmp_path)
    assert say("classes", run, "--drop", "2", "--out", tmp_path / "new").status == 0
    rows = ["path,label,split\n"]
    rows += [f"{tmp_path}/images/{k}/{n},{k},{s}\n" for n, (k, s) in splits(run).items() if k != "2"]
    (tmp_path / "kept.csv").write_text("".join(rows))
    afresh = train(tmp_path / "kept.csv", str(tmp_path / "run" / "recipe.toml"), out=tmp_path / "afresh", draw=False)
    new, other = load(tmp_path / "new"), load(afresh.path)
    assert new.classes == other.classes == ("0", "1")
    for name, value in other.network.state_dict().items():
        assert np.allclose(value.numpy(), new.network.state_dict()[name].numpy(), atol=1e-4), name


def test_renamed_and_merged_classes(say, tmp_path: Path):
    run = make_run(tmp_path)
    said = say("classes", run, "--rename", "0=zero", "--merge", "1,2=other", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    assert load(tmp_path / "new").classes == ("other", "zero")
    assert {label for label, _ in splits(tmp_path / "new").values()} == {"other", "zero"}
    record = json.loads((tmp_path / "new" / "changes.json").read_text())
    assert record["before_after"]["valid"]["n"] == sum(split == "valid" for _, split in splits(run).values())
    again = say("classes", tmp_path / "new", "--rename", "zero=null")
    assert again.status == 0, again.err
    assert load(tmp_path / "new-classes-1").classes == ("null", "other")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to change"),
        (("--drop", "7"), "the run has no class '7'"),
        (("--rename", "0=1"), "unite them by --merge"),
        (("--rename", "0"), "must be OLD=NEW"),
        (("--merge", "0=1"), "must be A,B=C"),
        (("--drop", "0", "--rename", "0=x"), "changed twice"),
        (("--add", "nowhere"), "no such folder"),
        (("--name", "x"), "--add"),
        (("--drop", "0", "--drop", "1"), "are of one class"),
    ],
)
def test_changes_that_do_not_fit(say, tmp_path: Path, finished: Path, options: tuple[str, ...], message: str):
    said = say("classes", finished, *options, "--out", tmp_path / "new")
    assert said.status == 2, said.err
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished"))


def test_a_network_that_was_trained_is_refused(say, tmp_path: Path):
    run = make_run(tmp_path, {"epochs": 1})
    said = say("classes", run, "--drop", "2")
    assert said.status == 2
    assert "by gradient descent" in said.err
