"""Progress of a search for a penalty: passes over the features so far, and an estimate of their number."""

from __future__ import annotations

from linnaeus.console import Advance

FIRST_FIT = 10  # passes expected of a fit before any has ended


class SearchProgress:
    """Counts the passes over the features in a sequence of fits.

    How many fits and passes there will be is known only at the end. The expected number is that of the fits that follow
    at least, each with the mean number of passes so far; it rises when the search goes on.
    """

    def __init__(self, advance: Advance | None):
        self.advance = advance
        self.note = ""
        self.ended: list[int] = []  # passes of each fit that has ended
        self.passes, self.following = 0, 0

    def begin(self, note: str, following: int) -> None:
        """A fit begins, which at least `following` others will follow, beside the last one on all samples."""
        if self.passes:
            self.ended.append(self.passes)
        self.note, self.passes, self.following = note, 0, following

    def passed(self) -> None:
        """A pass over the features ended."""
        self.passes += 1
        if self.advance is None:
            return
        mean = sum(self.ended) / len(self.ended) if self.ended else FIRST_FIT
        done = sum(self.ended) + self.passes
        self.advance(done, round(done + max(mean - self.passes, 1) + mean * self.following), self.note)
