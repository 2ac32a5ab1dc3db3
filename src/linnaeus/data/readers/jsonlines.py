"""JSON lines as a table: an object in each line, such as `{"file_name": "1.jpg", "label": "rose"}`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from linnaeus.data.class_names import read_text
from linnaeus.data.readers.columns import Row
from linnaeus.errors import UserError


def json_records(path: Path) -> tuple[list[str], list[Row]]:
    """The header, and the lines by columns in lower case; a list of labels becomes one cell, separated by |."""
    rows: list[tuple[int, dict[str, str]]] = []
    header: dict[str, None] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except (ValueError, RecursionError):
            raise UserError(f"{path}:{number}: not JSON; write one object in each line") from None
        if not isinstance(content, dict):
            raise UserError(f'{path}:{number}: not an object; write {{"file_name": "1.jpg", "label": "rose"}}')
        header |= dict.fromkeys(name.strip() for name in content)
        rows.append((number, {name.strip().lower(): _cell(value) for name, value in content.items()}))
    columns = [name.lower() for name in header]
    return list(header), [(number, {name: cells.get(name, "") for name in columns}) for number, cells in rows]


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list) and all(isinstance(item, str | int) for item in value):
        return "|".join(map(str, value))
    return str(value)
