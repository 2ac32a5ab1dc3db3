"""`linnaeus classes`: a new run with other classes, from stored features."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import draw, mini, write_images, write_recipe, write_tiny_model

from linnaeus.inference.classifier import load
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.runs.predictions import read_predictions
from linnaeus.text import typeset_percent
from linnaeus.training.derived.solved_run import SolvedRun
from linnaeus.training.run import train
from linnaeus.training.setup.workspace import Workspace
from linnaeus.training.stop import Terminated

HEAD = {"train": ["head"], "head": "auto", "epochs": 1}
VIEWS = {**HEAD, "views": 2, "augment": {"hflip": 0.5}}


def make_run(folder: Path, phase: dict = HEAD, images: Callable[..., Path] = write_images) -> Path:
    weights = mini(seed=3)
    preprocessing = load(write_tiny_model(folder / "t.safetensors")).preprocessing
    about = ModelFile(weights.arch, ("0", "1", "2"), ("a", "b", "c"), preprocessing)
    write_model(folder / "w.safetensors", weights.state_dict(), about)
    images(folder / "images", classes=("0", "1", "2"), each=20)
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


def computed_rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the network computes from now on, because they are not taken over; to compute all of them fails."""
    from linnaeus.stores.frozen import _CutRows

    rows: list[int] = []
    compute = _CutRows.at

    def count(self: _CutRows, indices: np.ndarray):
        rows.extend(indices.tolist())
        return compute(self, indices)

    monkeypatch.setattr(_CutRows, "at", count)
    monkeypatch.setattr(_CutRows, "batches", lambda *a: pytest.fail("all images were computed again"))
    return rows


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("phase", [HEAD, VIEWS], ids=["center", "views"])
def test_added_images_alone_go_through_the_network(say, tmp_path: Path, phase: dict, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path, phase)
    before, computed = contents(run), computed_rows(monkeypatch)
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
    assert [len(re.findall(f"^{word} ", said.out, re.M)) for word in ("run", "report", "next")] == [1, 1, 1]


@pytest.mark.usefixtures("undrawn_runs")
def test_features_taken_over_are_those_of_training_on_the_changed_images(say, tmp_path: Path):
    run = make_run(tmp_path)
    assert say("classes", run, "--drop", "2", "--out", tmp_path / "new").status == 0
    rows = ["path,label,split\n"]
    rows += [f"{tmp_path}/images/{k}/{n},{k},{s}\n" for n, (k, s) in splits(run).items() if k != "2"]
    (tmp_path / "kept.csv").write_text("".join(rows))
    afresh = train(tmp_path / "kept.csv", str(tmp_path / "run" / "recipe.toml"), out=tmp_path / "afresh", draw=False)
    new, other = load(tmp_path / "new", device="cpu"), load(afresh.path, device="cpu")
    assert new.classes == other.classes == ("0", "1")
    for name, value in other.network.state_dict().items():
        assert np.allclose(value.numpy(), new.network.state_dict()[name].numpy(), atol=1e-4), name


@pytest.mark.usefixtures("undrawn_runs")
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


@pytest.mark.usefixtures("undrawn_runs")
def test_several_folders_in_one_command_each_with_its_class(say, tmp_path: Path, finished: Path):
    star, moon = write_class(tmp_path / "star", 3), write_class(tmp_path / "more", 2, 6)
    added = ("--add", star, "--name", "sun", "--add", moon, "--name", "1")
    said = say("classes", finished, *added, "--out", tmp_path / "new")
    assert said.status == 0, said.err
    assert load(tmp_path / "new").classes == ("0", "1", "2", "sun")
    old, new = splits(finished), splits(tmp_path / "new")
    # Both folders have files of the same names, so that images are counted by class.
    with (tmp_path / "new" / "split.csv").open(newline="") as file:
        labels = [row["label"] for row in csv.DictReader(file)]
    assert {name: new[name] for name in old} == old
    assert labels.count("sun") == 12
    assert labels.count("1") == 6 + sum(label == "1" for label, _ in old.values())
    assert f"images added: {moon} as 1" in said.out


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.long
@pytest.mark.parametrize("phase", [HEAD, VIEWS], ids=["center", "views"])
def test_a_second_change_takes_over_what_the_first_one_took_over(
    say, tmp_path: Path, phase: dict, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, phase)
    assert say("classes", run, "--add", write_class(tmp_path / "star", 3), "--out", tmp_path / "second").status == 0
    computed = computed_rows(monkeypatch)
    assert say("classes", tmp_path / "second", "--drop", "0", "--out", tmp_path / "third").status == 0
    assert say("classes", tmp_path / "third", "--merge", "1,2=other", "--out", tmp_path / "fourth").status == 0
    assert computed == []


def test_the_report_says_what_changed_and_compares_both_runs(say, tmp_path: Path, finished: Path):
    said = say("classes", finished, "--rename", "0=zero", "--merge", "1,2=other", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    page = unescape((tmp_path / "new" / "report.html").read_text(encoding="utf-8"))
    section = page[page.index('<section id="changes"') : page.index('<section id="figures"')]
    assert str(finished) in section
    assert "classes merged: 1,2 are now other" in section
    record = json.loads((tmp_path / "new" / "changes.json").read_text())
    rows = read_predictions(tmp_path / "new" / "predictions.csv")
    for split, test in record["before_after"].items():
        correct = [row.correct for row in rows if row.split == split]
        assert test["after"] == pytest.approx(np.mean(correct))
        assert test["difference"] == pytest.approx(test["after"] - test["before"])
        assert typeset_percent(test["before"], 1) in section
        assert f"{100 * test['before']:.1f} % before" in said.out
    # A run of an earlier version recorded neither accuracies nor changes.
    for test in record["before_after"].values():
        del test["before"], test["after"]
    old = {key: value for key, value in record.items() if key != "changes"}
    (tmp_path / "new" / "changes.json").write_text(json.dumps(old))
    assert say("report", tmp_path / "new").status == 0
    assert say("report", finished).status == 0
    assert '<section id="changes"' not in (finished / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("moment", ["_run_phases", "finalize"])
@pytest.mark.parametrize("command", [("classes", "--rename", "0=zero"), ("forget", "--class", "1")], ids=str)
def test_an_interrupted_command_is_completed_by_the_same_command(
    command: tuple[str, ...], moment: str, say, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    from linnaeus.training import run as running

    name, *changes = command
    out = ("--out", tmp_path / "new")
    assert say(name, finished, *changes, "--out", tmp_path / "whole").status == 0
    with monkeypatch.context() as interrupted:
        interrupted.setattr(Workspace, "abandon", lambda self: None)  # as after a kill
        interrupted.setattr(running, moment, lambda *a, **k: (_ for _ in ()).throw(Terminated()))
        said = say(name, finished, *changes, *out)
    assert (said.status, said.err.splitlines()[-1]) == (
        143, f"error: stopped by SIGTERM; the same command with --out {tmp_path / 'new'} continues"
    )  # fmt: skip
    said = say("train", tmp_path / "new", "--resume")
    assert said.status == 2
    assert "give the same command again" in said.err
    assert said.err.count("\n") == 1
    said = say("classes", finished, "--drop", "2", *out)
    assert said.status == 2
    assert "is a different run" in said.err
    said = say(name, finished, *changes, *out)
    assert said.status == 0, said.err
    new, whole = (contents(tmp_path / folder) for folder in ("new", "whole"))
    assert new.keys() == whole.keys()
    dated = {"check.json", "history.csv", "metrics.json", "report.html"}  # these have durations or the path
    assert {file for file in whole if new[file] != whole[file]} <= dated


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to change"),
        (("--drop", "7"), "the run has no class '7'"),
        (("--rename", "0=1"), "merge them with --merge"),
        (("--rename", "0"), "must be OLD=NEW"),
        (("--merge", "0=1"), "must be A,B=C"),
        (("--drop", "0", "--rename", "0=x"), "changed twice"),
        (("--add", "nowhere"), "no such folder"),
        (("--name", "x"), "--add"),
        (("--add", "a", "--add", "b", "--name", "x"), "once for each --add"),
        (("--rename", "0=0"), "--rename 0=0: changes nothing"),
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


@pytest.mark.usefixtures("undrawn_runs")
def test_copies_of_images_of_the_run_are_not_added(say, tmp_path: Path):
    """They would be in training and in validation; a class that is dropped at the same time is not of the run."""
    run, new = make_run(tmp_path), write_class(tmp_path / "new", 3)
    shutil.copy(tmp_path / "images" / "0" / "0 0.png", new / "copy.png")
    said = say("classes", run, "--add", new)
    assert said.status == 2
    assert "1 of its 13 images are copies of images of the run, such as copy.png" in said.err
    said = say("classes", run, "--add", new, "--drop", "0")
    assert said.status == 0, said.err


def test_two_commands_at_once_get_two_folders(tmp_path: Path):
    old = SolvedRun.read(make_run(tmp_path), "")
    with old.new_folder("classes", None) as first, old.new_folder("classes", None) as second:
        assert (first.name, second.name) == ("run-classes-1", "run-classes-2")
        (second / "model").touch()
    assert not first.exists(), "nothing was written into it"
    assert second.exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda lines: [*lines, lines[-1]], "rows for .* images, so it has changed since the run: a line stands twice"),
        (lambda lines: [*lines, ",,,\r\n"], "rows for .* images, so it has changed since the run: a line stands twice"),
        (lambda lines: [lines[0], lines[1].rstrip().rpartition(",")[0] + ",-f\r\n", *lines[2:]], "2: invalid row"),
        (lambda lines: [lines[0], lines[1].rstrip() + "0" * 16 + "\r\n", *lines[2:]], "2: invalid row"),
    ],
    ids=["twice", "blank", "negative", "too large"],
)
def test_a_split_file_with_other_rows_is_one_line(
    say, tmp_path: Path, finished: Path, change: Callable[[list[str]], list[str]], reason: str
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    text = (finished / "split.csv").read_text(encoding="utf-8")
    text = text.replace("../", f"{finished.parent}/")
    with (run / "split.csv").open("w", encoding="utf-8", newline="") as file:
        file.writelines(change(text.splitlines(keepends=True)))
    (tmp_path / "list").write_text(text.splitlines()[3].split(",")[0])
    for arguments in (("classes", run, "--rename", "0=zero"), ("forget", run, "--images", tmp_path / "list")):
        said = say(*arguments, "--out", tmp_path / "new")
        assert said.status == 2, said.err
        assert re.search(rf"error: .*split\.csv:.*{reason}", said.err)


def test_leaked_images_do_not_compare_the_runs(say, tmp_path: Path):
    """Bytes after the end of a PNG make another file of the same pixels: copies that --add does not refuse."""
    run = make_run(tmp_path)
    copies = tmp_path / "2"
    copies.mkdir()
    for name, (label, split) in splits(run).items():
        if (label, split) == ("2", "valid"):
            (copies / f"again {name}").write_bytes((tmp_path / "images" / "2" / name).read_bytes() + b"more")
    said = say("classes", run, "--add", copies, "--out", tmp_path / "new")
    assert said.status == 0, said.err
    valid = json.loads((tmp_path / "new" / "metrics.json").read_text())["valid"]
    assert (leaked := valid["n"] - valid["without_leaks"]["n"]) > 0
    assert f"valid     on the {6 - leaked} images of both runs, without those with a copy in an earlier " in said.out
    content = json.loads((tmp_path / "new" / "changes.json").read_text())
    assert content["before_after"]["valid"]["n"] == 6 - leaked
