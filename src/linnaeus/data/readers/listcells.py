"""Cells of a CSV that hold a list as Python, JSON or NumPy write it: `['cat', 'small']`, `["cat"]`, `['a' 'b']`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from linnaeus.data.readers.listfile import clip
from linnaeus.errors import UserError

QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")
NUMBER = r"[+-]?[0-9][0-9.eE+-]*"
NUMBERS = re.compile(rf"\[\s*({NUMBER}([\s,]+{NUMBER})*[\s,]*)?\]|\({NUMBER}\s*,({NUMBER}|[\s,])*\)")


def list_cells(file: Path, column: str, cells: Mapping[int, str]) -> dict[int, tuple[str, ...]] | None:
    """Line -> the items of its cell, where some of the `cells` are lists; a cell that is not is its only item.

    None if no cell is a list. Raises UserError for an object such as `{"name": "cat"}`, and for vectors with a number
    for each class, whose numbers are not labels.
    """
    found = {line: items for line, text in cells.items() if (items := _items(file, line, column, text)) is not None}
    # A class may be called [other]; a quote, a comma or a number shows that brackets are those of a list.
    if not any(NUMBERS.fullmatch(cells[line].strip()) or re.search("['\",]", cells[line]) for line in found):
        return None
    if numeric := [line for line, items in found.items() if items and NUMBERS.fullmatch(cells[line].strip())]:
        lengths = {len(found[line]) for line in numeric}
        if lengths != {1} and len(lengths) == 1 and all(0 <= float(x) <= 1 for line in numeric for x in found[line]):
            raise UserError(
                f"{file}:{numeric[0]}: {column} is {clip(cells[numeric[0]])}, one number for each class; write the "
                "name of the class, or a column of 0 and 1 for each class"
            )
    return {line: found.get(line, (text.strip(),) if text.strip() else ()) for line, text in cells.items()}


def _items(file: Path, line: int, column: str, text: str) -> tuple[str, ...] | None:
    """The items of one cell; None if it is not a list."""
    text = text.strip()
    if text[:1] + text[-1:] not in ("[]", "()", "{}") or len(text) < 2:
        return None
    if NUMBERS.fullmatch(text):
        return tuple(text[1:-1].replace(",", " ").split())
    quoted, between = QUOTED.findall(text), QUOTED.sub("", text[1:-1])
    if quoted and not between.strip(" ,\n"):
        # Not literal_eval of the whole: NumPy writes no commas, and Python joins adjacent strings.
        with suppress(ValueError, SyntaxError):
            return tuple(str(ast.literal_eval(item)).strip() for item in quoted)
    if quoted and ":" in between:
        with suppress(ValueError, RecursionError):
            content = json.loads(text)  # Label Studio writes several choices as {"choices": ["cat", "small"]}
            if isinstance(content, dict) and list(content) == ["choices"]:
                return tuple(map(str, content["choices"]))
        raise UserError(f"{file}:{line}: {column} is {clip(text)}, an object; write only the name of the class")
    if quoted or (text[0] == "(" and text != "()"):
        return None
    return tuple(part for item in text[1:-1].split(",") if (part := item.strip()))
