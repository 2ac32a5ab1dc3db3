"""Compare nested tables, such as recipes, key by key."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def differences(values: Sequence[Any], *, expand: bool = False, key: str = "") -> dict[str, list[Any]]:
    """Find where nested values differ: dotted key -> the value at that key in each of `values`, None if absent.

    Tables in a list are numbered from 1, as `--set` does: `phase.2.lr`. A table that only some of the values have is
    one difference, or with `expand` one difference for each of its keys. `key` is the place of `values` themselves.
    """
    if all(value == values[0] for value in values):
        return {}
    tables = [_as_table(value, expand) for value in values]
    if any(table is None for table in tables) or not any(tables):
        return {key: list(values)}
    names = dict.fromkeys(name for table in tables for name in table or ())
    changes: dict[str, list[Any]] = {}
    for name in names:
        parts = [(table or {}).get(name) for table in tables]
        changes |= differences(parts, expand=expand, key=f"{key}.{name}" if key else str(name))
    return changes


def _as_table(value: Any, expand: bool) -> Mapping[str, Any] | None:
    """`value` as a table; None if it is a single value."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return {str(number): item for number, item in enumerate(value, start=1)}
    return {} if value is None and expand else None


def change_lines(old: Any, new: Any) -> list[str]:
    """`key: old → new` for every difference of two nested values."""
    return [f"{key}: {_short(was)} → {_short(now)}" for key, (was, now) in differences([old, new]).items()]


def _short(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "…"
