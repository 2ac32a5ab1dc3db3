"""`env` and `completion`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from linnaeus._version import __version__
from linnaeus.cli import system


def test_env_describes_versions_devices_cache_and_variables(say, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")
    said = say("env", "--json")
    assert said.status == 0, said
    described = json.loads(said.out)
    assert described["linnaeus"] == __version__
    assert described["packages"]["torch"] == torch.__version__
    assert described["variables"]["LINNAEUS_OFFLINE"] == "1"
    assert os.environ["LINNAEUS_CACHE"] in described["cache"]
    assert described["devices"][0].startswith("cpu (")
    lines = say("env").out.splitlines()
    assert any(line.split() == ["torch", torch.__version__] for line in lines)
    assert any(line.split() == ["LINNAEUS_OFFLINE", "1"] for line in lines)


def test_packages_that_are_not_installed_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(system, "PACKAGES", ("no-such-package",))
    assert system.installation()["packages"] == {"no-such-package": "not installed"}


@pytest.mark.parametrize("shell", system.SHELLS)
def test_completion_prints_a_script_that_the_program_answers(shell: str, say, tmp_path: Path):
    said = say("completion", shell)
    assert said.status == 0, said
    assert "_LINNAEUS_COMPLETE" in said.out
    program = tmp_path / "linnaeus"
    program.write_text("from linnaeus.cli.main import main\nmain()\n")
    words = {"COMP_WORDS": "linnaeus eva", "COMP_CWORD": "eva" if shell == "fish" else "1"}
    environment = {**os.environ, **words, "_LINNAEUS_COMPLETE": f"{shell}_complete"}
    answer = subprocess.run([sys.executable, program], env=environment, capture_output=True, text=True, check=False)
    assert "evaluate" in answer.stdout
    assert "export" not in answer.stdout
