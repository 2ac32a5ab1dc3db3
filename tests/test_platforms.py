"""What Windows and macOS lack or do differently, simulated on the system that runs the tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from linnaeus import device, files
from linnaeus.data.class_names import class_name
from linnaeus.distributed import environment, launch
from linnaeus.report import explanation
from linnaeus.serve import server
from linnaeus.stores import rows

WINDOWS = SimpleNamespace(name="nt", environ=os.environ, getpid=os.getpid, sep="\\")


class Process:
    """A running process that accepts the signals that `subprocess.Popen` accepts on Windows."""

    def __init__(self) -> None:
        self.received: list[int] = []

    def poll(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        if number != signal.SIGTERM:
            raise ValueError(f"Unsupported signal: {number}")
        self.received.append(number)


def test_ctrl_c_is_left_to_the_console_of_windows(monkeypatch: pytest.MonkeyPatch):
    process: Any = Process()
    monkeypatch.setattr(launch, "os", WINDOWS)
    launch._signal([launch.Child(process, None)], signal.SIGINT)
    launch._signal([launch.Child(process, None)], signal.SIGTERM)
    assert process.received == [signal.SIGTERM]


def test_processes_meet_without_libuv_on_windows(monkeypatch: pytest.MonkeyPatch):
    assert "USE_LIBUV" not in launch._shared_environment(2)
    monkeypatch.setattr(launch, "os", WINDOWS)
    assert launch._shared_environment(2)["USE_LIBUV"] == "0"


def test_a_launcher_is_not_watched_on_windows(monkeypatch: pytest.MonkeyPatch):
    """The parent of a process in a virtual environment is another one there, so that watching would end it."""
    monkeypatch.setenv(environment.PARENT, "1")
    monkeypatch.setattr(environment, "os", WINDOWS)
    before = threading.active_count()
    environment.exit_with_launcher()
    assert threading.active_count() == before


@pytest.mark.parametrize("system", ["posix", "windows"])
def test_no_two_servers_share_a_port(system: str, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    class Socket(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            asked.append(option)

    monkeypatch.setattr(socket, "socket", Socket)
    if system == "windows":
        monkeypatch.setattr(socket, "SO_EXCLUSIVEADDRUSE", -5, raising=False)
    server.bind("127.0.0.1", 0).close()
    assert asked == [-5 if system == "windows" else socket.SO_REUSEADDR]


def test_files_are_whole_without_locks_for_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "fcntl", None)
    opened = os.open

    def open_file(path: Any, flags: int, *more: Any) -> int:
        if Path(path).is_dir():
            raise PermissionError(13, "Windows opens no folder", str(path))
        return opened(path, flags, *more)

    windows = SimpleNamespace(**{**vars(os), "name": "nt", "open": open_file})
    monkeypatch.setattr(files, "os", windows)
    files.write_text(tmp_path / "a.txt", "one")
    files.write_text(tmp_path / "a.txt", "two")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "two"


def test_free_memory_without_proc_and_sysconf(monkeypatch: pytest.MonkeyPatch):
    def missing(path: Path, *args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError(2, "no such file", str(path))

    monkeypatch.setattr(Path, "read_text", missing)
    if hasattr(os, "sysconf"):
        assert device.free_memory(torch.device("cpu")) > 0
    monkeypatch.setattr(device, "os", WINDOWS)
    assert device.free_memory(torch.device("cpu")) == 4 << 30


def test_rows_are_mapped_where_files_cannot_be_read_by_position(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows").write_bytes(b"123")
    monkeypatch.setattr(rows, "os", WINDOWS)
    assert rows.open_reader(tmp_path / "rows") is None


def test_the_end_of_a_path_with_backslashes(monkeypatch: pytest.MonkeyPatch):
    shown = []

    def width(text: str, *_: Any) -> float:
        shown.append(text)
        return 7.0 * len(text)

    monkeypatch.setattr(explanation, "text_width", width)
    monkeypatch.setattr(explanation, "os", WINDOWS)
    assert explanation._end_of(r"C:\Users\me\photos\rose\1.jpg", None, 100.0) == "…/rose/1.jpg"  # type: ignore[arg-type]


def test_names_that_macos_decomposes_are_the_same_class():
    assert class_name("cafe\u0301") == class_name("café")


WITHOUT_POSIX = """
import importlib, os, pkgutil, signal, sys, filelock, sklearn.datasets, matplotlib.pyplot
import linnaeus
def modules():
    return [m.name for m in pkgutil.walk_packages(linnaeus.__path__, "linnaeus.") if "__main__" not in m.name]
for name in modules():          # loads the libraries, which have branches of their own for Windows
    importlib.import_module(name)
for name in [name for name in sys.modules if name.partition(".")[0] == "linnaeus"]:
    del sys.modules[name]
for name in ("fcntl", "resource", "termios", "pwd", "grp"):
    sys.modules[name] = None    # importing it raises ImportError
for name in '''fork forkpty killpg getpgid setsid setpgid getuid geteuid getgid sysconf fchmod chown
        lchown register_at_fork preadv pread pwritev posix_fadvise posix_fallocate sched_getaffinity sync WNOHANG mkfifo
        uname getloadavg nice wait3 wait4 sendfile'''.split():
    if hasattr(os, name):
        delattr(os, name)
for name in "SIGKILL SIGHUP SIGQUIT SIGPIPE SIGALRM SIGUSR1 SIGUSR2 SIGCHLD SIGSTOP SIGCONT SIGTSTP SIGXCPU".split():
    delattr(signal, name)
for name in modules():
    importlib.import_module(name)
from linnaeus.cli.main import main
sys.argv = ["linnaeus", *sys.argv[1:]]
main()
"""


@pytest.mark.long
def test_every_module_works_without_the_functions_of_posix(tmp_path: Path):
    """Each module is imported, and a run trained, where `os` and `signal` have only what Windows has of them."""
    command = [sys.executable, "-c", WITHOUT_POSIX, "train", "digits", "--recipe", "digits", "--epochs", "1"]
    done = subprocess.run(
        [*command, "--out", "run"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "report.html").is_file()
