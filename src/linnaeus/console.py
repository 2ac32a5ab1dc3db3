"""The only module that writes to standard output and standard error: results, progress bars, messages, errors.

Either stream may be missing (pythonw, a daemon), closed, full, without a reader, unable to encode a character, or an
object of a notebook or window without `isatty`. A message that cannot be written is dropped, because it must not end a
run. A result that cannot be written ends the command. rich honors NO_COLOR.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from linnaeus.errors import JobError
from linnaeus.text import folded, percent

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

ESCAPED = "backslashreplace"  # how characters are written that are not valid UTF-8 or that the stream cannot encode

Advance = Callable[..., None]  # advance(done, total, note=""): reports the progress of a task


class MessageStream:
    """A text stream for messages. What cannot be written is escaped or dropped; no exception is raised."""

    def __init__(self, stream: Any):
        """`stream`: anything with `write`, or None."""
        self.stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return bool(self.stream.isatty())
        except Exception:  # no such method, or a closed stream
            return False

    def fileno(self) -> int:
        try:
            return int(self.stream.fileno())
        except Exception:
            raise io.UnsupportedOperation("fileno") from None

    def write(self, text: str) -> int:
        with suppress(Exception):  # a foreign stream may raise anything
            write_text(self.stream, text)
        return len(text)

    def flush(self) -> None:
        with suppress(Exception):
            self.stream.flush()


def write_text(stream: Any, text: str) -> None:
    """Write `text`, and escape the characters that the stream cannot encode."""
    try:
        stream.write(text)
    except UnicodeEncodeError as error:
        stream.write(text.encode(error.encoding, ESCAPED).decode(error.encoding))


def echo(result: object = "", end: str = "\n") -> None:
    """Write a result to standard output, if there is one.

    Raises BrokenPipeError if the reader has closed it, and JobError if it cannot be written.
    """
    stream = sys.stdout
    if stream is None or getattr(stream, "closed", False):
        return
    try:
        write_text(stream, f"{result}{end}")
        if hasattr(stream, "flush"):
            stream.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(stream)
        raise JobError(f"standard output: cannot be written ({error.strerror}); redirect it to another place") from None


def echo_text(text: str) -> None:
    """As `echo`, for text that people read: a terminal breaks it between words."""
    echo(on_terminal(text, MessageStream(sys.stdout)))


def on_terminal(text: str, stream: MessageStream) -> str:
    """Text as `stream` shows it: folded to the width of a terminal, unchanged elsewhere."""
    if not stream.isatty():
        return text
    columns = shutil.get_terminal_size().columns
    return "\n".join(folded(line, columns) for line in text.split("\n"))


def echo_error(line: str) -> None:
    """Write a message to standard error, if possible."""
    stream = MessageStream(sys.stderr)
    stream.write(f"{on_terminal(line, stream)}\n")
    stream.flush()


def prepare_streams() -> None:
    """Make the three standard streams usable, at the start of a command.

    A closed descriptor is opened on the null device. Otherwise the next file that is opened would get its number, and
    output of a library would be written into that file. File names may contain bytes that are not UTF-8, or characters
    that the terminal cannot encode: they are read as lone surrogates and written as \\udcxx, which JSON can read.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, mode, errors in (("stdin", "r", "surrogateescape"), ("stdout", "w", ESCAPED), ("stderr", "w", ESCAPED)):
        stream = getattr(sys, name)
        if stream is None or getattr(stream, "closed", False):
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8", errors=errors))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)
        elif mode == "w" and not hasattr(stream, "isatty"):  # libraries ask for it
            setattr(sys, name, MessageStream(stream))


def finish_streams() -> None:
    """Flush both streams at the end of a command. Raises JobError if standard output cannot be written."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        discard(sys.stdout)
    except OSError as error:
        discard(sys.stdout)
        raise JobError(f"standard output: cannot be written ({error.strerror}); redirect it to another place") from None
    except Exception:  # closed, or not a file
        discard(sys.stdout)
    try:
        sys.stderr.flush()
    except Exception:
        discard(sys.stderr)


def discard(stream: Any) -> None:
    """Redirect `stream` to the null device, so that the flush at the end of the interpreter does not fail."""
    with suppress(Exception):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class Console:
    """Writes messages to `stream`. Commands write their results with `echo`.

    quiet: only warnings; library calls pass quiet=True. verbose: details too. silent: not even warnings; used by all
    ranks but 0. bars: whether progress is shown; by default it is unless the console is quiet.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        verbose: bool = False,
        silent: bool = False,
        bars: bool | None = None,
        stream: TextIO | MessageStream | None = None,
    ):
        self.quiet, self.verbose, self.silent = quiet or silent, verbose, silent
        self.bars = (not self.quiet if bars is None else bars) and not silent
        self.stream = stream if isinstance(stream, MessageStream) else MessageStream(stream or sys.stdout)
        self._bar: Progress | None = None

    @property
    def terminal(self) -> bool:
        return not self.silent and self.stream.isatty()

    def progress_only(self) -> Console:
        """A console that shows the progress and the warnings of this one, and none of its messages."""
        return Console(quiet=True, silent=self.silent, bars=self.bars, stream=self.stream)

    def say(self, line: str = "") -> None:
        if not self.quiet:
            self._print(line, self.stream)

    def detail(self, line: str) -> None:
        """Write a message that is shown only with `verbose`."""
        if self.verbose and not self.quiet:
            self._print(line, self.stream)

    def warn(self, line: str) -> None:
        """Write a warning to standard error, also if `quiet`."""
        if not self.silent:
            self._print(f"warning: {line}", MessageStream(sys.stderr))

    def _print(self, line: str, stream: MessageStream) -> None:
        line = on_terminal(line, stream)
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)  # above the bar, which stays
        else:
            stream.write(f"{line}\n")
            stream.flush()

    @contextmanager
    def progress(self, description: str, unit: str = "images") -> Iterator[Advance]:
        """A progress bar on a terminal; elsewhere a line after 30 s, then at most one for every tenth."""
        if not self.bars:
            yield lambda done, total, note="": None
        elif not self.terminal:
            yield self._plain(description, unit)
        else:
            with self._rich(description, unit) as advance:
                yield advance

    def _plain(self, description: str, unit: str, every: float = 30.0) -> Advance:
        last = time.monotonic()
        # Speed counts from the third call on: a resumed pass does not begin at nothing, and the first steps are slow.
        first: tuple[int, float] | None = None
        calls = 0
        due = 0.0  # the share from which on the next line is due

        def advance(done: int, total: int | None, note: str = "") -> None:
            nonlocal last, first, calls, due
            now, calls, start = time.monotonic(), calls + 1, first
            if calls <= 3:
                first = (done, now)
            share = done / total if total else 1.0
            if now - last < every or share < due or done >= (total or done + 1):
                return
            last, due = now, share + 0.1 if total else 0.0
            speed = (done - start[0]) / (now - start[1]) if start is not None and now > start[1] else 0.0
            rate = f", {_rate(speed)}" if speed > 0 else ""  # after one step, the speed is not known yet
            left = f", about {duration((total - done) / speed)} left" if total and speed > 0 else ""
            of_total, reached = (f" of {total:,}", f" ({percent(share, 0)})") if total else ("", "")
            line = f"{description}: {done:,}{of_total} {unit}{reached}{rate}{left}{'  ' + note if note else ''}"
            self._print(line, self.stream)

        return advance

    @contextmanager
    def _rich(self, description: str, unit: str) -> Iterator[Advance]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            _speed_column(unit),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False),
        )
        # transient: the bar disappears at the end and leaves only the lines of the log.
        with Progress(*columns, console=RichConsole(file=cast(TextIO, self.stream)), transient=True) as bar:
            task = bar.add_task(description, total=None, note="")
            self._bar = bar
            try:
                yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
            finally:
                self._bar = None


def _speed_column(unit: str) -> ProgressColumn:
    """A column with the rate per second. Defined in a function, so that rich is imported only on a terminal."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.0f} {unit}/s")

    return Speed(table_column=Column(no_wrap=True))


def _rate(speed: float) -> str:
    """`12 a second`, or `3.5 a minute` where whole seconds would say nothing."""
    return f"{speed:.0f} a second" if speed >= 1 else f"{60 * speed:.2g} a minute"


def counted(n: int, noun: str) -> str:
    """`1 image`, `2,000 images`, `2 processes`."""
    return f"{n} {noun}" if n == 1 else f"{n:,} {noun}{'es' if noun.endswith('ss') else 's'}"


def duration(seconds: float) -> str:
    """Seconds in readable units: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
