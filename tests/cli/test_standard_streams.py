"""No command fails with a traceback, whatever its standard streams are."""

from __future__ import annotations

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import run_command
from tiny import write_idx, write_images, write_recipe, write_tiny_model

from linnaeus.console import Console, MessageStream


class Window:
    """A stream with `write` only, as some programs assign to sys.stdout."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text


class Broken(io.StringIO):
    """Every write fails."""

    def __init__(self, number: int):
        super().__init__()
        self.number = number

    def write(self, text: str) -> int:
        raise OSError(self.number, os.strerror(self.number))


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def ascii_only() -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="ascii")


STREAMS = {
    "missing": lambda: None,
    "a window": Window,
    "closed": closed,
    "ASCII": ascii_only,
    "nobody reads": lambda: Broken(errno.EPIPE),
    "full": lambda: Broken(errno.ENOSPC),
}
RESULTS = {"nobody reads": 0, "full": 1}
"""Exit status of a command that cannot write its result."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    write_tiny_model(folder / "m.safetensors")
    write_images(folder / "täg 玫瑰", each=3)
    write_idx(folder / "idx", train=40, test=12)
    write_recipe(folder / "r.toml", {"epochs": 1})
    return folder


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize("kind", STREAMS)
def test_training_does_not_depend_on_the_streams(
    kind: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Training prints only messages, so a run finishes even if they cannot be written."""
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    assert run_command("train", place / "idx", "--recipe", place / "r.toml", "--out", tmp_path / "run") == 0
    assert (tmp_path / "run" / "metrics.json").is_file()


COMMANDS: dict[str, list[str]] = {
    "predict": ["predict", "m.safetensors", "täg 玫瑰"],
    "evaluate": ["evaluate", "m.safetensors", "täg 玫瑰"],
    "check": ["check", "täg 玫瑰", "--weights", "none"],
    "explain": ["explain", "m.safetensors", "täg 玫瑰/0", "--out", "sheets"],
    "models": ["models"],
    "recipes": ["recipes"],
    "weights": ["weights", "list"],
    "data": ["data", "list"],
    "help": ["--help"],
}


@pytest.mark.parametrize("kind", STREAMS)
@pytest.mark.parametrize("name", COMMANDS)
def test_results_are_written_or_the_command_says_why_not(
    name: str, kind: str, place: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(place)
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", STREAMS[kind]())
    monkeypatch.setattr(sys, "stderr", said)
    found = run_command(*COMMANDS[name])
    # `check` has status 1 where a finding is an error, as for so few images.
    assert found == RESULTS.get(kind, 0) or (name == "check" and found in (0, 1)), said.getvalue()
    assert "Traceback" not in said.getvalue()
    if kind == "full":
        assert "error: " in said.getvalue()


@pytest.mark.parametrize("kind", STREAMS)
def test_an_error_needs_no_stream(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", STREAMS[kind]())
    assert run_command("recipes", "nö recipe 玫瑰") == 2
    assert run_command("no-command") == 2


@pytest.mark.skipif(os.name == "nt", reason="the shell of POSIX")
@pytest.mark.parametrize(
    ("redirection", "expected"),
    [(">&-", 0), ("2>&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 1), ("2>/dev/full", 0), ("| true", 0)],
)
def test_descriptors_of_the_shell(redirection: str, expected: int, tmp_path: Path):
    said = tmp_path / "said"
    command = f"exec 3>'{said}'; {sys.executable} -m linnaeus recipes {redirection}"
    if "2>" not in redirection:
        command += " 2>&3" if "|" not in redirection else ""
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
    text = done.stderr + said.read_text()
    assert "Traceback" not in text
    assert "Exception ignored" not in text
    assert ("standard output: cannot be written" in text) == (expected == 1)


def test_a_closed_descriptor_is_not_given_to_a_file(tmp_path: Path):
    """Otherwise what is printed would be written into the first file that the command opens."""
    program = f"""
import os; os.close(1)
from linnaeus.console import prepare_streams
prepare_streams()
with open({str(tmp_path / "file")!r}, "w") as file:
    os.write(1, b"printed")
    assert file.fileno() > 2
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "file").read_bytes() == b""


def test_messages_are_escaped_or_left_out(monkeypatch: pytest.MonkeyPatch):
    stream = ascii_only()
    console = Console(stream=stream)
    console.say("玫瑰")
    assert not console.terminal
    buffer: Any = stream.buffer
    assert buffer.getvalue() == b"\\u73ab\\u7470\n"
    monkeypatch.setattr(sys, "stderr", None)
    for other in (None, Window(), closed(), Broken(errno.EIO)):
        console = Console(stream=MessageStream(other))
        console.say("x")
        console.warn("x")
        with console.progress("x") as advance:
            advance(1, 2)
        assert not console.terminal


@pytest.mark.skipif(os.name == "nt", reason="Windows has UTF-8 names in every locale")
def test_names_are_utf8_in_a_locale_without_an_encoding():
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "linnaeus", "recipes", "rosé"]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, **locale})
    assert done.returncode == 2
    assert done.stderr.startswith("error: recipe 'rosé': no such file".encode())
