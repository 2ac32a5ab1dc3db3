"""A model is not evaluated on its training images unless asked: they are recognized by content."""

from __future__ import annotations

import csv
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiny import write_images, write_recipe, write_tiny_model

import linnaeus
from linnaeus.cache import default_cache
from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.inference import perceptual
from linnaeus.inference.membership import Membership
from linnaeus.modelfile.safetensors import read_model, write_model
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.history import Row
from linnaeus.serve.model_info import describe_classifier
from linnaeus.stores.image_statistics import ImageStatistics, compute_statistics
from linnaeus.training.best import Best
from linnaeus.training.finish import finalize

QUIET = Console(quiet=True)
CLASSES = ("a", "b")
EACH = 24
NEW = 123  # the seed of an image that no other is like
SHARE = 0.25  # of the images that validate


def noise(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28), dtype=np.uint8)
    Image.fromarray(pixels).save(path)  # bitmaps: all files have the same size


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has memorized pure noise, in `run`, and its images, in `noise`."""
    from killing import undrawn

    folder = tmp_path_factory.mktemp("membership")
    for label, name in enumerate(CLASSES):
        for i in range(EACH):
            noise(folder / "noise" / name / f"{i:02}.bmp", 1000 * label + i)
    recipe = write_recipe(folder / "r.toml", {"epochs": 40, "batch": 12, "lr": 1e-2})
    settings = {"data.split.valid": SHARE}
    with pytest.MonkeyPatch.context() as patch:
        undrawn(patch)
        patch.setattr(Best, "beaten_by", lambda best, figures: True)  # the last epoch, which has memorized the most
        linnaeus.train(folder / "noise", str(recipe), out=folder / "run", settings=settings, console=QUIET)
    return folder


@pytest.fixture
def place(learned: Path, tmp_path: Path) -> Path:
    """A copy of both that a test may change."""
    shutil.copytree(learned / "noise", tmp_path / "noise")
    shutil.copytree(learned / "run", tmp_path / "run")
    return tmp_path


def members(folder: Path) -> dict[str, list[Path]]:
    """Split -> images of the run, as they lie in this copy."""
    found: dict[str, list[Path]] = {}
    with (folder / "run" / "split.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["split"], []).append(folder / "noise" / row["label"] / Path(row["path"]).name)
    return found


def evaluated(say, place: Path, *arguments: object) -> tuple[dict, str]:
    """(figures by split, standard error) of `evaluate`."""
    said = say("evaluate", *arguments, "--json", place / "e.json", "--device", "cpu")
    assert said.status == 0, said.err
    return json.loads((place / "e.json").read_text()), said.err


def test_a_model_remembers_its_training_images(place: Path, say):
    """These figures, which would be reported without the check, need --split train and come with a warning."""
    found, said = evaluated(say, place, place / "run", place / "noise", "--split", "train")
    assert found["train"]["accuracy"] > 0.95
    assert found["train"]["trained_on"] == found["train"]["n"] == len(members(place)["train"])
    assert "the model was trained on 36 of these 36 images" in said


def test_an_unchanged_source(place: Path, say):
    found, said = evaluated(say, place, place / "run", place / "noise")
    assert found.keys() == {"valid"}
    metrics = json.loads((place / "run" / "metrics.json").read_text())["valid"]
    assert [found["valid"][key] for key in ("n", "correct")] == [metrics["n"], metrics["correct"]]
    assert found["valid"]["unfinished"] is False
    assert "stopped" not in said
    assert (
        "36 of 48 images were used for training and are left out; the model was selected and calibrated on the other 12"
        in said
    )


@pytest.mark.parametrize("stops", [1, 2])
def test_the_images_that_selected_a_stopped_model(
    stops: int, learned: Path, tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch
):
    """Ctrl-C after an epoch, and again during the final evaluation, which leaves the model uncalibrated."""
    add, evaluate = RunFolder.add, finalize.evaluated

    def stop_after_two(folder: RunFolder, row: Row) -> None:
        add(folder, row)
        if len(folder.rows) == 2:
            raise KeyboardInterrupt

    def stop_again(*arguments: Any) -> Any:
        if stops == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(RunFolder, "add", stop_after_two)
    monkeypatch.setattr(finalize, "evaluated", stop_again)
    recipe, run = write_recipe(tmp_path / "r.toml", {"epochs": 9, "batch": 12}), tmp_path / "run"
    with suppress(KeyboardInterrupt):
        settings = {"data.split.valid": SHARE}
        linnaeus.train(learned / "noise", str(recipe), out=run, settings=settings, console=QUIET, draw=False)
    found, said = evaluated(say, tmp_path, run, learned / "noise")
    assert {key: found["valid"][key] for key in ("selected_on", "calibrated_on", "unfinished")} == {
        "selected_on": True,
        "calibrated_on": stops == 1,
        "unfinished": True,
    }
    reason = ": the training was stopped before its end: this is the best model up to then\n"
    assert said.count(f"{run}{reason}") == said.count(reason) == 1
    image = next((learned / "noise").rglob("*.bmp"))
    assert say("predict", run, image).err.count(reason) == 1
    assert describe_classifier(linnaeus.load(run), "m")["unfinished"] is True
    used = "selected" if stops == 2 else "selected and calibrated"
    assert f"left out; the model was {used} on the other 12: these scores are slightly optimistic\n" in said


SMALL = "images are below 48 pixels: only exact copies of training images were searched for among them"


@pytest.mark.parametrize("recorded", [True, False])
def test_nobody_claims_to_have_looked_for_altered_copies_of_small_images(recorded: bool, place: Path, say):
    if not recorded:
        network, about = read_model(place / "run" / "model.safetensors")
        del about.data["perceptual"]
        write_model(place / "run" / "model.safetensors", network.state_dict(), about)
    _, said = evaluated(say, place, place / "run", place / "noise")
    assert said.count(f"warning: 12 of these 12 {SMALL}, not altered ones\n") == 1
    assert SMALL not in evaluated(say, place, place / "run", place / "noise", "--split", "train")[1]
    with pytest.warns(UserWarning, match=SMALL):
        linnaeus.load(place / "run").evaluate(place / "noise")


def added(folder: Path) -> tuple[Path, int]:
    noise(folder / "noise" / "a" / "new.bmp", NEW)
    return folder / "noise", 1


def removed(folder: Path) -> tuple[Path, int]:
    members(folder)["train"][0].unlink()
    return folder / "noise", 0


def renamed(folder: Path) -> tuple[Path, int]:
    for i, path in enumerate(sorted((folder / "noise").glob("*/*"))):
        path.rename(path.with_name(f"renamed {i}.bmp"))
    return folder / "noise", 0


def exchanged(folder: Path) -> tuple[Path, int]:
    """Files that swap their names: nothing that a listing shows has changed."""
    found = members(folder)
    for other in found["valid"]:
        one = next(path for path in found["train"] if path.parent == other.parent)
        found["train"].remove(one)
        contents = one.read_bytes(), other.read_bytes()
        for path, content in zip((other, one), contents, strict=True):
            path.write_bytes(content)
    return folder / "noise", 0


def relabelled(folder: Path) -> tuple[Path, int]:
    path = members(folder)["train"][0]
    path.rename(folder / "noise" / ("b" if path.parent.name == "a" else "a") / "moved.bmp")
    return folder / "noise", 0


def copied_twice(folder: Path) -> tuple[Path, int]:
    for path in members(folder)["train"][:4]:
        shutil.copy(path, path.with_name(f"copy of {path.name}"))
    return folder / "noise", 0


def listed(folder: Path) -> tuple[Path, int]:
    paths = sorted((folder / "noise").glob("*/*"), key=lambda path: path.name[::-1])
    lines = [f"{path},{path.parent.name}" for path in paths]
    (folder / "list.csv").write_text("\n".join(["path,label", *lines]))
    return folder / "list.csv", 0


def as_test_images(folder: Path) -> tuple[Path, int]:
    """All images in a folder named test, which looks like a real test split."""
    (folder / "other").mkdir()
    (folder / "noise").rename(folder / "other" / "test")
    noise(folder / "other" / "test" / "b" / "new.bmp", NEW)
    return folder / "other", 1


CHANGES = [added, removed, renamed, exchanged, relabelled, copied_twice, listed, as_test_images]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_training_images_are_left_out_of_a_changed_source(place: Path, say, change):
    """By the run folder, and by the model file alone, from another place."""
    source, new = change(place)
    shutil.copy(place / "run" / "model.safetensors", place / "alone.safetensors")
    known = json.loads((place / "run" / "metrics.json").read_text())["valid"]
    for model in (place / "run", place / "alone.safetensors"):
        found, said = evaluated(say, place, model, source)
        name = next(iter(found))
        assert found[name]["trained_on"] == 0
        assert found[name]["n"] == (new or known["n"])
        assert "images were used for training and are left out" in said
        assert found["valid"]["n"] == known["n"]
        assert found["valid"]["correct"] == known["correct"]
        assert found["valid"]["accuracy"] < 0.85
        found, _ = evaluated(say, place, model, source, "--split", "all")
        assert found["all"]["n"] == (new or known["n"])
    with pytest.warns(UserWarning, match="were used for training and are left out"):
        assert linnaeus.load(place / "run", device="cpu").evaluate(source).n == (new or known["n"])


def test_only_training_images(place: Path, say):
    for path in members(place)["valid"]:
        path.unlink()
    said = say("evaluate", place / "run", place / "noise")
    assert said.status == 2
    assert "the model was trained on 36 of these 36 images, and none is unseen" in said.err
    assert said.err.splitlines()[-1].startswith("error: ")


def test_only_new_images(place: Path, say, tmp_path: Path):
    write_images(tmp_path / "new", CLASSES, each=3)
    found, said = evaluated(say, place, place / "run", tmp_path / "new")
    assert found["all"]["n"] == 6
    assert all("no threshold is expected to keep" in line or SMALL in line for line in said.splitlines()), (
        "this model of noise answers nothing, and the images are small; no other warning"
    )


@pytest.mark.parametrize("beside", [True, False])
def test_a_model_file_of_an_earlier_version(place: Path, say, beside: bool):
    """It holds no hashes: paths decide if the run folder is there, and otherwise the command says what it cannot do."""
    shutil.copytree(place / "run", place / "old")
    file = place / "old" / "model.safetensors"
    network, about = read_model(file)
    write_model(
        file, network.state_dict(), replace(about, data={k: v for k, v in about.data.items() if k != "contents"})
    )
    rows = list(csv.DictReader((place / "old" / "split.csv").open(newline="")))
    with (place / "old" / "split.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["path", "label", "split"])
        writer.writerows([place / "noise" / r["label"] / Path(r["path"]).name, r["label"], r["split"]] for r in rows)
    noise(place / "noise" / "a" / "new.bmp", NEW)
    if not beside:
        (place / "old" / "split.csv").unlink()
    found, said = evaluated(say, place, place / "old", place / "noise")
    if beside:
        assert (found["unseen"]["n"], found["unseen"]["recognized_by"]) == (1, "paths")
        assert "36 of 49 images were used for training" in said
    else:
        assert (found["all"]["n"], found["all"]["recognized_by"]) == (49, None)
        assert "whether these are among them cannot be checked" in said


def test_a_data_frame_is_a_source(place: Path):
    pandas = pytest.importorskip("pandas")
    paths = [str(path) for path in sorted((place / "noise").glob("*/*"))]
    frame = pandas.DataFrame({"path": paths, "label": [Path(path).parent.name for path in paths]})
    with pytest.warns(UserWarning, match="DataFrame: 36 of 48 images were used for training"):
        assert linnaeus.load(place / "run").evaluate(frame).n == 12


def test_similar_images_are_those_that_were_trained_on(place: Path, say):
    """`explain --like` of a source that has changed."""
    noise(place / "noise" / "a" / "new.bmp", NEW)
    said = say(
        "explain", place / "run", place / "noise" / "a" / "new.bmp", "--like", place / "noise", "--top", "99",
        "--json", place / "x.json", "--out", place / "sheets",
    )  # fmt: skip
    assert said.status == 0, said.err
    like = json.loads((place / "x.json").read_text())[0]["like"]
    assert {place / "noise" / row["path"] for row in like} == set(members(place)["train"])


def test_an_export_is_compared_on_images_outside_of_the_training(place: Path):
    from linnaeus.export.sample_images import collect_samples

    noise(place / "noise" / "a" / "new.bmp", NEW)
    model = linnaeus.load(place / "run", device="cpu")
    material = collect_samples(model.about, model.path, str(place / "noise"), None)
    paths = {Path(str(material.images.table.image(int(i)))) for i in material.images.indices}
    assert paths == set(members(place)["valid"])


def test_the_record_of_a_run(place: Path):
    """split.csv has the beginning of what sha256sum prints, the model file eight characters for each image."""
    import hashlib

    rows = list(csv.DictReader((place / "run" / "split.csv").open(newline="")))
    for row in rows:
        content = (place / "noise" / row["label"] / Path(row["path"]).name).read_bytes()
        assert row["content"] == hashlib.sha256(content).hexdigest()[:12]
    stored = linnaeus.load(place / "run", device="cpu").about.data["contents"]
    assert {split: len(stored[split]) for split in ("train", "valid", "test")} == {
        "train": 8 * 36,
        "valid": 96,
        "test": 0,
    }
    assert sorted(stored["train"][i : i + 8] for i in range(0, 288, 8)) != []


def test_hashes_are_kept_and_files_read_once(place: Path, monkeypatch: pytest.MonkeyPatch):
    """A second evaluation reads no file to hash it."""
    from linnaeus.stores import contents

    model = linnaeus.load(place / "run", device="cpu")
    noise(place / "noise" / "a" / "new.bmp", NEW)
    model.known_images(place / "noise").all()
    calls: list[object] = []

    def counted(source: str) -> int:
        calls.append(source)
        return 1

    monkeypatch.setattr(contents, "content_hash", counted)
    model.known_images(place / "noise").all()
    assert not calls
    changed = members(place)["train"][0]
    noise(changed, NEW + 1)
    os.utime(changed, (1, 1))
    model.known_images(place / "noise").all()
    assert calls == [str(changed)]
    assert any(entry.name.startswith("contents-") for entry in default_cache().entries())


@pytest.mark.parametrize("value", ["?", "AAAA", 5, None, [1]])
def test_a_damaged_record_is_refused(value: object):
    with pytest.raises(UserError, match=r"m\.safetensors: its record of the images of its run is damaged"):
        Membership.from_dict({"hash": "sha256/48", "train": value, "valid": "", "test": ""}, Path("m.safetensors"))


def test_the_record_survives_writing():
    contents = np.array([5, 2**48 - 1, 0, 7, 5], np.uint64)
    splits = np.array(["train", "valid", "train", "test", "valid"])
    again = Membership.from_dict(Membership.of(contents, splits).to_dict(), Path("m"))
    assert again is not None
    assert again.split_of(contents).tolist() == ["train", "valid", "", "test", "train"]
    assert again.split_of(contents, splits).tolist() == ["train", "valid", "", "test", "valid"]


def test_an_evaluation_needs_neither_two_classes_nor_all_of_them(tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch):
    """The requirements on training data do not apply to an evaluation."""
    monkeypatch.chdir(tmp_path)
    write_tiny_model(tmp_path / "m.safetensors")
    write_images(tmp_path / "one", ("2",), each=5)
    write_images(tmp_path / "two", ("2", "0"), each=5)
    (tmp_path / "two" / "1").mkdir()
    write_images(tmp_path / "part" / "test", ("1",), each=5)
    write_images(tmp_path / "part" / "train", ("0",), each=5)
    for source, n in (("one", 5), ("two", 10), ("part", 5)):
        said = say("evaluate", "m.safetensors", source, "--json", "e.json", "--device", "cpu")
        assert said.status == 0, said.err
        (found,) = json.loads((tmp_path / "e.json").read_text()).values()
        assert found["n"] == n
        said = say("explain", "m.safetensors", "one/2/2 0.png", "--like", source, "--device", "cpu", "--out", "sheets")
        assert said.status == 0, said.err
        said = say("export", "m.safetensors", "--to", "onnx", "--data", source, "--out", f"{source}.onnx")
        assert said.status == 0, said.err
    said = say("train", "one", "--device", "cpu")
    assert said.status == 2
    assert "a classifier needs two or more" in said.err


def test_images_of_the_run_or_the_source_are_never_of_none_of_the_classes(place: Path, say):
    """Renamed copies among other images are left out; a folder of nothing else is refused."""
    new, far = place / "new" / "a", place / "far"
    for i in range(4):
        noise(new / f"{i}.bmp", NEW + i)
        noise(far / f"{i}.bmp", 7000 + i)
        shutil.copy(place / "noise" / "b" / f"{i:02}.bmp", far / f"of the run {i}.bmp")
        shutil.copy(new / f"{i}.bmp", far / f"of the source {i}.bmp")
    said = say("evaluate", place / "run", place / "new", "--outside", far)
    assert "8 of 12 images are images of the run or of the evaluated source" in said.err
    assert "4 images of none of the classes, against 4 known ones" in said.out
    said = say("evaluate", place / "run", place / "new", "--outside", place / "noise")
    assert (said.status, "all of its 48 images are" in said.err) == (2, True)


def test_altered_copies_of_training_images_are_found_by_their_pixels(
    place: Path, say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Their content is another one, and the images of the run may be gone: perceptual hashes in the model file tell."""
    for label, name in enumerate(CLASSES):
        for i in range(6):
            coarse = np.random.default_rng(10 * label + i).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((140, 140), Image.Resampling.BICUBIC)
            for folder in (tmp_path / "old" / name, tmp_path / "new" / name, tmp_path / "copies" / name):
                folder.mkdir(parents=True, exist_ok=True)
            image.save(tmp_path / "old" / name / f"{i}.png")
            altered = (image.resize((100, 100)), ImageOps.mirror(image))[i % 2]
            altered.save(tmp_path / "copies" / name / f"copy {i}.jpg", quality=85)
            if i < 4:
                altered.save(tmp_path / "new" / name / f"copy {i}.jpg", quality=85)
            other = np.random.default_rng(500 + 10 * label + i).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            Image.fromarray(other).resize((140, 140), Image.Resampling.BICUBIC).save(
                tmp_path / "new" / name / f"{i}.png"
            )
    recipe = write_recipe(tmp_path / "c.toml", {"epochs": 1})
    run = linnaeus.train(tmp_path / "old", str(recipe), out=tmp_path / "c", console=QUIET, draw=False).path
    shutil.rmtree(tmp_path / "old")
    (run / "split.csv").unlink()
    found, said = evaluated(say, place, run, tmp_path / "new")
    assert "8 of these 20 images have a copy in an earlier split" in said
    assert (found["all"]["n"], found["all"]["without_leaks"]["n"]) == (20, 12)
    without = found["all"]["without_leaks"]
    found, said = evaluated(say, place, run, tmp_path / "copies")
    assert "all of these 12 images have a copy in an earlier split: these scores are optimistic" in said
    stated = r"8 of 20 images look like altered copies of images of the run.*without them: .* of 12, 95 % interval"
    with pytest.warns(UserWarning, match=stated):
        measured = linnaeus.load(run).evaluate(tmp_path / "new")
    assert measured.without_copies is not None
    assert (measured.n, measured.without_copies.to_dict()) == (20, without)
    assert f"({without['correct']} of 12" in measured._repr_html_()
    with pytest.warns(UserWarning, match="12 of 12 images look like .* without them: no image is left"):
        assert linnaeus.load(run).evaluate(tmp_path / "copies").without_copies is None
    # Without the record, as in files of earlier versions, the output says that nobody looked.
    network, about = read_model(run / "model.safetensors")
    del about.data["perceptual"]
    write_model(run / "model.safetensors", network.state_dict(), about)
    found, said = evaluated(say, place, run, tmp_path / "new")
    assert "without_leaks" not in found["all"]
    assert "has no perceptual hashes of its training images: altered copies of them" in said
    assert "pixels" not in said
    # In Python nobody else needs the statistics, so only one part of the images is decoded to decide that.
    decoded = []

    def compute(table: Table, **options: Any) -> ImageStatistics:
        decoded.append(len(table))
        return compute_statistics(table, **options)

    monkeypatch.setattr(perceptual, "compute_statistics", compute)
    monkeypatch.setattr(perceptual, "LOOKED_AT", 3)
    with pytest.warns(UserWarning, match="has no perceptual hashes"):
        linnaeus.load(run).evaluate(tmp_path / "new")
    assert decoded == [3]
