"""Text: aligned columns, terminal widths, percentages, cells of CSV files, and the templates of pages."""

from __future__ import annotations

import base64
import csv
import functools
import hashlib
import html
import io
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    import jinja2

ROUNDING = 1e-12  # shares this close to 0 or 1 are 0 or 1, apart from the rounding of sums


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


def folded(line: str, columns: int) -> str:
    """A message as lines of at most `columns`, broken between words and indented below its label.

    Parts that two spaces separate stay together, if that leaves a third of the line. A longer word, such as a path,
    stays whole.
    """
    label = re.match(r" +|\w+: |\S+ {2,}|[a-z]+ (?<=^.{10})|", line)
    start = label.end() if label and label.end() <= columns // 3 else 0
    indent = " " * (start + 2 if line.startswith(" ") else start)
    lines: list[str] = []
    while width(line) > columns:
        end = next(k for k in range(len(line), 0, -1) if width(line[:k]) <= columns)
        first = len(indent) if lines else start
        cut = line.rfind("  ", max(first, columns // 3), end)
        if cut < 0:
            cut = line.rfind(" ", first, end + 1)
        if cut < 0:  # a long word
            cut = line.find(" ", end)
        if cut < 0:
            break
        lines.append(line[:cut].rstrip())
        line = indent + line[cut:].lstrip()
    return "\n".join([*lines, line])


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
    while exact and digits < 10 and _bounded(size, 100, digits)[0] in "<>":
        digits += 1
    return f"{sign}{_bounded(size, 100, digits)} %"


def probability_percent(value: float | None, digits: int = 1, *, typeset: bool = False) -> str:
    """The probability of a class as a percentage, never "0.0 %" or "100.0 %".

    A softmax reaches 0 and 1 only by rounding, of the logits' type or of a file's digits, so that equally certain
    answers would be shown as "100.0 %" and ">99.9 %". `typeset` as `typeset_percent`. A dash if `value` is
    None or not finite.
    """
    bounded = value if value is None or not 0 <= value <= 1 else min(max(value, 2 * ROUNDING), 1 - 2 * ROUNDING)
    return typeset_percent(bounded, digits) if typeset else percent(bounded, digits)


def fraction(value: float | None, digits: int = 2) -> str:
    """0.9349 -> "0.93", for figures between 0 and 1 that are no shares, such as AUROC.

    "1.00" means exactly 1: what rounding would make of 0.9996 is ">0.99". A dash if `value` is None or not finite.
    """
    return "–" if value is None or not math.isfinite(value) else _bounded(value, 1, digits)


def fraction_range(low: float, high: float, digits: int = 2) -> str:
    """`0.85 to 0.93`: an interval of such a figure."""
    return f"{fraction(low, digits)} to {fraction(high, digits)}"


def percent_range(ends: Iterable[float], digits: int = 1, *, signed: bool = False, exact: bool = False) -> str:
    """`89.1 % to 94.6 %`: an interval of a share, or with `exact` of thresholds; empty without ends."""
    return " to ".join(percent(end, digits, signed=signed, exact=exact) for end in ends)


def _bounded(share: float, most: int, digits: int) -> str:
    """`share` as a part of `most`, rounded, but never to 0 or `most` unless it is 0 or 1."""
    text, step = f"{most * share:.{digits}f}", 10.0**-digits
    if share > ROUNDING and float(text) == 0:
        return f"<{step:.{digits}f}"
    return f">{most - step:.{digits}f}" if share < 1 - ROUNDING and float(text) == most else text


def typeset_percent(share: float | None, digits: int = 0, *, exact: bool = False) -> str:
    """As `percent`, with the narrow no-break space of typography, for documents and drawings."""
    return typeset(percent(share, digits, exact=exact))


def typeset(text: str) -> str:
    """`text` with a narrow no-break space before each percent sign, so that no line of a document begins with one."""
    return re.sub(r"(?<=[0-9]) %", "\u202f%", text)


FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet may take for the start of a formula (OWASP, CSV injection)


class SafeCsvWriter:
    """Writes the rows of a CSV file; the only writer of the package. A text that could be a formula gets a quote mark
    in front, which spreadsheets do not show and `plain_cell` removes."""

    def __init__(self, file: TextIO, lineterminator: str = "\n"):
        self._file, self._end, self._line = file, lineterminator, io.StringIO(newline="")
        # Before Python 3.13 a carriage return in a cell is quoted only where the line ends have one.
        self._rows = csv.writer(self._line, lineterminator="\r\n")

    def writerow(self, row: Iterable[object]) -> None:
        self._rows.writerow(safe_cell(cell) if isinstance(cell, str) else cell for cell in row)
        self._file.write(self._line.getvalue().removesuffix("\r\n") + self._end)
        self._line.seek(0)
        self._line.truncate()

    def writerows(self, rows: Iterable[Iterable[object]]) -> None:
        for row in rows:
            self.writerow(row)


def safe_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: `=1+1` -> `'=1+1`. Numbers stay: -0.5."""
    return f"'{text}" if _is_formula(text) else text


def plain_cell(text: str) -> str:
    """The inverse of `safe_cell`."""
    return text[1:] if text.startswith("'") and _is_formula(text) else text


def _is_formula(text: str) -> bool:
    """Whether a text, apart from quote marks before it, could be a formula."""
    bare = text.lstrip("'")
    if not (bare.startswith(FORMULA) or bare.lstrip().startswith(FORMULA)):  # some programs skip blanks
        return False
    with suppress(ValueError):
        float(bare)
        return False
    return True


def code_html(text: str) -> str:
    """HTML of a message: what stands between backticks becomes code, everything is escaped."""
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(text))


@functools.cache
def page_templates(folder: Path) -> jinja2.Environment:
    """The templates of pages in a folder: values are escaped, and one that is missing is an error.

    The filter `code` shows what stands between backticks in a message as code.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = lambda text: Markup(code_html(text))
    return environment


def policy_source(text: str) -> str:
    """The source of a Content-Security-Policy that allows this script or style alone, such as 'sha256-…'."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def html_table(title: str, rows: Iterable[tuple[object, object]]) -> str:
    """A small table of two columns for notebooks; everything is escaped."""
    body = "".join(f"<tr><th>{html.escape(str(a))}</th><td>{html.escape(str(b))}</td></tr>" for a, b in rows)
    return f"<table><caption>{html.escape(title)}</caption><tbody>{body}</tbody></table>"


def local_time(seconds: float) -> datetime:
    """Seconds since 1970 as local time; 1970 for a time that no calendar has, which a file system may state."""
    try:
        return datetime.fromtimestamp(seconds)
    except (OSError, OverflowError, ValueError):
        return datetime.fromtimestamp(0)


def first_few(parts: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """`parts` for a message of one line; those after the first `most` are only counted: `a, b, c and 2 more`."""
    text = separator.join(parts[:most])
    return text if len(parts) <= most else f"{text} and {len(parts) - most} more"


def such_as(n: int, example: object) -> str:
    """What follows a count of n: `, such as EXAMPLE`, or `: EXAMPLE` if it is the only one."""
    return f": {example}" if n == 1 else f", such as {example}"


def selection_title(shown: int, total: int, noun: str, mistakes_shown: int, mistakes: int) -> str:
    """The title of a grid that shows some of several images: `64 of 100 images shown, the 7 mistakes first`."""
    title = f"{total:,} {noun}" if shown == total else f"{shown:,} of {total:,} {noun} shown"
    if mistakes_shown < mistakes:
        return f"{title}, the {mistakes_shown:,} most confident of {mistakes:,} mistakes first"
    if mistakes:
        return f"{title}, the {mistakes:,} mistakes first" if mistakes > 1 else f"{title}, the mistake first"
    return title
