"""Plain text: aligned columns, terminal widths, percentages."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence

ROUNDING = 1e-12
"""Shares this close to 0 or 1 are 0 or 1, but for the rounding of sums."""


def align(rows: Sequence[Sequence[str]], sides: str, indent: str = "  ") -> list[str]:
    """Rows of cells as lines with aligned columns: `sides` has a `<` (left) or `>` (right) for each column."""
    widths = [max(width(row[c]) for row in rows) for c in range(len(sides))]

    def cells(row: Sequence[str]) -> Iterator[str]:
        for cell, side, wide in zip(row, sides, widths, strict=True):
            blank = " " * (wide - width(cell))
            yield cell + blank if side == "<" else blank + cell

    return [(indent + "  ".join(cells(row))).rstrip() for row in rows]


def width(text: str) -> int:
    """Terminal columns that a text takes; East Asian wide characters take two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else not unicodedata.combining(c) for c in text)


def shorten(text: str, most: int) -> str:
    """`text`, or its beginning with an ellipsis, in at most `most` terminal columns."""
    if width(text) <= most:
        return text
    while width(text) > most - 1:
        text = text[:-1]
    return text + "…"


def percent(share: float | None, digits: int = 1, *, signed: bool = False, exact: bool = False) -> str:
    """0.934 -> "93.4 %". The only place where the package writes a percentage for people.

    "0.0 %" and "100.0 %" mean exactly 0 and 1: what rounding would make of 0.0004 and 0.9996 is "<0.1 %" and ">99.9 %",
    or with `exact`, for thresholds, as many more digits as it takes: "0.04 %" and "99.96 %". `signed` writes "+" before
    a difference that is not negative. A dash if `share` is None or not finite.
    """
    if share is None or not math.isfinite(share):
        return "–"
    sign, size = ("-" if share < -ROUNDING else "+" if signed else ""), abs(share)
    low, high = size > ROUNDING, size < 1 - ROUNDING
    while exact and digits < 10 and _rounded_away(f"{100 * size:.{digits}f}", low, high):
        digits += 1
    text, step = f"{100 * size:.{digits}f}", 10.0**-digits
    if _rounded_away(text, low, high):
        text = f"<{step:.{digits}f}" if size < 0.5 else f">{100 - step:.{digits}f}"
    return f"{sign}{text} %"


def _rounded_away(text: str, positive: bool, below_one: bool) -> bool:
    """Whether rounding made 0 or 100 of a share that is neither."""
    return (positive and float(text) == 0) or (below_one and float(text) == 100)


def typeset_percent(share: float | None, digits: int = 0, *, exact: bool = False) -> str:
    """As `percent`, with the narrow no-break space of typography, for documents and drawings."""
    return percent(share, digits, exact=exact).replace(" ", "\u202f")
