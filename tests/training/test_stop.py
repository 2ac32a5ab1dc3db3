"""Signals that arrive at an inconvenient moment."""

from __future__ import annotations

import signal
import sys

import pytest

from linnaeus.cli.main import main
from linnaeus.errors import JobError, UserError
from linnaeus.training.stop import StopSignals, Terminated


def hidden(number: int) -> None:
    """Like a library that runs Python code from C: it replaces the exception of a signal by its own."""
    try:
        signal.raise_signal(number)
    except KeyboardInterrupt:
        raise UserError("cut short") from None


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_an_exception_that_hides_a_signal_is_that_signal(number: int, kind: type[KeyboardInterrupt]):
    with pytest.raises(KeyboardInterrupt) as caught, StopSignals().listening():
        hidden(number)
    assert type(caught.value) is kind
    assert isinstance(caught.value.__cause__, UserError)


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
    """A command listens for Ctrl-C, and the training in it for both signals."""
    outer, inner = StopSignals(), StopSignals()
    with outer.listening((signal.SIGINT,)):
        with inner.listening(), inner.deferring():
            signal.raise_signal(signal.SIGINT)
        assert (outer.raised, inner.pending) == (None, signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert outer.raised == signal.SIGINT
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_command_in_which_a_signal_is_hidden_is_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["linnaeus", "env"])
    monkeypatch.setattr("linnaeus.cli.system.installation", lambda: hidden(signal.SIGINT))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1
    assert capsys.readouterr().err == "stopped\n"
