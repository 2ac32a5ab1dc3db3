"""The files of a run folder."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from tiny import phase, settings

from linnaeus.errors import JobError, UserError
from linnaeus.recipe import Recipe, load_recipe
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.history import Row


def test_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    made = [RunFolder.create(None, "digits").path for _ in range(3)]
    assert made == [Path("runs/digits-1"), Path("runs/digits-2"), Path("runs/digits-3")]
    assert RunFolder.create(None, "mnist").path == Path("runs/mnist-1")


def test_a_named_folder_may_exist_if_it_is_empty(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "a" / "b ü", tmp_path / "empty"):
        assert RunFolder.create(out, "digits").path == out
        assert out.is_dir()


def test_an_existing_file_or_full_folder_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    (tmp_path / "file").touch()
    for out in (tmp_path / "full", tmp_path / "file"):
        with pytest.raises(UserError, match=f"{out.name}: already exists"):
            RunFolder.create(out, "digits")
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(tmp_path / "file" / "run", "digits")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match="cannot be written"):
        RunFolder.create(None, "digits")


def row(epoch: int = 1, accuracy: float | None = 0.5) -> Row:
    return Row(1, epoch, 1e-3, 1.23456789, accuracy, 2.5, 0.25, 1.5)


def test_the_history_grows_by_complete_lines(tmp_path: Path):
    """One header, an empty cell for a missing accuracy, six significant digits."""
    folder = RunFolder(tmp_path)
    for number in (1, 2):
        folder.add(row(number, None if number == 2 else 0.5))
        lines = (tmp_path / "history.csv").read_text().splitlines()
        assert len(lines) == 1 + number
    rows = list(csv.DictReader(lines))
    assert list(rows[0]) == [
        "phase",
        "epoch",
        "lr",
        "train_loss",
        "train_accuracy",
        "valid_loss",
        "valid_accuracy",
        "seconds",
    ]
    assert rows[0]["train_loss"] == "1.23457"
    assert [r["train_accuracy"] for r in rows] == ["0.5", ""]
    assert folder.rows == [row(1), row(2, None)]


def test_bad_images_may_have_any_name(tmp_path: Path):
    RunFolder(tmp_path).write_bad_images([('玫瑰/a, "b".jpg', "cut short"), ("c\nd.png", "empty file")])
    with (tmp_path / "bad_images.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["path", "reason"],
            ['玫瑰/a, "b".jpg', "cut short"],
            ["c\nd.png", "empty file"],
        ]


def test_the_recipe_is_read_back(tmp_path: Path):
    recipe = Recipe.model_validate({**settings(), "name": "mine", "phase": [phase(schedule={"name": "cosine"})]})
    RunFolder(tmp_path).write_recipe(recipe)
    assert load_recipe(str(tmp_path)) == recipe
    assert load_recipe(str(tmp_path / "recipe.toml")) == recipe


def test_a_full_disk_is_reported_in_one_line(tmp_path: Path):
    (tmp_path / "history.csv").symlink_to("/dev/full")
    with pytest.raises(JobError, match=r"history\.csv: no space left on the disk"):
        RunFolder(tmp_path).add(row())


def test_metrics_must_not_contain_nan(tmp_path: Path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        RunFolder(tmp_path).write_metrics({"loss": float("nan")})
    assert not list(tmp_path.iterdir())
