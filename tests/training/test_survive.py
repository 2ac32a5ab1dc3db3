"""Runs that are stopped by a signal or a failure of the machine, and runs that may not be resumed."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_command
from killing import check_same, dying, in_child, train, undrawn
from PIL import Image
from test_errors import unopenable
from tiny import draw, settings, write_idx, write_images, write_recipe
from torch import nn

import linnaeus
from linnaeus.cache import Cache
from linnaeus.errors import DiskError, JobError, UserError
from linnaeus.runs.folder import RunFolder
from linnaeus.runs.lock import LOCK
from linnaeus.stores.decoding import Decoding
from linnaeus.training import loop, recorder
from linnaeus.training.checkpoint import CheckpointInterval, Checkpoints
from linnaeus.training.phase import TrainablePart
from linnaeus.training.step import Optimization, StepSums

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
    pytest.mark.usefixtures("undrawn_runs"),
]


def kill_at(step: int, source: Path, recipe: Path, out: Path | None, **more: Any) -> None:
    """A run that is killed at step `step`, counted from 1."""

    def work() -> None:
        dying(Optimization, "step", step)
        train(source, recipe, out, **more)

    assert in_child(work) == -signal.SIGKILL


def signalled(number: int, step: int, source: Path, recipe: Path, out: Path) -> int:
    """Run the command, send it signal `number` in the middle of a step, and return its exit status."""

    def work() -> None:
        real, calls = Optimization.step, 0

        def take(*args: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == step:
                os.kill(os.getpid(), number)
            return real(*args)

        Optimization.step = take  # type: ignore
        status = run_command("train", source, "--recipe", recipe, "--out", out, "--device", "cpu")
        sys.stderr.flush()
        os._exit(status)

    return in_child(work)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGXCPU, 128 + signal.SIGXCPU)],
)
def test_a_signal_ends_a_run_after_its_step_with_a_checkpoint(
    number: int, status: int, idx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """No checkpoint is due in such a short run; only the signal causes one."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3}, best="loss")
    out = tmp_path / "cut"
    assert signalled(number, 6, idx, recipe, out) == status
    output = capfd.readouterr()
    assert "Traceback" not in output.err
    assert f"linnaeus train {out} --resume" in output.err
    assert len(output.err.strip().splitlines()) == 1
    model = linnaeus.load(out)  # the best model so far
    assert (out / "metrics.json").exists() == (number == signal.SIGINT)
    assert model.about.metrics["valid"]["n"] == 7
    state = json.loads((out / "checkpoint" / "checkpoint.json").read_text().partition("\n")[2])
    assert (state["fit"]["epoch"], state["fit"]["step"]) == (1, 2)
    check_same(train(idx, recipe, out, resume=True).path, train(idx, recipe, tmp_path / "whole").path)


def test_sigterm_before_the_first_step_leaves_no_folder(idx: Path, tmp_path: Path):
    """There is nothing to resume, and the next run can have the name."""
    recipe = write_recipe(tmp_path / "r.toml")

    def work() -> None:
        real = RunFolder.write_bad_images
        RunFolder.write_bad_images = lambda *args: os.kill(os.getpid(), signal.SIGTERM) or real(*args)  # type: ignore
        with pytest.raises(JobError, match=r"stopped by SIGTERM; .*, so the same command starts") as caught:
            train(idx, recipe, tmp_path / "cut")
        assert caught.value.status == 143
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    assert in_child(work) == 0
    assert not (tmp_path / "cut").exists()


def test_resuming_a_finished_run_reports_it(idx: Path, tmp_path: Path, say, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "mine.toml")
    done = train(idx, recipe, None)
    before = {file: file.stat().st_mtime_ns for file in done.path.iterdir()}
    for arguments in ([idx, "--recipe", recipe], [done.path], [idx, "--recipe", recipe, "--out", done.path]):
        said = say("train", *arguments, "--resume")
        assert said.status == 0, said.err
        assert "runs/mine-1 is finished: there is nothing to resume" in said.out
        assert str(done.valid) in said.out
    assert {file: file.stat().st_mtime_ns for file in done.path.iterdir()} == before
    model = done.path / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1])
    said = say("train", done.path, "--resume")
    assert (said.status, said.out) == (2, "")
    assert "model.safetensors: cut short" in said.err


def test_resume_starts_a_new_run_or_finds_the_last_one(idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A batch system can always start the same command."""
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path / "mine.toml", best="loss")
    train(idx, recipe, None)
    kill_at(6, idx, recipe, None)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["mine-1", "mine-2"]
    assert train(idx, recipe, None, resume=True).path == Path("runs/mine-2")
    check_same(Path("runs/mine-2"), Path("runs/mine-1"))
    other = write_idx(tmp_path / "other", train=70, test=12)
    assert train(other, recipe, None, resume=True).path == Path("runs/mine-3")  # a run on other data is not resumed
    assert train(idx, recipe, None, resume=True).path == Path("runs/mine-2")
    (tmp_path / "runs").rename(tmp_path / "old")
    assert train(idx, recipe, None, resume=True).path == Path("runs/mine-1")


def test_a_run_folder_is_enough_to_resume(idx: Path, tmp_path: Path):
    """The folder records the source, the recipe and the overrides."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 5})
    whole = train(idx, recipe, tmp_path / "whole", epochs=2, seed=7, settings={"phase.1.lr": 1e-3})
    kill_at(6, idx, recipe, tmp_path / "cut", epochs=2, seed=7, settings={"phase.1.lr": 1e-3})
    recipe.unlink()
    check_same(train(tmp_path / "cut", None, None, resume=True).path, whole.path)


def test_resuming_with_another_recipe_data_or_classes_is_rejected(tmp_path: Path):
    source = write_images(tmp_path / "pictures", each=16)
    recipe = write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.2}))
    out = tmp_path / "cut"
    kill_at(4, source, recipe, out)
    (out / LOCK).unlink()  # left by the killed process
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}

    def rejected(*expected: str, **more: Any) -> None:
        with pytest.raises(UserError, match="cannot be resumed, because this is a different run: ") as caught:
            train(source, recipe, out, resume=True, **more)
        assert "\n" not in str(caught.value)
        assert [part for part in expected if part not in str(caught.value)] == [], caught.value
        assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before

    rejected("phase.1.lr: 0.003 → 0.01", "seed: 0 → 3", settings={"phase.1.lr": 0.01}, seed=3)
    rejected("phase.2: none → ", settings={"phase": [{"epochs": 2, "batch": 16, "lr": 3e-3}, {"epochs": 1, "lr": 1.0}]})
    (source / "0" / "0 3.png").rename(tmp_path / "kept.png")
    rejected("images in valid: 10 → 9", "data: ")
    (tmp_path / "kept.png").rename(source / "0" / "0 3.png")
    write_images(source, ("3",), each=4)
    rejected("number of classes: 3 → 4", "none removed, 3 added")
    shutil.rmtree(source / "3")
    again = train(source, out / "recipe.toml", out, resume=True)  # the recipe of the run itself is accepted
    assert again.valid.n == 10


def test_a_replaced_image_of_the_same_size_is_rejected_and_a_moved_folder_is_not(tmp_path: Path):
    source = tmp_path / "pictures"
    for label in range(3):
        (source / str(label)).mkdir(parents=True)
        for i, image in enumerate(draw(np.full(8, label), label)):
            Image.fromarray(image).save(source / str(label) / f"{i}.bmp")
    recipe = write_recipe(tmp_path / "r.toml", {"batch": 4}, **settings(split={"valid": 0.25}))
    kill_at(6, source, recipe, tmp_path / "cut")
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    one, other = moved / "0" / "1.bmp", moved / "0" / "2.bmp"
    content = one.read_bytes()
    one.write_bytes(content[:-1] + bytes([content[-1] ^ 255]))  # the last pixel; a copy would change the split, too
    with pytest.raises(UserError, match="their pixels have changed"):
        train(moved, recipe, tmp_path / "cut", resume=True)
    one.write_bytes(content)
    os.utime(other)  # as after copying the file again
    assert train(moved, recipe, tmp_path / "cut", resume=True).valid.n == 6


def test_a_run_that_decodes_as_it_reads_resumes_where_files_have_other_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As on another machine, to which the images were copied again."""
    monkeypatch.setenv("LINNAEUS_CACHE_GB", "0")
    source = write_images(tmp_path / "pictures", each=8)
    recipe = write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.25}))
    kill_at(3, source, recipe, tmp_path / "cut")
    (source / "0" / "0 1.png").chmod(0o600)
    assert train(source, recipe, tmp_path / "cut", resume=True).valid.n == 6


def test_images_may_be_deleted_during_a_run_if_they_are_stored(tmp_path: Path):
    source = write_images(tmp_path / "pictures", each=16)
    recipe = write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.2}))
    whole = train(source, recipe, tmp_path / "whole")
    real = Optimization.step

    def gone(*args: Any) -> Any:
        shutil.rmtree(source, ignore_errors=True)
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Optimization, "step", gone)
        run = train(source, recipe, tmp_path / "run")
    assert not source.exists()
    assert run.figures == whole.figures


@pytest.mark.parametrize("left", [True, False])
def test_a_source_that_disappears_while_it_is_read_is_not_half_a_data_set(
    left: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that is disconnected leaves an empty folder in its place, or none."""
    source, away = write_images(tmp_path / "pictures", each=8), tmp_path / "away"
    recipe = write_recipe(tmp_path / "r.toml", **settings(split={"valid": 0.25}))
    real = Decoding.load

    def load(self: Decoding, k: int) -> Any:
        if k == 5 and source.exists() and not away.exists():
            source.rename(away)
            if left:
                source.mkdir()
        return real(self, k)

    with monkeypatch.context() as patch:
        patch.setattr(Decoding, "load", load)
        with pytest.raises(DiskError, match="pictures: disappeared while its images were read") as caught:
            train(source, recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
    if left:
        source.rmdir()
    away.rename(source)
    assert train(source, recipe, tmp_path / "run").valid.n == 6


@pytest.mark.parametrize(
    ("change", "message"), [("gone", "0 3.png: .*No such file"), ("other", "0 3.png: was replaced")]
)
def test_a_changed_image_is_one_line_if_images_are_decoded_in_every_epoch(
    change: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = write_images(tmp_path / "pictures", each=16)
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 4}, **settings(split={"valid": 0.2}))
    monkeypatch.setattr("linnaeus.training.setup.samples.default_cache", lambda: Cache(tmp_path / "small", 4000))
    real, image = RunFolder.add, source / "0" / "0 3.png"

    def changed(folder: RunFolder, row: Any) -> None:
        real(folder, row)
        if len(folder.rows) == 1:
            image.unlink() if change == "gone" else shutil.copy(source / "1" / "1 0.png", image)

    monkeypatch.setattr(RunFolder, "add", changed)
    with pytest.raises(JobError, match=f"{message}.*it was readable when the run began") as caught:
        train(source, recipe, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert linnaeus.load(tmp_path / "run").about.metrics["valid"]["n"] == 10


def test_out_of_memory_halves_the_micro_batch(
    idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The effective batch stays, so without BatchNorm the result is the same but for rounding."""
    recipe = write_recipe(tmp_path / "r.toml", {"optimizer": "sgd"})
    whole = train(idx, recipe, tmp_path / "whole")
    limit_memory(monkeypatch, 5)
    run = train(idx, recipe, tmp_path / "run")
    assert "from now on 4 images at once. The effective batch stays 16" in capsys.readouterr().err
    assert "micro_batch = 4" in (run.path / "recipe.toml").read_text()
    assert json.loads((run.path / "metrics.json").read_text())["micro_batch"] == {"phase 1": 4}
    assert run.valid.loss == pytest.approx(whole.valid.loss, rel=1e-4)
    limit_memory(monkeypatch, 0)
    with pytest.raises(JobError, match="out of memory with a single image at once"):
        train(idx, recipe, tmp_path / "none")


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Make a forward pass in training fail with more than `most` images."""
    real = TrainablePart.forward

    def forward(self: TrainablePart, x: torch.Tensor) -> torch.Tensor:
        if self.training and len(x) > most and torch.is_grad_enabled() and not hasattr(self, "probed"):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of that.")
        return real(self, x)

    monkeypatch.setattr("linnaeus.training.tuning.tuning.measure_cost", lambda *args: Cheap())
    monkeypatch.setattr(TrainablePart, "forward", forward)


class Cheap:
    """A measurement that found plenty of memory."""

    seconds = 0.0

    def micro_batch(self, batch: int, free: int) -> int:
        return batch


def test_a_failed_step_does_not_change_batchnorm_statistics():
    """After a step that needed three attempts, the statistics are those of the micro-batches that fit, each once."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm1d(3) for _ in range(2)]
    x = torch.randn(8, 3)

    def step(norm: nn.Module, most: int) -> Callable[[int | None], Any]:
        def take(micro: int | None) -> Any:
            for part in x.split(micro or len(x)):
                norm(part)
                if len(part) > most:
                    raise torch.OutOfMemoryError("full")
            return StepSums(torch.zeros(()), None)

        return take

    class Now:
        def __init__(self, net: nn.Module, micro: int | None):
            self.net, self.micro_batch = nn.ModuleList([net]).train(), micro

    sizes: list[int] = []
    for norm, micro in zip(norms, (None, 2), strict=True):
        now = Now(norm, micro)
        loop.step_within_memory(now, loop.BufferBackup(now.net), 8, step(norm, 2), sizes.append)  # type: ignore[arg-type]
    assert sizes == [4, 2]
    for name, value in norms[0].state_dict().items():
        assert torch.equal(value, norms[1].state_dict()[name]), name


def test_a_disk_too_full_for_a_checkpoint_does_not_end_the_run(
    idx: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    """A limit on the file size stands for a full disk: the model is smaller, the checkpoint larger."""
    recipe = write_recipe(tmp_path / "r.toml")
    whole = train(idx, recipe, tmp_path / "whole")
    limit = (whole.path / "model.safetensors").stat().st_size + 20_000

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        train(idx, recipe, tmp_path / "run", every="1steps")

    assert in_child(work) == 0
    assert "no space left on the disk (File too large)" in capfd.readouterr().err
    check_same(tmp_path / "run", whole.path)


def test_a_disk_too_full_for_the_model_is_one_line_and_the_run_can_be_resumed(idx: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml", best="loss")
    kill_at(6, idx, recipe, tmp_path / "run")
    kept = (tmp_path / "run" / "model.safetensors").read_bytes()

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        message = r"model\.safetensors: no space left on the disk.*best model so far \(phase 1, epoch 1\) is in"
        with pytest.raises(JobError, match=message):
            train(idx, recipe, tmp_path / "run", resume=True)

    assert in_child(work) == 0
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == kept
    check_same(train(idx, recipe, tmp_path / "run", resume=True).path, train(idx, recipe, tmp_path / "whole").path)


@pytest.mark.parametrize(
    ("first_failure", "left"),
    [(1, "there is no model yet"), (2, r"phase 1, epoch 1\) is in .*safetensors")],
)
def test_a_full_disk_names_the_model_that_is_there(
    first_failure: int, left: str, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Not the best model in memory, which could not be written."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3, "lr": 1e-3}, best="loss")
    real, calls = recorder.write_model, 0

    def full(*args: Any) -> str:
        nonlocal calls
        calls += 1
        if calls >= first_failure:
            raise JobError("no space left on the disk")
        return real(*args)

    monkeypatch.setattr(recorder, "write_model", full)
    with pytest.raises(JobError, match=f"{left}$"):
        train(idx, recipe, tmp_path / "run", every="1000steps")


def test_a_folder_that_becomes_read_only_is_one_line_and_keeps_the_model(
    idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 3}, best="loss")
    real = RunFolder.add

    def read_only(*args: Any, **more: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def add(folder: RunFolder, row: Any) -> None:
        real(folder, row)
        if len(folder.rows) == 2:
            monkeypatch.setattr("tempfile.mkdtemp", read_only)

    monkeypatch.setattr(RunFolder, "add", add)
    with pytest.raises(JobError, match="may not be written"):
        train(idx, recipe, tmp_path / "run")
    monkeypatch.undo()
    undrawn(monkeypatch)
    assert linnaeus.load(tmp_path / "run").about.metrics["valid"]["n"] == 7
    assert train(idx, recipe, tmp_path / "run", resume=True).best.figures is not None


@pytest.mark.parametrize("moment", ["first epoch", "last epoch", "figures"])
@pytest.mark.parametrize("change", ["moved", "removed", "replaced"])
def test_a_run_whose_folder_is_moved_or_removed_ends_in_one_line(
    change: str, moment: str, idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """It does not go on in a new folder, which would have neither recipe nor history."""
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 2}, best="loss")
    out, elsewhere = tmp_path / "run", tmp_path / "elsewhere"

    def leave(*arguments: Any) -> Any:
        shutil.rmtree(out) if change == "removed" else out.rename(elsewhere)
        if change == "replaced":
            out.mkdir()
            (out / ".lock").write_text("of another process")

    owner, name, nth = {
        "first epoch": (RunFolder, "add", 1),
        "last epoch": (RunFolder, "add", 2),
        "figures": (RunFolder, "write_evaluation", 1),
    }[moment]
    real, calls = getattr(owner, name), 0

    def call(*arguments: Any) -> Any:
        nonlocal calls
        result, calls = real(*arguments), calls + 1
        if calls == nth:
            leave()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, call)
        with pytest.raises(JobError, match=f"{out}: was moved or removed while the run was writing to it") as caught:
            train(idx, recipe, out, every="1steps")
    assert "\n" not in str(caught.value)
    assert out.exists() == (change == "replaced")
    if change == "replaced":
        assert [file.name for file in out.iterdir()] == [".lock"]
    if change != "removed":
        check_same(train(elsewhere, None, None, resume=True).path, train(idx, recipe, tmp_path / "whole").path)


def test_a_cache_that_is_removed_while_training_costs_one_line_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = write_images(tmp_path / "pictures", each=16)
    tables: list[dict[str, Any]] = [{"epochs": 1}, {"train": ["head"], "epochs": 1}]
    recipe = write_recipe(tmp_path / "r.toml", *tables, **settings(split={"valid": 0.2}))
    real = RunFolder.add

    def add(folder: RunFolder, row: Any) -> None:
        real(folder, row)
        shutil.rmtree(os.environ["LINNAEUS_CACHE"])

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "add", add)
        with suppress(UserError):
            train(source, recipe, tmp_path / "run")
    check_same(train(source, recipe, tmp_path / "run", resume=True).path, train(source, recipe, tmp_path / "w").path)


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("model.arguments.widths", [100_000, 100_000, 100_000], "model.name = mini_resnet: with gradients it takes"),
        ("model.arguments.widths", [2**40, 2**40, 2**40], "model.name = mini_resnet: cannot be built"),
        ("data.size", 2_000_000, "data.(re)?size = 2000000: "),
        ("data.resize", 2_000_000, "data.resize = 2000000: "),
    ],
)
def test_a_recipe_that_no_memory_holds_is_refused_in_one_line(
    setting: str, value: Any, message: str, idx: Path, tmp_path: Path
):
    recipe = write_recipe(tmp_path / "r.toml")
    more = {"data.resize": value} if setting == "data.size" else {}
    with pytest.raises(UserError, match=message) as caught:
        train(idx, recipe, tmp_path / "run", settings={setting: value, **more})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_rejected(idx: Path, tmp_path: Path):
    recipe = write_recipe(tmp_path / "r.toml")
    kill_at(7, idx, recipe, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint"
    for file in [*folder.glob("*.safetensors"), folder / "checkpoint.json", folder / "run.json"]:
        whole = file.read_bytes()
        file.write_bytes(whole[:-20] + b"x" + whole[-19:])
        with pytest.raises(JobError, match=f"{file.name}: damaged.*to start from the beginning") as caught:
            train(idx, recipe, tmp_path / "run", resume=True)
        assert "\n" not in str(caught.value)
        file.write_bytes(whole)
    assert train(idx, recipe, tmp_path / "run", resume=True).best.figures is not None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("recipe", {"phase": 3}),
        ("fingerprint", 3),
        ("classes", 5),
        ("counts", {"train": None}),
        ("found", {"rates": {"1": "fast"}}),
        ("found", {"unknown": {}}),
        ("nested", None),
    ],
)
def test_an_identity_with_another_kind_of_value_is_one_line(idx: Path, tmp_path: Path, key: str, value: object):
    recipe = write_recipe(tmp_path / "r.toml")
    kill_at(7, idx, recipe, tmp_path / "run")
    file = tmp_path / "run" / "checkpoint" / "run.json"
    text = json.dumps({**json.loads(file.read_text(encoding="utf-8")), key: value})
    # Python cannot parse what is nested too deeply.
    file.write_text("[" * 100_000 if key == "nested" else text, encoding="utf-8")
    for source in (idx, tmp_path / "run"):
        with pytest.raises(JobError, match=r"run\.json: damaged.*to start from the beginning"):
            train(source, recipe, tmp_path / "run", resume=True)


def test_a_checkpoint_that_cannot_be_read_today_is_not_called_damaged(
    idx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else the advice would be to remove it."""
    recipe = write_recipe(tmp_path / "r.toml")
    kill_at(7, idx, recipe, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoint"
    for file in [*folder.glob("*.safetensors"), folder / "checkpoint.json", folder / "run.json"]:
        for number, step in ((errno.EACCES, "its permissions"), (errno.EMFILE, "ulimit"), (errno.EIO, "the disk")):
            with monkeypatch.context() as today:
                unopenable(today, file, number)
                with pytest.raises(UserError, match=f"{file.name}: cannot be read .*; .*{step}") as caught:
                    train(idx, recipe, tmp_path / "run", resume=True)
            assert "remove" not in str(caught.value)
    with pytest.raises(UserError, match="run: holds an unfinished run; continue it with --resume"):
        train(idx, recipe, tmp_path / "run")
    assert train(idx, recipe, tmp_path / "run", resume=True).best.figures is not None


def test_a_folder_that_is_not_a_run_is_not_touched(idx: Path, tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="mine: already exists and is not an interrupted run"):
        train(idx, write_recipe(tmp_path / "r.toml"), tmp_path / "mine", resume=True)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_checkpoint_intervals():
    assert CheckpointInterval.parse("auto") == CheckpointInterval()
    assert CheckpointInterval.parse("5min") == CheckpointInterval(seconds=300)
    assert CheckpointInterval.parse("90s") == CheckpointInterval(seconds=90)
    assert (
        CheckpointInterval.parse("100steps") == CheckpointInterval.parse("100 steps") == CheckpointInterval(steps=100)
    )
    for wrong in ("5", "0s", "often", "min", "-3s"):
        with pytest.raises(UserError, match="--checkpoint-every"):
            CheckpointInterval.parse(wrong)


def test_checkpoints_take_a_fiftieth_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint that took 3 seconds is followed by 150 seconds without one; a very fast one by 10."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    automatic = Checkpoints(tmp_path)
    for cost, wait in ((3.0, 150.0), (0.0, 10.0)):
        with automatic.timed():
            now += cost
        now += wait - 0.1
        assert not automatic.due(1)
        now += 0.2
        assert automatic.due(1)
    counted = Checkpoints(tmp_path, CheckpointInterval(steps=3))
    assert [counted.due(1) for _ in range(3)] == [False, False, True]
