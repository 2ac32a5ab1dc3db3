"""Summarize the same problem of many images in a few lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

EXAMPLES = 3  # images of one problem that are named


class FoldedProblems:
    """Names the first images of each problem as they come, and counts the others."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, path: str, reason: str) -> str | None:
        """The line for an image; None where its problem has been named often enough."""
        self._counts[reason] += 1
        return f"{path}: {reason}" if self._counts[reason] <= EXAMPLES else None

    def rest(self) -> list[str]:
        """A line for each problem of more images than were named."""
        more = {reason: count - EXAMPLES for reason, count in self._counts.items() if count > EXAMPLES}
        return [f"{count:,} more image{'s' * (count > 1)}: {reason}" for reason, count in more.items()]


def folded(problems: Iterable[tuple[str, str]]) -> list[str]:
    """The lines for (path, reason) of several images."""
    summary = FoldedProblems()
    lines = [summary.add(path, reason) for path, reason in problems]
    return [line for line in lines if line is not None] + summary.rest()
