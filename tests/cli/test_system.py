"""`env` and `completion`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.shell_completion import ShellComplete

from linnaeus._version import __version__
from linnaeus.cli import completing, system
from linnaeus.cli.main import cli


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


def test_env_names_imported_weights_of_libraries(say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    file = tmp_path / "vit.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setattr("linnaeus.models.weights.store.stored_backbones", lambda: {"timm/vit": file})
    assert "timm/vit" in json.loads(say("env", "--json").out)["weights"]


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


@pytest.fixture
def completed(monkeypatch: pytest.MonkeyPatch) -> ShellComplete:
    """The completion of the commands, whose parameters are restored afterwards."""
    for _, command in completing._commands(cli, ""):
        for parameter in command.params:
            monkeypatch.setattr(parameter, "type", parameter.type)
    completing.complete_values(cli)
    return ShellComplete(cli, {}, "linnaeus", system.COMPLETE)


@pytest.mark.parametrize(
    ("words", "names", "paths"),
    [
        ("train --recipe flow", ["flowers", "flowers102"], True),
        ("train dig", ["digits"], True),
        ("train photos --model inc", ["inception_v1"], True),
        ("train photos --device cu", ["cuda"], False),
        ("train photos --track tens", ["tensorboard"], False),
        ("train photos --out ru", [], True),
        ("train photos --lr 1", [], False),
        ("predict runs/first pho", [], True),
        ("compare one tw", [], True),
        ("label pho", [], True),
        ("models plain2", ["plain20"], False),
        ("data pull fl", ["flowers102"], False),
        ("export runs/first --to onnx-", ["onnx-int8"], False),
    ],
)
def test_values_are_completed_by_names_and_paths(words: str, names: list[str], paths: bool, completed: ShellComplete):
    *before, incomplete = words.split()
    found = completed.get_completions(before, incomplete)
    assert [item.value for item in found if item.type == "plain"] == names
    assert [item.value for item in found if item.type == "file"] == [incomplete] * paths


def test_values_are_completed_without_torch():
    code = "import sys, linnaeus.cli.completing as c; [list(names()) for names in c.NAMES.values()]"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], check=True)


def test_the_list_of_commands_is_not_cut_off(say):
    """At 80 columns, the narrowest terminal that is usual."""
    commands = say("--help").out.partition("Data:")[2].splitlines()
    assert [line for line in commands if line.endswith("...")] == []


def test_a_missing_choice_is_one_line(say):
    said = say("completion")
    assert said.status == 2
    (line,) = said.err.splitlines()
    assert "bash, zsh, fish" in line
