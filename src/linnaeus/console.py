"""What a command prints: progress bars on a terminal, plain lines elsewhere. NO_COLOR is rich's own business."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from linnaeus.text import percent

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

ESCAPED = "backslashreplace"
"""How a name that is no UTF-8, or that a stream cannot show, is written."""

Advance = Callable[..., None]
"""advance(done, total, note=""): where a piece of work stands."""


class Console:
    """Lines on `stream` for whoever started the command. Results go to stdout by the command itself, not through here.

    quiet: warnings only. verbose: details too. A library call that wants silence passes quiet=True. silent: not even
    warnings, as of all processes but the first where several do one job.
    """

    def __init__(
        self, *, quiet: bool = False, verbose: bool = False, silent: bool = False, stream: TextIO | None = None
    ):
        self.quiet, self.verbose, self.silent = quiet or silent, verbose, silent
        self.stream = stream if stream is not None else sys.stdout
        self._bar: Progress | None = None

    @property
    def terminal(self) -> bool:
        return not self.silent and self.stream.isatty()

    def say(self, line: str = "") -> None:
        """A line of the story."""
        if not self.quiet:
            self._print(line, self.stream)

    def detail(self, line: str) -> None:
        """A line for those who asked for more."""
        if self.verbose and not self.quiet:
            self._print(line, self.stream)

    def warn(self, line: str) -> None:
        """A line that matters even to those who asked for quiet."""
        if not self.silent:
            self._print(f"warning: {line}", sys.stderr)

    def _print(self, line: str, stream: TextIO) -> None:
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)  # above the bar, which stays
        else:
            print(line, file=stream, flush=True)

    @contextmanager
    def progress(self, what: str, unit: str = "images") -> Iterator[Advance]:
        """A bar on a terminal. Elsewhere a plain line now and then, so that logs stay short."""
        if self.quiet:
            yield lambda done, total, note="": None
        elif not self.terminal:
            yield self._plain(what, unit)
        else:
            with self._rich(what, unit) as advance:
                yield advance

    def _plain(self, what: str, unit: str, every: float = 30.0) -> Advance:
        started = last = time.monotonic()

        def advance(done: int, total: int | None, note: str = "") -> None:
            nonlocal last
            now = time.monotonic()
            if now - last >= every and done < (total or done + 1):
                last = now
                share = f" of {total} ({percent(done / total, 0)})" if total else ""
                self.say(
                    f"{what}: {done}{share} {unit}, {done / (now - started):.0f} a second{'  ' + note if note else ''}"
                )

        return advance

    @contextmanager
    def _rich(self, what: str, unit: str) -> Iterator[Advance]:
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
        with Progress(*columns, console=RichConsole(file=self.stream), transient=True) as bar:
            task = bar.add_task(what, total=None, note="")
            self._bar = bar
            try:
                yield lambda done, total, note="": bar.update(task, completed=done, total=total, note=note)
            finally:
                self._bar = None


def _speed_column(unit: str) -> ProgressColumn:
    """A column that says how many a second. Made late, so that rich is imported only on a terminal."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Speed(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:.0f} {unit}/s")

    return Speed(table_column=Column(no_wrap=True))


def counted(n: int, what: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 119.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
