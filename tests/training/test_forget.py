"""`linnaeus forget`: a run that has never seen some images, and a cache without them."""

from __future__ import annotations

import csv
import hashlib
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scenes import write_scenes
from test_change_classes import HEAD, VIEWS, contents, make_run
from tiny import write_label_sets, write_recipe

from linnaeus.cache import Cache, default_cache
from linnaeus.export.model_card import model_card
from linnaeus.inference.classifier import load
from linnaeus.modelfile.safetensors import read_header
from linnaeus.training.run import train


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "split.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def train_without(run: Path, gone: set[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same recipe on the other images, with a cache of its own."""
    kept = [row for row in rows(run) if row["path"] not in gone]
    label = "labels" if "labels" in kept[0] else "label"
    lines = [f"{(run / row['path']).resolve()},{row[label]},{row['split']}\n" for row in kept]
    (folder / "kept.csv").write_text(f"path,{label},split\n" + "".join(lines))
    with monkeypatch.context() as other:
        other.setenv("LINNAEUS_CACHE", str(folder / "other cache"))
        return train(folder / "kept.csv", str(run / "recipe.toml"), out=folder / "without", draw=False).path


def assert_identical(run: Path, other: Path) -> None:
    new, old = load(run, device="cpu"), load(other, device="cpu")
    assert new.classes == old.classes
    expected, found = old.network.state_dict(), new.network.state_dict()
    assert [name for name in expected if not np.array_equal(expected[name].numpy(), found[name].numpy())] == []
    assert new.about.calibration == old.about.calibration
    assert new.about.unknown == old.about.unknown
    probabilities = [[row[-3:] for row in csv.reader((each / "predictions.csv").open())] for each in (run, other)]
    assert probabilities[0] == probabilities[1]


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("phase", [HEAD, VIEWS], ids=["center", "views"])
def test_a_run_is_bit_for_bit_one_that_has_never_seen_the_images(
    say, tmp_path: Path, phase: dict, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(tmp_path, phase)
    before, gone = contents(run), [row["path"] for row in rows(run)][::7]
    (tmp_path / "list.txt").write_text("".join(f"{name}\n" for name in gone))
    said = say("forget", run, "--images", tmp_path / "list.txt", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    assert contents(run) == before
    assert {row["path"] for row in rows(tmp_path / "new")}.isdisjoint(gone)
    assert_identical(tmp_path / "new", train_without(run, set(gone), tmp_path, monkeypatch))
    assert f"{len(gone)} images forgotten" in said.out
    assert f"rm -r {run}" in said.out


def test_the_model_states_how_many_and_a_hash_but_no_names(say, tmp_path: Path, finished: Path):
    run = finished
    chosen = [row for row in rows(run) if row["label"] == "1"]
    assert say("forget", run, "--class", "1", "--out", tmp_path / "new").status == 0
    (statement,) = read_header(tmp_path / "new" / "model.safetensors").data["forgotten"]
    assert statement["images"] == len(chosen) == sum(statement["counts"].values())
    hashes = sorted(hashlib.sha256((run / row["path"]).read_bytes()).hexdigest()[:12] for row in chosen)
    assert statement["sha256"] == hashlib.sha256("".join(f"{value}\n" for value in hashes).encode()).hexdigest()
    for file in (tmp_path / "new").rglob("*"):
        assert not file.is_file() or not any(Path(row["path"]).name.encode() in file.read_bytes() for row in chosen)
    card, report = (tmp_path / name for name in ("MODEL_CARD.md", "new/report.html"))
    card.write_text(model_card(load(tmp_path / "new"), "model.safetensors"))
    assert f"{len(chosen)} images of an earlier run were removed" in card.read_text()
    assert f"{len(chosen)} images of an earlier run were removed" in report.read_text()
    # A run that comes from this one, by either command, states the same, and what it forgets itself.
    gone = rows(tmp_path / "new")[0]["path"]
    (tmp_path / "list").write_text(gone)
    assert say("forget", tmp_path / "new", "--images", tmp_path / "list").status == 0
    both = read_header(tmp_path / "new-forget-1" / "model.safetensors").data["forgotten"]
    assert both[0] == statement
    assert both[1]["images"] == 1
    assert say("classes", tmp_path / "new-forget-1", "--rename", "0=zero", "--out", tmp_path / "c").status == 0
    assert read_header(tmp_path / "c" / "model.safetensors").data["forgotten"] == both


@pytest.mark.usefixtures("undrawn_runs")
def test_no_store_holds_a_row_of_them(say, tmp_path: Path):
    from linnaeus.stores.decoding import signature_of_file

    run = make_run(tmp_path)
    say("check", tmp_path / "images")
    gone = [row["path"] for row in rows(run) if row["label"] == "2" and row["split"] == "train"][:3]
    signatures = np.array([signature_of_file(str((run / name).resolve())) for name in gone], np.uint64)
    stores = {entry.name: entry for entry in default_cache().entries() if entry.name.startswith("activations-")}
    stale = {name for name, entry in stores.items() if entry.about["n"] > 20}  # of the training images
    (tmp_path / "list").write_text("\n".join(gone))
    said = say("forget", run, "--images", tmp_path / "list", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    entries = default_cache().entries()
    assert stale
    assert stale.isdisjoint(entry.name for entry in entries)
    files = [file for entry in entries for file in entry.path.glob("*.npy") if file.name != "checksums.npy"]
    records = [np.load(file)["signature"] for file in files]
    assert len(records) >= 3
    assert not any(np.isin(signatures, known).any() for known in records)
    assert "3 rows of pixels" in said.out


@pytest.mark.usefixtures("undrawn_runs")
def test_images_that_are_deleted_already(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path)
    gone = [row["path"] for row in rows(run) if row["label"] == "0"][:2]
    pixels = {entry.name for entry in default_cache().entries() if entry.name.startswith("pixels-")}
    for name in gone:
        (run / name).resolve().unlink()
    (tmp_path / "list").write_text("\n".join(Path(name).name for name in gone))
    said = say("forget", run, "--images", tmp_path / "list")
    assert said.status == 2
    (tmp_path / "list").write_text("\n".join(f"0/{Path(name).name}" for name in gone))
    said = say("forget", run, "--images", tmp_path / "list", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    assert len(pixels - {entry.name for entry in default_cache().entries()}) >= 1
    assert_identical(tmp_path / "new", train_without(run, set(gone), tmp_path, monkeypatch))


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("removed", [1, 2, 4])
def test_a_command_that_is_killed_while_it_empties_the_cache_is_completed_by_the_next(
    say, tmp_path: Path, removed: int, monkeypatch: pytest.MonkeyPatch
):
    """The images are deleted already, so that only the records of the cache tell which rows were theirs."""
    run, calls, cache = make_run(tmp_path), 0, default_cache()
    # One of each split, so that every store holds one.
    gone = list({row["split"]: row["path"] for row in rows(run) if row["label"] == "0"}.values())
    stale = {entry.name for entry in cache.entries() if entry.name.startswith(("pixels-", "activations-"))}
    for name in gone:
        (run / name).resolve().unlink()
    (tmp_path / "list").write_text("\n".join(f"0/{Path(name).name}" for name in gone))
    command = ("forget", run, "--images", tmp_path / "list", "--out", tmp_path / "new")
    real = Cache._remove

    def kill(self: Cache, path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls > removed:
            path.rename(path.with_name(".trash-of-a-killed-process"))  # between the rename and the deletion
            raise KeyboardInterrupt
        real(self, path)

    with monkeypatch.context() as killed:
        killed.setattr(Cache, "_remove", kill)
        say(*command)
    said = say(*command)
    assert said.status == 0, said.err
    assert load(tmp_path / "new").classes == ("0", "1", "2")
    assert stale.isdisjoint(entry.name for entry in cache.entries())
    assert list(cache.root.glob(".trash-*")) == []


def test_what_the_cache_still_holds_is_an_error(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = make_run(tmp_path)
    monkeypatch.setattr(Cache, "remove", lambda self, entry: False)
    said = say("forget", run, "--class", "1", "--out", tmp_path / "new")
    assert said.status == 1
    assert "could not be removed, so the cache still holds forgotten images; run the command again" in said.err
    monkeypatch.undo()
    assert say("forget", run, "--class", "1", "--out", tmp_path / "new").status == 0
    assert say("forget", run, "--class", "2", "--out", tmp_path / "new").err.startswith("error: ")


@pytest.mark.usefixtures("undrawn_runs")
def test_copies_with_the_same_content_are_forgotten_too(say, tmp_path: Path):
    make_run(tmp_path)
    shutil.copy(tmp_path / "images" / "0" / "0 3.png", tmp_path / "images" / "0" / "copy.png")
    recipe, weights = str(tmp_path / "r.toml"), str(tmp_path / "w.safetensors")
    train(tmp_path / "images", recipe, weights=weights, out=tmp_path / "again", draw=False)
    (tmp_path / "list").write_text(str(tmp_path / "images" / "0" / "copy.png"))
    said = say("forget", tmp_path / "again", "--images", tmp_path / "list", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    assert "1 image not named but identical to a named one" in said.out
    left = {Path(row["path"]).name for row in rows(tmp_path / "new")}
    assert left.isdisjoint({"copy.png", "0 3.png"})


@pytest.mark.usefixtures("undrawn_runs")
def test_groups_and_images_with_several_labels(say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_run(tmp_path)
    table = write_label_sets(tmp_path / "sets", 60, 3, patients=20)
    recipe = write_recipe(tmp_path / "m.toml", HEAD, data={**data(), "split": {"valid": 0.3, "groups": "patient"}})
    run = train(table, str(recipe), weights=str(tmp_path / "w.safetensors"), out=tmp_path / "sets run", draw=False).path
    said = say("forget", run, "--group", "patient 3", "--group", "patient 4", "--out", tmp_path / "new")
    assert said.status == 0, said.err
    gone = {row["path"] for row in rows(run) if row["group"] in ("patient 3", "patient 4")}
    assert len(gone) == 6
    assert load(tmp_path / "new").classes == ("p0", "p1", "p2")
    assert {row["path"] for row in rows(run)} - {row["path"] for row in rows(tmp_path / "new")} == gone


def data() -> dict:
    from tiny import settings

    return settings()["data"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "nothing to forget"),
        (("--class", "7"), "has no class '7'"),
        (("--group", "anna"), "it has no groups"),
        (("--images", "nowhere.txt"), "nowhere.txt"),
        (("--class", "0", "--class", "1", "--class", "2"), "all of its images"),
        (("--class", "0", "--class", "1"), "are of one class"),
    ],
)
def test_choices_that_do_not_fit(say, tmp_path: Path, finished: Path, options: tuple[str, ...], message: str):
    def entries() -> set[str]:
        """Without the content hashes of the images that stay, by which they are compared with the run."""
        return {entry.name for entry in default_cache().entries() if not entry.name.startswith("contents-")}

    before = entries()
    said = say("forget", finished, *options, "--out", tmp_path / "new")
    assert said.status == 2, said.err
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert entries() == before


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("finished"))


def test_a_network_that_was_trained_on_the_images_is_refused(say, tmp_path: Path):
    run = make_run(tmp_path, {"epochs": 1})
    said = say("forget", run, "--class", "2")
    assert said.status == 2
    assert "by gradient descent" in said.err
    # Nor is its backbone forgotten by the head of another run.
    recipe = str(write_recipe(tmp_path / "head.toml", HEAD))
    head = train(tmp_path / "images", recipe, weights=str(run), out=tmp_path / "head", draw=False).path
    said = say("forget", head, "--class", "2")
    assert said.status == 2
    assert "its backbone comes from" in said.err
    assert not list(tmp_path.glob("*forget*"))


@pytest.mark.usefixtures("undrawn_runs")
def test_the_list_may_come_from_a_pipe(say, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch):
    run = finished
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\n{(run / rows(run)[0]['path']).resolve()}\r\n"))
    assert say("forget", run, "--images", "-", "--out", tmp_path / "new").status == 0
    assert len(rows(tmp_path / "new")) == len(rows(run)) - 1


@pytest.mark.usefixtures("undrawn_runs")
def test_altered_copies_that_stay_are_reported(say, tmp_path: Path):
    run = make_run(tmp_path, images=with_a_smaller_copy)
    for names, warned in (("images/0/3.jpg", True), ("images/0/4.jpg", False)):
        (tmp_path / "list.txt").write_text(f"{tmp_path / names}\n")
        said = say("forget", run, "--images", tmp_path / "list.txt")
        assert said.status == 0, said.err
        text = "images that stay and look like altered copies of forgotten ones: 1, such as 0/smaller.jpg"
        assert (text in said.err) == warned


def with_a_smaller_copy(folder: Path, **more: Any) -> Path:
    write_scenes(folder, **more)
    with Image.open(folder / "0" / "3.jpg") as image:
        image.resize((120, 100)).save(folder / "0" / "smaller.jpg")
    return folder


@pytest.mark.parametrize("command", ["forget", "classes", "influence"])
def test_a_run_whose_images_were_replaced_is_not_solved_again(command: str, say, tmp_path: Path):
    run = make_run(tmp_path)
    first, second, *_ = [(run / row["path"]).resolve() for row in rows(run) if row["label"] == "1"]
    (tmp_path / "list").write_text(rows(run)[0]["path"])
    Image.open(second).rotate(180).save(first)
    arguments = {
        "forget": ("forget", run, "--images", tmp_path / "list"),
        "classes": ("classes", run, "--rename", "0=zero"),
        "influence": ("explain", run, "--influence", second),
    }[command]
    said = say(*arguments)
    assert said.status == 2
    assert f"{first}: has changed since {run} was trained on it; restore it, or train again" in said.err
    # One that is to be forgotten may be gone, or be another one.
    (tmp_path / "list").write_text(str(first))
    assert say("forget", run, "--images", tmp_path / "list", "--out", tmp_path / "new").status == 0
