"""Signals that arrive at an inconvenient moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import in_child
from tiny import write_images, write_tiny_model

from linnaeus.cli.main import main
from linnaeus.errors import JobError, UserError
from linnaeus.files import atomic
from linnaeus.training.stop import StopSignals, Terminated


def hidden(number: int) -> None:
    """Like a library that runs Python code from C: it replaces the exception of a signal by its own."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise UserError("cut short") from None


SIGNALS = {"SIGINT": KeyboardInterrupt, "SIGTERM": Terminated, "SIGHUP": Terminated, "SIGXCPU": Terminated}
HERE = [(getattr(signal, name), kind) for name, kind in SIGNALS.items() if hasattr(signal, name)]


@pytest.mark.parametrize(("number", "kind"), HERE)
def test_an_exception_that_hides_a_signal_is_that_signal(number: int, kind: type[KeyboardInterrupt]):
    with pytest.raises(KeyboardInterrupt) as caught, StopSignals().listening():
        hidden(number)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, UserError)


class Dropping:
    """Receives a signal in its destructor, out of which no exception comes."""

    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


def test_a_signal_that_arrives_in_a_destructor_is_not_lost(capsys: pytest.CaptureFixture[str]):
    def wait() -> None:
        Dropping()
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt), StopSignals().listening():
        wait()
    assert capsys.readouterr().err == ""


def test_a_handled_signal_does_not_change_later_errors():
    def fail_after_a_signal(stop: StopSignals) -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            stop.raised = None
        raise JobError("disk")

    stop = StopSignals()
    with pytest.raises(JobError, match="disk"), stop.listening():
        fail_after_a_signal(stop)


def test_the_inner_of_two_listeners_gets_the_signal():
    """A command listens, and the training in it does."""
    outer, inner = StopSignals(), StopSignals()
    with outer.listening():
        with inner.listening(), inner.deferring():
            signal.raise_signal(signal.SIGINT)
        assert (outer.raised, inner.pending) == (None, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert outer.raised == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("number", "kind"), HERE)
def test_a_command_in_which_a_signal_is_hidden_is_stopped(
    number: int, kind: type, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["linnaeus", "env"])
    monkeypatch.setattr("linnaeus.cli.system.installation", lambda: hidden(number))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 128 + number
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    assert capsys.readouterr().err == f"stopped{name}\n"


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_removes_what_a_command_was_writing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Without a handler Python dies at once, and its temporary files stay until the next command that writes there."""
    write_images(tmp_path / "images")
    write_tiny_model(tmp_path / "m.safetensors")
    monkeypatch.chdir(tmp_path)

    def draw(tiles: object, path: Path, **more: object) -> None:
        with atomic(path):
            signal.raise_signal(getattr(signal, name))

    monkeypatch.setattr("linnaeus.report.image_grid.image_grid", draw)
    monkeypatch.setattr(sys, "argv", ["linnaeus", "predict", "m.safetensors", "images", "--grid", "g.png", "-q"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 128 + getattr(signal, name)
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped by {name}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "m.safetensors"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs the signals of POSIX")
def test_nohup_still_ignores_that_the_terminal_is_closed(monkeypatch: pytest.MonkeyPatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals().listening():
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")
def test_the_limit_of_processor_time_asks_once():
    """The kernel repeats the signal each second, and the second one would end a run without a checkpoint."""

    def work() -> None:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1000, hard))
        stop = StopSignals()
        with stop.listening(), stop.deferring():
            signal.raise_signal(signal.SIGXCPU)
        assert stop.pending == signal.SIGXCPU
        assert resource.getrlimit(resource.RLIMIT_CPU) == (hard, hard)

    assert in_child(work) == 0


@pytest.mark.skipif(os.name == "nt", reason="needs the signals of POSIX")
@pytest.mark.parametrize("moment", ["import", "end"])
def test_ctrl_c_before_and_after_a_command_prints_nothing(moment: str):
    """During the imports, which take a tenth of a second, and while the interpreter shuts down."""
    program = {
        "import": "import signal, sys\nsys.modules['linnaeus.cli.main'] = None\n"
        "class F:\n    def find_spec(self, name, *a):\n        name == 'linnaeus.cli.main' and signal.raise_signal(2)\n"
        "del sys.modules['linnaeus.cli.main']\nsys.meta_path.insert(0, F())\n"
        "from linnaeus.__main__ import run\nrun()",
        "end": "import atexit, signal, sys\nsys.argv = ['linnaeus', 'recipes']\n"
        "atexit.register(signal.raise_signal, 2)\nfrom linnaeus.__main__ import run\nrun()",
    }[moment]
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGINT
    assert done.stderr == ""
