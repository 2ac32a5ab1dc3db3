"""Folders that are not runs, and files that are not a run's, are never touched."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killing import check_same, dying, in_child, train
from tiny import settings, write_idx, write_images, write_recipe

from linnaeus.errors import UserError
from linnaeus.runs.ownership import remove_remains
from linnaeus.training import loop

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
    pytest.mark.usefixtures("undrawn_runs"),
]


def contents(folder: Path) -> dict[str, Any]:
    """Content and time of everything in a folder."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


def a_checkpoint(folder: Path) -> None:
    """As other trainers leave it."""
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "weights.safetensors").write_bytes(b"mine")
    (folder / "checkpoint" / "state-000001.safetensors").write_bytes(b"mine")


def another_manifest(folder: Path) -> None:
    a_checkpoint(folder)
    (folder / "checkpoint" / "run.json").write_text(json.dumps({"format": 1, "name": "mine"}))


def a_checkpoint_file(folder: Path) -> None:
    (folder / "checkpoint").write_text("mine")


def named_alike(folder: Path) -> None:
    for name in ("recipe.toml", "split.csv", "history.csv", "model.safetensors", "check.json", "bad_images.csv"):
        (folder / name).write_text("mine")


def a_lock(folder: Path) -> None:
    (folder / ".lock").write_text("mine")


def a_git_checkout(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".pre-commit-config.yaml").write_text("mine")
    (folder / ".state-abcdefgh.safetensors").write_text("mine")
    a_checkpoint(folder)


def figures_of_another_tool(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"interrupted": false}')
    a_checkpoint(folder)


FOLDERS = [
    a_checkpoint, another_manifest, a_checkpoint_file, named_alike, a_lock, a_git_checkout, figures_of_another_tool
]  # fmt: skip


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("fill", FOLDERS)
def test_a_folder_of_the_user_is_refused_in_one_line(
    fill: Callable[[Path], None], resume: bool, idx: Path, tmp_path: Path
):
    folder = tmp_path / "mine"
    folder.mkdir()
    fill(folder)
    (tmp_path / "link").symlink_to(folder)
    before = contents(folder)
    for out in (folder, tmp_path / "link"):
        with pytest.raises(UserError, match=f"{out}.*choose another --out") as caught:
            train(idx, write_recipe(tmp_path / "r.toml"), out, resume=resume)
        assert "\n" not in str(caught.value)
        assert contents(folder) == before


def test_files_of_the_user_in_a_run_folder_are_kept(idx: Path, tmp_path: Path):
    recipe, out = write_recipe(tmp_path / "r.toml"), tmp_path / "run"

    def work() -> None:
        dying(loop, "step_within_memory", 6)
        train(idx, recipe, out)

    assert in_child(work) < 0
    mine = ["notes.txt", ".env-12345678.local", ".tmpABCDEF", "checkpoint/notes.txt", "checkpoint/my.safetensors"]
    for name in mine:
        (out / name).write_text("mine")
    train(idx, recipe, out, resume=True)
    for name in mine:
        assert (out / name).read_text() == "mine"
    assert sorted(path.name for path in (out / "checkpoint").iterdir()) == ["my.safetensors", "notes.txt"]
    train(idx, recipe, out, resume=True)  # it is finished in spite of the folder `checkpoint`
    for name in mine:
        (out / name).unlink()
    (out / "checkpoint").rmdir()
    check_same(out, train(idx, recipe, tmp_path / "whole").path)


def test_a_finished_run_of_another_source_is_not_reported_as_the_result(idx: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    done = train(idx, recipe, tmp_path / "run").path
    other = write_idx(tmp_path / "other", train=70, test=12)
    with pytest.raises(UserError, match=f"{done}: is a finished run of {idx}, not of {other}; choose another --out"):
        train(other, recipe, done, resume=True)


def test_temporary_files_of_earlier_versions_are_removed(tmp_path: Path):
    """Of our own files and of the safetensors library; nothing that only looks alike."""
    ours = [".model-abcd_123.safetensors", ".state-000001-abcdefgh.safetensors", ".checkpoint-12345678.json"]
    mine = [".pre-commit-config.yaml", ".notes-12345678.txt", ".model-backup01.tar", ".tmpABC1234"]
    for name in (*ours, *mine):
        (tmp_path / name).write_text("x")
    (tmp_path / ".tmpAbCd12").write_bytes((100).to_bytes(8, "little") + b'{"linnaeus"')
    remove_remains(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(mine)  # noqa: PTH208


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("inside", ["", "run", "0/run"])
def test_a_run_folder_inside_its_source_is_refused(inside: str, resume: bool, tmp_path: Path):
    """Its images would be part of the data of the next run."""
    source = write_images(tmp_path / "pictures", each=8)
    before = contents(source)
    recipe = write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.25}))
    with pytest.raises(UserError, match=r"choose another --out|choose an --out elsewhere"):
        train(source, recipe, source / inside, resume=resume)
    assert contents(source) == before
