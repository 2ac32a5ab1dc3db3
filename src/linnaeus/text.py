"""Plain text: aligned columns, terminal widths, percentages."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence


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


def percent(share: float, digits: int = 0) -> str:
    """0.934 -> "93 %", with a narrow no-break space; a dash if `share` is NaN."""
    return f"{100 * share:.{digits}f}\u202f%" if math.isfinite(share) else "–"
