"""The entry point sets up the interpreter before the imports of the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run_command

PROGRAM = """
import gc
import sys
from types import ModuleType

collections = []
gc.callbacks.append(lambda phase, info: collections.append(info) if phase == "start" else None)
command_line = ModuleType("linnaeus.cli.main")
command_line.main = lambda: kept.extend([] for _ in range(5_000))
kept = []
sys.modules["linnaeus.cli.main"] = command_line
from linnaeus.__main__ import run

collections.clear()
run()
print(len(collections), gc.isenabled())
"""


def test_a_command_seldom_collects_garbage_while_it_imports():
    """By default 5,000 objects that stay cause seven collections; collection stays enabled for cycles."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "True"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "kept"), [(0o777, 0o077), (0o022, 0o022), (0o377, 0o077)])
def test_a_umask_leaves_the_owner_access_to_new_files(umask: int, kept: int):
    program = PROGRAM + "import os; print(os.umask(0))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, umask=umask)
    assert int(done.stdout.split()[-1]) == kept


@pytest.mark.skipif(os.name == "nt", reason="Windows does not remove a folder in use")
def test_a_working_folder_that_was_removed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run_command("models") == 2
    assert capfd.readouterr().err == (
        "error: the working folder has been removed; change to another one, and run the command again\n"
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux limits the address space")
@pytest.mark.parametrize(
    ("gigabytes", "said"), [(0.9, "limited to 0.9 GB (ulimit -v), in which torch may crash"), (8, "")]
)
def test_a_small_limit_of_address_space_is_said_before_torch_crashes(gigabytes: float, said: str):
    import resource

    limit = int(gigabytes * 1e9)
    done = subprocess.run(
        [sys.executable, "-m", "linnaeus", "--version"],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert done.stderr.count("\n") == bool(said)
    assert said in done.stderr
