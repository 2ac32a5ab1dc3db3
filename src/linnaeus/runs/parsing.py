"""Read one file of a run folder. Every error is a UserError that names the file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from linnaeus.errors import UserError, not_read
from linnaeus.runs.layout import METRICS
from linnaeus.text import plain_cell

ADVICE = "train the run again"
Row = TypeVar("Row")


def read_text(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="backslashreplace", newline="") as file:
            return file.read()
    except OSError as error:
        raise not_read(path, error, ADVICE) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise UserError(f"{path}: is not valid JSON ({error}); {ADVICE}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: is not a JSON object; {ADVICE}")
    return value


def csv_rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows, one after the other, as dictionaries from column name to text."""
    try:
        with path.open(encoding="utf-8", errors="backslashreplace", newline="") as file:
            for row in csv.DictReader(file, strict=True):
                # A row that is too long or too short has a list or None in place of a text.
                yield {k: plain_cell(v) if isinstance(v, str) else v for k, v in row.items()}
    except OSError as error:
        raise not_read(path, error, ADVICE) from None
    except csv.Error as error:
        raise UserError(f"{path}: is not valid CSV ({error}); {ADVICE}") from None


def read_csv(path: Path) -> list[dict[str, str]]:
    """All rows of `csv_rows`: some hundred bytes each, for files that do not grow with the images."""
    return list(csv_rows(path))


def parse_rows(path: Path, rows: Iterable[dict[str, str]], parse: Callable[[dict[str, str]], Row]) -> list[Row]:
    """`rows` of a file as `parse` reads them. Raises UserError that names the line of a row that it cannot read."""
    parsed = []
    for number, row in enumerate(rows, 2):  # the header is line 1
        try:
            parsed.append(parse(row))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path}:{number}: invalid row {list(row.values())[:8]} ({reason}); {ADVICE}") from None
    return parsed


def read_metrics(run: Path) -> dict[str, Any]:
    """metrics.json of a run folder."""
    return read_json(run / METRICS)


def recorded_source(run: Path) -> str | None:
    """Path or name of the data that the run was trained on; None if metrics.json is missing or does not record it."""
    with suppress(UserError):
        source = read_metrics(run).get("source")
        if isinstance(source, dict) and source.get("path"):
            return str(source["path"])
    return None
