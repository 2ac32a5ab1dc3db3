"""Two processes never write into one run folder, and one that was killed keeps nobody out."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import time
from pathlib import Path

import pytest
from forking import fork
from killing import check_same, in_child, train
from tiny import write_recipe

from linnaeus.errors import JobError, UserError
from linnaeus.runs.lock import LOCK, Lock
from linnaeus.training.setup.identity import Identity
from linnaeus.training.step import Optimization

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork"),
    pytest.mark.usefixtures("undrawn_runs"),
]


def halted(module: object, name: str, nth: int, source: Path, recipe: Path, out: Path) -> int:
    """The id of a process that trains, and waits before the `nth` call of `module.name`."""
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        real, calls = getattr(module, name), 0

        def call(*args: object, **more: object) -> object:
            nonlocal calls
            calls += 1
            if calls == nth:
                os.write(writer, b".")
                time.sleep(600)
            return real(*args, **more)

        setattr(module, name, call)
        try:
            train(source, recipe, out, resume=True)
        finally:
            os._exit(98)
    os.close(writer)
    assert os.read(reader, 1) == b"."
    os.close(reader)
    return pid


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_the_second_is_refused_in_one_line_and_a_kill_lets_it_in(idx: Path, tmp_path: Path, say):
    recipe, out = write_recipe(tmp_path / "r.toml", {"epochs": 3}), tmp_path / "run"
    pid = halted(Optimization, "step", 7, idx, recipe, out)
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    for arguments in (
        [idx, "--recipe", recipe, "--out", out, "--resume"],
        [out, "--resume"],
        [out, "--resume", "--set", "phase.1.lr=1"],  # another recipe: it would be refused later all the same
    ):
        said = say("train", *arguments, "--device", "cpu")
        assert said.status == 2
        assert said.err.count("\n") == 1
        assert f"{out}: is being trained by process {pid} on {platform.node()} since 20" in said.err
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    kill(pid)
    assert (out / LOCK).exists()
    check_same(train(idx, recipe, out, resume=True).path, train(idx, recipe, tmp_path / "whole").path)
    assert not (out / LOCK).exists()


def test_two_that_begin_at_once(idx: Path, tmp_path: Path):
    """The second process in an empty folder is refused and does not disturb the first."""
    recipe, out = write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "run"
    pid = halted(Identity, "write", 1, idx, recipe, out)
    for resume in (False, True):
        with pytest.raises(UserError, match=f"being trained by process {pid} "):
            train(idx, recipe, out, resume=resume)
    assert [file.name for file in out.iterdir()] == [LOCK]
    kill(pid)
    assert train(idx, recipe, out).path == out  # nothing was written there: the folder is as good as empty
    assert not (out / LOCK).exists()


def test_a_run_that_fails_leaves_the_folder_free(idx: Path, tmp_path: Path):
    """In the same process too, with a checkpoint to continue from and without one."""
    out = tmp_path / "run"
    with pytest.raises(JobError):
        train(idx, write_recipe(tmp_path / "bad.toml", {"lr": 1e30, "optimizer": "sgd"}), out)
    assert not (out / LOCK).exists()
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1})
    assert train(idx, recipe, tmp_path / "other").path.exists()
    with pytest.raises(UserError, match="already exists"):
        train(idx, recipe, tmp_path / "other")


def test_a_lock_file_removed_in_the_meantime_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A process that opened the old file before its holder removed it must not take that file for the lock."""
    first = Lock(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getpid()} "):
        Lock(tmp_path)
    flock = fcntl.flock

    def late(file: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            first.release()
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    second = Lock(tmp_path)
    monkeypatch.undo()
    with pytest.raises(UserError):
        Lock(tmp_path)
    second.release()
    assert not (tmp_path / LOCK).exists()


def test_the_holder_of_a_lock_is_named_even_if_the_file_does_not_name_it(tmp_path: Path):
    held = Lock(tmp_path)
    (tmp_path / LOCK).write_text("")
    with pytest.raises(UserError, match="trained by another process; wait"):
        Lock(tmp_path)
    held.release()
    assert in_child(lambda: Lock(tmp_path)) == 0
    Lock(tmp_path).release()


def test_remains_of_a_process_killed_after_its_run_are_removed(idx: Path, tmp_path: Path) -> None:
    recipe, out = write_recipe(tmp_path / "r.toml", {"epochs": 1}), tmp_path / "run"
    train(idx, recipe, out)
    (out / LOCK).write_text("process 1")
    held = Lock(out)
    train(idx, recipe, out, resume=True)  # which says that it is finished
    assert (out / LOCK).exists()
    held.lock.release()
    train(idx, recipe, out, resume=True)
    assert not (out / LOCK).exists()
