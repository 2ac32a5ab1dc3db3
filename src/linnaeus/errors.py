"""The exceptions that reach the user without a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the file, the value and the next step.

    The command line prints it on stderr and exits with `status`; in Python it is raised like any other exception.
    """

    status = 2
    told = False
    """Whether the first of several processes tells the same, so that the others need not."""


class JobError(UserError):
    """The input was right and the job failed all the same: a loss that is NaN, a disk that is full."""

    status = 1


class LostError(JobError):
    """Another of the processes that train together is gone; which, and why, it said itself or whoever started it."""

    status = 70


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean resnet50?)` where something known is close to `word`, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
