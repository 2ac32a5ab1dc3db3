"""A run that is killed at any instant and resumed ends with the same bits as an uninterrupted one."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import check_same, die, dying, in_child, train
from tiny import write_recipe
from torch import nn

import linnaeus
from linnaeus import files
from linnaeus.cache import Cache
from linnaeus.errors import JobError
from linnaeus.modelfile.safetensors import save_tensors
from linnaeus.runs import folder
from linnaeus.runs.folder import RunFolder
from linnaeus.stores import activations
from linnaeus.training import checkpoint, loop, recorder
from linnaeus.training.finish import finalize, measuring
from linnaeus.training.setup import prepare
from linnaeus.training.setup.identity import Identity
from linnaeus.training.tuning import tuning

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
    pytest.mark.usefixtures("undrawn_runs"),
]


AUGMENT = {"rotate": 20, "hflip": 0.5, "erase": 0.3}
RECIPES: dict[str, tuple[list[dict[str, Any]], dict[str, Any], int]] = {
    # name: phases, other recipe tables, the step at which the process dies
    "everything at once": (
        [{"augment": AUGMENT, "mixup": 0.2, "cutmix": 1.0, "ema": 0.8, "clip": 1.0}, {"train": ["head"], "epochs": 1}],
        {},
        7,
    ),
    "momentum and one cycle": ([{"optimizer": "sgd", "schedule": {"name": "onecycle"}}], {"best": "loss"}, 7),
    "a plateau and an early stop": (
        [{"epochs": 6, "lr": 0.05, "early_stop": 2, "schedule": {"name": "plateau", "patience": 0, "threshold": 0.5}}],
        {},
        12,
    ),
    "micro-batches and balanced sampling": (
        [{"micro_batch": 5, "sampling": "balanced", "class_weights": "balanced", "optimizer": "adamw"}],
        {"custom network": True},
        5,
    ),
    "a solved head, then training on stored activations": (
        [
            {"train": ["head"], "head": "auto", "epochs": 1},
            {"train": ["block3", "head"], "views": 2, "augment": AUGMENT},
        ],
        {},
        7,
    ),
    "fresh augmentation through a frozen part": ([{"train": ["head"], "augment": AUGMENT, "epochs": 3}], {}, 11),
    "bfloat16, which trains with channels last": ([{"optimizer": "adamw"}], {"precision": "bf16-mixed"}, 7),
    "a learning rate from a range test": ([{"lr": "auto", "schedule": {"name": "cosine", "warmup": 0.5}}], {}, 7),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_ends_like_an_uninterrupted_one(
    name: str, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    phase_tables, more, step = RECIPES[name]
    network = custom_network if more.pop("custom network", False) else lambda: None
    recipe = write_recipe(tmp_path / "r.toml", *phase_tables, **more)
    whole = train(idx, recipe, tmp_path / "whole", model=network()).path

    def work() -> None:
        dying(loop, "step_within_memory", step)
        train(idx, recipe, tmp_path / "cut", model=network())

    assert in_child(work) == -signal.SIGKILL
    assert (tmp_path / "cut" / "checkpoint" / "checkpoint.json").exists()
    monkeypatch.setattr(tuning, "range_test", None)  # the resumed run uses the rate that was found
    check_same(train(idx, recipe, tmp_path / "cut", model=network(), resume=True).path, whole)


def custom_network() -> nn.Module:
    """A network with BatchNorm, which depends on the micro-batches, with dropout, and with shared weights."""
    torch.manual_seed(5)
    twice = nn.Conv2d(8, 8, 3, padding=1)
    body = [nn.Conv2d(1, 8, 3, 2), nn.BatchNorm2d(8), twice, nn.ReLU(), twice, nn.Dropout(0.3)]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


MOMENTS: dict[str, tuple[Any, str, int, bool]] = {
    # moment: (module, function, number of the call, whether after it)
    "images are decoded": (prepare, "load_samples", 1, False),
    "the identity is written": (Identity, "write", 1, True),
    "the first epoch": (loop, "step_within_memory", 3, False),
    "the first validation": (loop, "answer", 1, False),
    "the first model is written": (recorder, "write_model", 1, False),
    "an epoch was recorded": (RunFolder, "add", 2, True),
    "activations are stored": (activations, "_append", 1, True),
    "the store is about to be committed": (Cache, "commit", 1, False),
    "the second phase": (loop, "step_within_memory", 2, True),
    "the last epoch is over": (RunFolder, "add", 1, True),
    "the final evaluation": (measuring, "answer", 1, False),
    "figures are written": (RunFolder, "write_metrics", 1, True),
    "the end": (RunFolder, "close", 1, False),
    "the checkpoint is removed": (folder, "remove_checkpoint", 1, False),
}


@pytest.mark.long
def test_a_run_may_be_killed_repeatedly(idx: Path, tmp_path: Path):
    """One run that dies at each of these moments in turn and is resumed after each."""
    recipe = write_recipe(tmp_path / "r.toml", {}, {"train": ["head"], "epochs": 1}, best="loss")
    out = tmp_path / "cut"
    for name, moment in MOMENTS.items():

        def work(moment: tuple[Any, str, int, bool] = moment) -> None:
            dying(*moment)
            train(idx, recipe, out, every="3steps", resume=True)

        assert in_child(work) == -signal.SIGKILL, name
    assert train(idx, recipe, out, resume=True).best.figures is not None  # the run is reported as finished
    os.environ["LINNAEUS_CACHE"] += "-2"  # a cache of its own
    check_same(out, train(idx, recipe, tmp_path / "whole").path)


def test_the_model_file_is_never_ahead_of_the_checkpoint(idx: Path, tmp_path: Path):
    """Otherwise a run that is resumed and stopped again would overwrite a better model with an older one."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 6, "lr": 1e-3}, best="loss")
    out = tmp_path / "cut"
    for step, every in ((7, "2steps"), (11, "1000steps")):

        def work(step: int = step, every: str = every) -> None:
            dying(loop, "step_within_memory", step)
            train(idx, recipe, out, every=every, resume=True)

        assert in_child(work) == -signal.SIGKILL
    saved = checkpoint.Checkpoints(out / "checkpoint").read("loss")
    assert saved is not None
    assert saved.best.figures is not None
    assert len((out / "history.csv").read_text().splitlines()) > 1 + len(
        saved.rows
    )  # the history was ahead of the checkpoint
    assert linnaeus.load(out).about.metrics["valid"]["loss"] == saved.best.figures.loss


WRITING: dict[str, tuple[Any, str, int, bool, str]] = {
    # place: (module, function, number of the call, whether after it, start of the file name)
    "before a file is synced": (files, "sync", 2, False, "state-"),
    "after a file is synced": (files, "sync", 2, True, "state-"),
    "before the state is renamed": (Path, "replace", 2, False, "state-"),
    "after the state is renamed": (Path, "replace", 2, True, "state-"),
    "before the best model is synced": (files, "sync", 1, False, "best-"),
    "before the best model is renamed": (Path, "replace", 1, False, "best-"),
    "after the best model is renamed": (Path, "replace", 1, True, "best-"),
    "before the manifest is synced": (files, "sync", 1, False, "checkpoint.json"),
    "before the manifest is renamed": (Path, "replace", 1, False, "checkpoint.json"),
    "after the manifest is renamed": (Path, "replace", 1, True, "checkpoint.json"),
    "before the old files are removed": (Path, "unlink", 1, False, "state-"),
    "after one of them is removed": (Path, "unlink", 1, True, "state-"),
}


def test_a_checkpoint_is_complete_wherever_its_writer_dies(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 12, "lr": 1e-3}, best="loss")
    out = tmp_path / "cut"
    for name, point in {"half of a file is written": None, **WRITING}.items():

        def work(point: tuple[Any, str, int, bool, str] | None = point) -> None:
            if point is None:
                monkeypatch.setattr(checkpoint, "save_tensors", half_written)
            else:
                dying(*point)
            train(idx, recipe, out, every="1steps", resume=True)

        assert in_child(work) == -signal.SIGKILL, name
    whole = train(idx, recipe, tmp_path / "whole", every="100steps").path
    check_same(train(idx, recipe, out, every="100steps", resume=True).path, whole)


def half_written(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write half of a file and die, as in a power failure."""
    save_tensors(tensors, path)
    os.truncate(path, path.stat().st_size // 2)
    die()


@pytest.mark.long
def test_random_kills():
    """At any instant, not only between steps and writes, by `benchmarks/kills.py`, whose default is 500 kills."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "kills.py"
    command = [sys.executable, str(script), "--kills", "15", "--seed", str(os.getpid())]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "15 kills in" in result.stdout


def test_a_kill_between_the_last_checkpoint_and_the_model_file_keeps_both_in_agreement(idx: Path, tmp_path: Path):
    """The checkpoint says that all phases are over and holds a better model than the file does."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3, "lr": 1e-3}, best="loss")
    out = tmp_path / "cut"

    def work() -> None:
        dying(recorder, "write_model", 2)
        train(idx, recipe, out, every="1000steps")

    assert in_child(work) == -signal.SIGKILL
    saved = checkpoint.Checkpoints(out / "checkpoint").read("loss")
    assert saved is not None
    assert (saved.phase, saved.best.epoch) == (2, 3)
    assert linnaeus.load(out).about.metrics["valid"]["loss"] > saved.best.figures.loss  # type: ignore[union-attr]
    check_same(train(idx, recipe, out, resume=True).path, train(idx, recipe, tmp_path / "whole").path)


def test_a_model_file_that_another_program_changed_is_not_reported_as_the_result(
    idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe, out = write_recipe(tmp_path / "r.toml", best="loss"), tmp_path / "run"
    other = train(idx, recipe, tmp_path / "other", seed=7).path / "model.safetensors"
    real = finalize.read_model

    def replaced(path: Path, *arguments: Any) -> Any:
        shutil.copy(other, path)
        return real(path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(finalize, "read_model", replaced)
        with pytest.raises(JobError, match=r"is not the model that this run has written.* --resume writes it again"):
            train(idx, recipe, out)
    assert not (out / "metrics.json").exists()
    check_same(train(idx, recipe, out, resume=True).path, train(idx, recipe, tmp_path / "whole").path)
