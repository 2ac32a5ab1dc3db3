"""The check before training, and metrics with and without leaked images."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image
from scenes import scene
from tiny import write_idx, write_images, write_label_sets, write_recipe

import linnaeus
from linnaeus.check.inspection import group_copies, inspect
from linnaeus.console import Console
from linnaeus.data.archives.members import ShardMembers
from linnaeus.data.images.content import content_hash
from linnaeus.data.readers.shardwriter import write_shards
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.errors import UserError
from linnaeus.export.model_card import model_card
from linnaeus.inference import perceptual
from linnaeus.runs.history import read_history
from linnaeus.sweeps.run import sweep
from linnaeus.text import percent

QUIET = Console(quiet=True)


@pytest.fixture
def leaky(tmp_path: Path) -> Path:
    """Training and validation folders; two of the validation images of class 0 are copies of training images."""
    source = tmp_path / "pictures"
    write_images(source / "train", each=10)
    write_images(source / "valid", each=4, seed=50)
    for i in range(2):
        shutil.copy(source / "train" / "0" / f"0 {i}.png", source / "valid" / "0" / f"0 {i}.png")
    return source


@pytest.mark.usefixtures("undrawn_runs")
def test_metrics_with_and_without_leaked_images(leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = linnaeus.train(leaky, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=Console())
    output = capsys.readouterr()
    assert "errors in the data: leaks between splits (2): valid/0/0 0.png = train/0/0 0.png …" in output.err
    assert any("without images with a copy in an earlier split" in line for line in run.trust)
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["valid"]["n"] == 12
    assert metrics["valid"]["without_leaks"]["n"] == 10
    right = {"0 0.png", "0 1.png"}
    rows = [row.split(",") for row in (run.path / "predictions.csv").read_text().splitlines()[1:]]
    clean = [row for row in rows if not (row[0].startswith("valid/0/") and Path(row[0]).name in right)]
    assert metrics["valid"]["without_leaks"]["correct"] == sum(row[2] == row[3] for row in clean)
    found = json.loads((run.path / "check.json").read_text())
    assert sum(finding["kind"] == "leak" for finding in found["findings"]) == 2


def test_strict_rejects_leaks(leaky: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"copies of 2 valid images are in an earlier split"):
        linnaeus.train(leaky, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=QUIET, strict=True)
    assert not (tmp_path / "run").exists()


def test_copies_stay_in_one_split(tmp_path: Path):
    """A random split would separate twelve copies of one image among sixty, here written by another program."""
    source = write_images(tmp_path / "pictures", each=20)
    for i in range(1, 13):
        Image.open(source / "1" / "1 0.png").save(source / "1" / f"1 {i}.png", compress_level=i % 10, dpi=(i, i))
    table = open_source(source)
    for seed in range(5):
        alone = split_table(table, valid=0.3, test=0.2, seed=seed)
        joined = split_table(group_copies(table, QUIET), valid=0.3, test=0.2, seed=seed)
        assert inspect(alone, QUIET).leaked
        assert not inspect(joined, QUIET).leaked
        assert len(set(joined.split[table.labels == 1])) > 1


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_files_of_the_same_bytes_stay_in_one_split_without_being_asked(tmp_path: Path, form: str):
    source = write_images(tmp_path / "pictures", each=20)
    for i in range(1, 9):
        shutil.copy(source / "1" / "1 0.png", source / str(i % 3) / f"copy {i}.png")
    path = shutil.make_archive(str(tmp_path / "packed"), "zip", source) if form == "zip" else source
    table = open_source(path)
    names = [table.sample_id(i) for i in range(len(table))]
    same = np.array(["copy" in name or name.endswith("1/1 0.png") for name in names])
    assert same.sum() == 9
    for seed in range(5):
        split = split_table(table, valid=0.3, test=0.2, seed=seed)
        assert len(set(split.split[same])) == 1
        assert set(split.split) == {"train", "valid", "test"}
        assert not inspect(split, QUIET).leaked


def test_files_of_one_size_are_copies_only_with_the_same_bytes(tmp_path: Path):
    """Bitmaps have one size; these differ in one pixel at the top, far from the middle that is compared first."""
    for label in range(2):
        (tmp_path / str(label)).mkdir()
        for i in range(20):
            image = Image.new("L", (80, 80))
            image.putpixel((i, 0), 200 + label)
            image.save(tmp_path / str(label) / f"{i}.bmp")
    table = open_source(tmp_path)
    assert split_table(table, valid=0.3, test=0.2, seed=0).counts()["valid"].tolist() == [6, 6]


@pytest.mark.parametrize("several", [False, True])
def test_a_source_of_copies_says_why_nothing_can_be_held_out(tmp_path: Path, several: bool):
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(10):
            Image.new("L", (28, 28), ord(label)).save(tmp_path / label / f"{i}.png")
    table = open_source(tmp_path)
    if several:
        table = replace(table, labels=table.labels[:, None] == np.arange(2))
    with (
        mock.patch("linnaeus.data.split.content_hash", wraps=content_hash) as read,
        pytest.raises(UserError, match=r"for valid .*\(20 of 20 have exact copies"),
    ):
        split_table(table, valid=0.3, test=0, seed=0)
    assert read.call_count == 20, "each file is read once"


def test_copies_merge_the_groups_of_a_column(tmp_path: Path):
    source = write_images(tmp_path / "pictures", each=4)
    shutil.copy(source / "0" / "0 0.png", source / "1" / "1 0.png")
    names = [
        ("0/0 0.png", 0, "a"),
        ("0/0 1.png", 0, "a"),
        ("1/1 0.png", 1, "b"),
        ("1/1 1.png", 1, "b"),
        ("1/1 2.png", 1, ""),
    ]
    lines = [f"{path},{label},{plant}" for path, label, plant in names]
    (source / "all.csv").write_text("\n".join(["path,label,plant", *lines]) + "\n")
    groups = group_copies(open_source(source / "all.csv", group="plant"), QUIET).groups
    assert groups is not None
    assert len(set(groups[:4])) == 1, "plant a and plant b share an image"
    assert groups[4] == ""


def test_arrays_have_no_copies_to_group(tmp_path: Path):
    from tiny import write_idx

    with pytest.raises(UserError, match="because its images are too small; remove the setting"):
        group_copies(open_source(write_idx(tmp_path / "idx")), QUIET)


def test_groups_that_leave_nothing_to_split_are_rejected(leaky: Path, tmp_path: Path):
    recipe = str(write_recipe(tmp_path / "r.toml"))
    with pytest.raises(UserError, match=r"split\.groups = 'near-duplicates' has no effect"):
        linnaeus.train(
            leaky, recipe, out=tmp_path / "run", console=QUIET, settings={"data.split.groups": "near-duplicates"}
        )


@pytest.mark.usefixtures("undrawn_runs")
def test_evaluation_reports_leaks_too(leaky: Path, tmp_path: Path, say):
    run = linnaeus.train(leaky, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=QUIET)
    said = say("evaluate", run.path, leaky, "--json", tmp_path / "f.json")
    assert said.status == 0
    assert "2 of these 12 images have a copy in an earlier split; without them: " in said.err
    found = json.loads((tmp_path / "f.json").read_text())["valid"]["without_leaks"]
    assert found == json.loads((run.path / "metrics.json").read_text())["valid"]["without_leaks"]


@pytest.mark.usefixtures("undrawn_runs")
def test_a_split_by_copies_is_known_again_by_its_images(tmp_path: Path, say):
    source = write_images(tmp_path / "pictures", each=8)
    settings = {"data.split.groups": "near-duplicates"}
    run = linnaeus.train(
        source, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=QUIET, settings=settings
    )
    for place in (source, run.path / "split.csv"):
        said = say("evaluate", run.path, place, "--json", tmp_path / "e.json")
        assert said.status == 0
        assert f"valid of {place}: {run.valid.n} images" in said.out
        assert json.loads((tmp_path / "e.json").read_text())["valid"]["correct"] == run.valid.correct


@pytest.fixture
def half_leaked(tmp_path: Path) -> Path:
    """36 validation images, of which 12 are copies of training images."""
    source = tmp_path / "pictures"
    write_images(source / "train", each=10)
    write_images(source / "valid", each=8, seed=50)
    for label in range(3):
        for i in range(4):
            name = f"{label} {i}.png"
            shutil.copy(source / "train" / str(label) / name, source / "valid" / str(label) / f"copy {name}")
    return source


@pytest.mark.usefixtures("undrawn_runs")
def test_images_without_copies_choose_the_epoch_and_fit_the_thresholds(half_leaked: Path, tmp_path: Path):
    run = linnaeus.train(half_leaked, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=QUIET)
    assert "excluded  12 such validation images from model selection, calibration and thresholds" in run.trust
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert metrics["calibration"]["abstention"]["n"] == 24
    assert metrics["unknown"]["thresholds"]["n"] == 24
    assert metrics["unknown"]["known"]["valid"]["n"] == 24
    valid = metrics["valid"]
    assert [valid["n"], valid["calibration"]["n"], valid["abstention"]["n"]] == [36, 24, 24]
    assert run.best.figures is not None
    assert run.best.figures.n == 24
    for row in read_history(run.path / "history.csv"):
        assert row.valid_accuracy * 24 == pytest.approx(round(row.valid_accuracy * 24), abs=1e-4)


@pytest.mark.usefixtures("undrawn_runs")
def test_the_model_file_and_its_card_have_the_figures_of_images_without_copies(half_leaked: Path, tmp_path: Path):
    run = linnaeus.train(half_leaked, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=QUIET)
    clean = json.loads((run.path / "metrics.json").read_text())["valid"]["without_leaks"]
    model = run.load()
    assert model.about.metrics == {"valid": clean | {"seen": 12}}
    card = model_card(model, "model.safetensors")
    assert f"| valid | 24 | {percent(clean['accuracy'], 2)} ({clean['correct']}) |" in card
    assert "12 more of the valid images are not counted: they have copies in an earlier split" in card


def test_a_run_on_noise_says_that_it_knows_no_more_than_the_most_frequent_class(tmp_path: Path, say):
    source, random = tmp_path / "noise", np.random.default_rng(0)
    for name, n in (("train/a", 40), ("train/b", 5), ("valid/a", 36), ("valid/b", 4)):
        (source / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(source / name / f"{i}.png")
    said = say("train", source, "--recipe", write_recipe(tmp_path / "r.toml"), "--out", tmp_path / "run")
    told = "not significantly better than always answering the most frequent class: 90.00 %"
    line = next(line for line in said.out.splitlines() if line.startswith("valid "))
    assert line.endswith(f", {told}")
    page = (tmp_path / "run/report.html").read_text(encoding="utf-8").replace("\N{NARROW NO-BREAK SPACE}%", " %")
    assert f"The accuracy is {told}." in page
    assert f"On `valid`, this accuracy is {told}." in model_card(linnaeus.load(tmp_path / "run"), "model.safetensors")
    said = say("evaluate", tmp_path / "run", source, "--split", "valid")
    assert f"this accuracy is {told}" in said.out


def test_trials_of_a_sweep_are_compared_on_images_without_copies(
    half_leaked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe, space = str(write_recipe(tmp_path / "r.toml")), {"phase.1.lr": {"choices": [0.1, 0.01]}}
    found = sweep(half_leaked, recipe, space, trials=2, out=tmp_path / "sweep", console=Console())
    assert [trial.figures["n"] for trial in found.trials] == [24, 24]
    said = capsys.readouterr().err
    assert said.count("trials are compared on 24 of 36 validation images: the others were seen in training") == 1


@pytest.mark.usefixtures("undrawn_runs")
def test_too_few_images_without_copies_are_named(half_leaked: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for image in half_leaked.glob("valid/*/? [2-7].png"):
        image.unlink()
    recipe = str(write_recipe(tmp_path / "r.toml"))
    run = linnaeus.train(half_leaked, recipe, out=tmp_path / "run", console=Console())
    assert "only 6 of 18 validation images were not seen in training" in capsys.readouterr().err
    assert json.loads((run.path / "metrics.json").read_text())["calibration"]["abstention"]["n"] == 18


@pytest.mark.usefixtures("undrawn_runs")
def test_thresholds_of_labels_are_fitted_on_images_without_copies(tmp_path: Path):
    table = write_label_sets(tmp_path / "images", 90)
    head, *rows = table.read_text().splitlines()
    splits = [f"{row},{'train' if i < 60 else 'valid'}" for i, row in enumerate(rows)]
    for i in range(10, 20):
        shutil.copy(tmp_path / "images" / f"{i}.png", tmp_path / "images" / f"copy {i}.png")
        splits.append(f"copy {rows[i]},valid")
    table.write_text("\n".join([f"{head},split", *splits]) + "\n")
    run = linnaeus.train(table, str(write_recipe(tmp_path / "r.toml")), out=tmp_path / "run", console=QUIET)
    assert "excluded  10 such validation images from model selection, calibration and thresholds" in run.trust
    metrics = json.loads((run.path / "metrics.json").read_text())
    assert (metrics["calibration"]["n"], metrics["valid"]["n"]) == (30, 40)
    assert run.best.figures is not None
    assert run.best.figures.n == 30


@pytest.mark.usefixtures("undrawn_runs")
def test_identical_arrays_in_two_splits_are_leaks(tmp_path: Path, say):
    source = write_idx(tmp_path / "idx", train=90, test=30)
    for kind, size in (("images-idx3", 28 * 28), ("labels-idx1", 1)):
        train, test = (source / f"{part}-{kind}-ubyte" for part in ("train", "t10k"))
        start = 16 if kind == "images-idx3" else 8
        copied = bytearray(test.read_bytes())
        copied[start : start + 6 * size] = train.read_bytes()[start : start + 6 * size]
        test.write_bytes(copied)
    recipe = str(write_recipe(tmp_path / "r.toml"))
    said = say("train", source, "--recipe", recipe, "--out", tmp_path / "run")
    assert "6 of 30 test images are in an earlier split too" in said.err
    metrics = json.loads((tmp_path / "run/metrics.json").read_text())
    assert metrics["test"]["without_leaks"]["n"] == 24
    said = say("evaluate", tmp_path / "run", source, "--split", "test")
    assert "6 of these 30 images have a copy in an earlier split" in said.err
    assert say("train", source, "--recipe", recipe, "--out", tmp_path / "strict", "--strict").status == 2


@pytest.fixture
def copied_shards(tmp_path: Path) -> Path:
    """Shards of photographs; two of the validation images are in training too, one as it is, one encoded again."""
    for split, seeds in (("train", range(12)), ("valid", (0, 1, 20, 21, 22, 23))):
        for seed in seeds:
            (folder := tmp_path / "photos" / split / str(seed % 2)).mkdir(parents=True, exist_ok=True)
            quality = 80 if split == "valid" and seed == 1 else 95
            scene(seed, 96, 80).save(folder / f"{seed:02}.jpg", quality=quality)
    write_shards(open_source(tmp_path / "photos"), tmp_path / "shards")
    return tmp_path / "shards"


@pytest.mark.parametrize(("side", "said"), [(47, False), (48, True)])
def test_arrays_that_are_not_compared_for_altered_copies_are_named(tmp_path: Path, side: int, said: bool):
    """Not smaller ones, of which nobody expects it: they resemble each other."""
    images = np.random.default_rng(0).integers(0, 256, (8, side, 60), dtype=np.uint8)
    table = open_source(write_idx(tmp_path, train=8, test=8))
    table = replace(table, images=np.concatenate([images, images + 1]))
    warned = [line for line in inspect(table, QUIET).warnings if "because the source holds arrays" in line]
    assert len(warned) == said


def test_splits_in_shards_are_compared_or_it_is_said(copied_shards: Path, monkeypatch: pytest.MonkeyPatch):
    table = split_table(open_source(copied_shards), valid=0.2, test=0.0, seed=0)
    found = inspect(table, QUIET)
    assert len(found.leaked["valid"]) == 2
    assert not any("only images of equal bytes" in line for line in found.warnings)
    for attribute, value, reason in (
        (perceptual, ("MOST_IN_SHARDS", 17), "the source is in shards and has more than 17 images"),
        (ShardMembers, ("local", False), "its shards are not on this machine"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(attribute, *value)
            found = inspect(table, QUIET)
            assert len(found.leaked["valid"]) == 1
            (line,) = (line for line in found.warnings if line.startswith("only images of equal bytes were searched"))
            assert f"because {reason}: such copies make the figures optimistic" in line
            with pytest.raises(UserError, match=f"because {reason}; remove the setting"):
                group_copies(table, QUIET)


def test_copies_in_shards_can_be_kept_in_one_split(copied_shards: Path):
    """Local shards are compared by their pixels, as files are."""
    table = replace(open_source(copied_shards), split=np.full(18, "", "<U5"))
    groups = group_copies(table, QUIET).groups
    assert groups is not None
    names = [name for name in groups if name]
    assert sorted(names.count(name) for name in set(names)) == [2, 2]
