"""What a command prints, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re
from contextlib import nullcontext
from pathlib import Path

import pytest

import linnaeus
from linnaeus.console import Console, counted, duration, echo_error, echo_text
from linnaeus.data.sources import open_source
from linnaeus.errors import UserError
from linnaeus.text import such_as


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]):
    for quiet, verbose, expected in ((False, False, "say\n"), (False, True, "say\ndetail\n"), (True, True, "")):
        stream = io.StringIO()
        console = Console(quiet=quiet, verbose=verbose, stream=stream)
        console.say("say")
        console.detail("detail")
        console.warn("warn")
        assert stream.getvalue() == expected
        assert capsys.readouterr().err == "warning: warn\n"


def test_without_a_terminal_there_are_plain_lines_now_and_then(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("linnaeus.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    with Console(stream=stream).progress("decoding") as advance:
        for done in range(1, 101):
            now += 1.0
            advance(done, 100)
    assert stream.getvalue().splitlines() == [
        "decoding: 30 of 100 images (30 %), 1 a second, about 70 s left",
        "decoding: 60 of 100 images (60 %), 1 a second, about 40 s left",
        "decoding: 90 of 100 images (90 %), 1 a second, about 10 s left",
    ]


@pytest.mark.parametrize(("steps", "seconds", "lines"), [(20, 25.0, 9), (100_000, 0.36, 10), (600, 0.04, 0)])
def test_a_log_has_at_most_a_line_for_every_tenth(
    steps: int, seconds: float, lines: int, monkeypatch: pytest.MonkeyPatch
):
    """However long a pass takes: here 8 minutes of slow steps, 10 hours, and half a minute."""
    now = 0.0
    monkeypatch.setattr("linnaeus.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    with Console(stream=stream).progress("solving the head", "penalties") as advance:
        for done in range(1, steps + 1):
            now += seconds
            advance(done, steps, "epoch 1/2")
    printed = stream.getvalue().splitlines()
    assert len(printed) == lines
    if lines == 9:
        assert (
            printed[0] == "solving the head: 2 of 20 penalties (10 %), 2.4 a minute, about 7 min 30 s left  epoch 1/2"
        )


def test_one_step_is_no_estimate(monkeypatch: pytest.MonkeyPatch):
    """The first step has the time in which the model was loaded."""
    now = 0.0
    monkeypatch.setattr("linnaeus.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    with Console(stream=stream).progress("predicting") as advance:
        now = 50.0
        advance(1, 151)
    assert stream.getvalue() == "predicting: 1 of 151 images (1 %)\n"


def test_a_resumed_pass_estimates_by_what_it_has_done_itself(monkeypatch: pytest.MonkeyPatch):
    now = 0.0
    monkeypatch.setattr("linnaeus.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    with Console(stream=stream).progress("phase 1") as advance:
        for done in range(501, 600):
            now += 1.0
            advance(done, 1000)
    assert stream.getvalue().splitlines()[0] == "phase 1: 530 of 1,000 images (53 %), 1 a second, about 7 min 50 s left"


@pytest.mark.parametrize("with_bar", [False, True])
def test_a_terminal_breaks_messages_between_words(
    with_bar: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Below their labels. A log has one line for each message."""
    monkeypatch.setenv("COLUMNS", "40")
    line = "certainty probabilities are right nine times in ten, 玫瑰玫瑰 /a/path/that/is/longer/than/the/terminal/is"
    stream, log = Terminal(), io.StringIO()
    console = Console(stream=stream)
    with console.progress("decoding") if with_bar else nullcontext():
        console.say(line)
        console.say("  epoch 1/2  train loss 2.3  valid loss 2.3 *  1 s")
    Console(stream=log).say(line)
    expected = [
        "certainty probabilities are right nine",
        "          times in ten, 玫瑰玫瑰",
        "          /a/path/that/is/longer/than/the/terminal/is",
        "  epoch 1/2  train loss 2.3",
        "    valid loss 2.3 *  1 s",
    ]
    out, err = Terminal(), Terminal()
    monkeypatch.setattr("sys.stdout", out)
    echo_text("note: a result\n  accuracy  97.1 %  85.5 % to 99.5 %  34 of 35 images")
    assert out.getvalue() == "note: a result\n  accuracy  97.1 %  85.5 % to 99.5 %\n    34 of 35 images\n"
    monkeypatch.setattr("sys.stderr", err)
    echo_error("error: a message that is longer than 40 columns")
    assert err.getvalue() == "error: a message that is longer than 40\n       columns\n"
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", stream.getvalue().replace("\r", "\n"))
    assert [row for row in shown.splitlines() if row and "decoding" not in row] == expected
    assert log.getvalue() == f"{line}\n"


def test_a_bar_on_a_terminal_with_lines_above_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    console = Console(stream=stream)
    with console.progress("phase 1 [bold]") as advance:
        advance(50, 100, "epoch 1/2  loss 0.5 [red]")
        console.say("a line [with] brackets")
    text = stream.getvalue()
    assert "a line [with] brackets" in text
    assert "phase 1 [bold]" in text  # not taken for markup
    assert "loss 0.5 [red]" in text
    assert "50/100" in text
    assert "\x1b[1m" not in text
    assert "\x1b[3" not in text  # NO_COLOR


def test_quiet_has_no_bar():
    stream = Terminal()
    with Console(quiet=True, stream=stream).progress("phase 1") as advance:
        advance(1, 2, note="x")
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "0.0 s"),
        (0.84, "0.8 s"),
        (9.96, "10 s"),
        (42.3, "42 s"),
        (119.6, "2 min 00 s"),
        (185, "3 min 05 s"),
        (7199.6, "2 h 00 min"),
        (7800, "2 h 10 min"),
    ],
)
def test_a_time_as_a_person_says_it(seconds: float, said: str):
    assert duration(seconds) == said


def test_the_slow_first_steps_do_not_count_for_the_time_left(monkeypatch: pytest.MonkeyPatch):
    """The first batch takes 20 s, the next ones 12 and 10 s, all others one second."""
    now, stream = 0.0, io.StringIO()
    monkeypatch.setattr("linnaeus.console.time.monotonic", lambda: now)
    with Console(stream=stream).progress("stem to layer4") as advance:
        for batch, seconds in enumerate([20.0, 12.0, 10.0, *[1.0] * 30], start=1):
            now += seconds
            advance(32 * batch, 32 * 100)
    lines = stream.getvalue().splitlines()
    assert lines[-1] == "stem to layer4: 736 of 3,200 images (23 %), 32 a second, about 77 s left"


def test_only_progress_and_warnings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Of a console that is quiet or silent itself, no more than it shows."""
    now = 0.0
    monkeypatch.setattr("linnaeus.console.time.monotonic", lambda: now)
    for about, lines, warned in (({}, 1, 1), ({"quiet": True}, 0, 1), ({"silent": True}, 0, 0)):
        stream = io.StringIO()
        console = Console(stream=stream, **about).progress_only()
        console.say("say")
        console.warn("warn")
        with console.progress("weights") as advance:
            advance(1, 10)
            now += 31.0
            advance(2, 10)
        assert len(stream.getvalue().splitlines()) == lines
        assert capsys.readouterr().err.count("warning: warn") == warned


def open_plural(line: str) -> bool:
    """Whether a text of a line has a plural in parentheses."""
    return re.search(r"""["'}].* (?!http\()\w+\((s|es)\)[ ,;"]""", line) is not None


def test_no_message_leaves_the_plural_open():
    """`image(s)`: `counted` has the right form."""
    source = Path(linnaeus.__file__).parent
    texts = {file.name: file.read_text(encoding="utf-8") for file in source.rglob("*.py")}
    left = [(name, line) for name, text in texts.items() for line in text.splitlines() if open_plural(line)]
    assert left == []
    assert open_plural('f"{n} image(s) left out"'), "the search finds one"
    assert [counted(n, "process") for n in (1, 2)] == ["1 process", "2 processes"]
    assert [such_as(n, "a.jpg") for n in (1, 2)] == [": a.jpg", ", such as a.jpg"]


def test_a_folder_without_images_says_what_to_do_before_the_endings(tmp_path: Path):
    with pytest.raises(UserError) as caught:
        open_source(tmp_path)
    message = str(caught.value)
    assert message.index("put the images of each class") < message.index(".jpg")
