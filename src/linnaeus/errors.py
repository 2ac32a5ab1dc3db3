"""The exceptions that reach the user without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CONTROLS = (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_VISIBLE = {code: chr(code).encode("unicode_escape").decode() for code in CONTROLS}


def visible(text: str) -> str:
    r"""`text` on one line that any stream takes, in the order in which it is written.

    Ends of lines, what moves a terminal's cursor or colors it, what turns the direction of writing around, and bytes
    that are no UTF-8 become escapes: `\n`, `\x1b`, `\u202e`, `\udcff`. A name may hold them all.
    """
    if text.isprintable():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8").translate(_VISIBLE)


class UserError(Exception):
    """Bad input: one line that names the file, the value and the next step.

    Whatever the names in it hold, it stays one line, and shows what a terminal would obey. The command line prints it
    on stderr and exits with `status`; in Python it is raised like any other exception.
    """

    status = 2
    told = False
    """Whether the first of several processes tells the same, so that the others need not."""

    def __init__(self, message: str = ""):
        super().__init__(visible(message))


class JobError(UserError):
    """The input was right and the job failed all the same: a loss that is NaN, a disk that is full."""

    status = 1


class DiskError(JobError):
    """A file could not be written: the disk is full, read-only or failing."""


class LostError(JobError):
    """Another of the processes that train together is gone; which, and why, it said itself or whoever started it."""

    status = 70


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean resnet50?)` where something known is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
