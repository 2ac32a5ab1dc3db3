"""Continue a file of predictions: keep its complete lines, and do not predict their images again.

A process that is killed may leave half a line at the end, which is cut off. A file of another format, of another
number of classes, or of another model is refused and left as it is.
"""

from __future__ import annotations

import bisect
import csv
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from linnaeus.console import ESCAPED
from linnaeus.errors import UserError
from linnaeus.files import atomic
from linnaeus.inference.classifier import Classifier
from linnaeus.inference.writers import csv_header
from linnaeus.text import plain_cell, probability_percent

PASSING = (
    *(os.strerror(getattr(errno, name)) for name in ("ENOENT", "EACCES", "EIO", "ENODEV", "EMFILE", "ENOTDIR")),
    *(os.strerror(getattr(errno, name)) for name in ("ESTALE", "ENOTCONN", "EHOSTDOWN") if hasattr(errno, name)),
    "not enough memory to decode it",
)
"""Ends of messages about images that are there again once a disk or a share is back."""
BLOCK = 1 << 20
HALF_LINE = '{"path": "'  # the beginning of a JSON line, as json.dumps writes it
PROBES = 8  # images that are predicted again to recognize the model
TOLERANCE = 0.02
"""Largest difference between two probabilities of the same model, which another executor or int8 may cause."""


@dataclass(frozen=True)
class WrittenPrediction:
    """One prediction of the file."""

    path: str
    error: str  # why the image cannot be read; empty where it can
    best_class: str  # name of the most likely class; empty where there is an error
    probability: float


@dataclass
class ExistingPredictions:
    """The complete predictions that a file holds."""

    paths: set[str] = field(default_factory=set)
    errors: int = 0  # number of unreadable images
    length: int = 0  # bytes up to the end of the last complete prediction; the rest of the file is to be cut off
    header: list[str] | None = None  # the columns of a CSV file that has its header
    # Bytes, from and to, of images that could not be read for a passing reason and are there, or have been changed.
    again: list[tuple[int, int]] = field(default_factory=list)
    # Predictions of readable images, to be compared with the model's: the least sure, on which models differ most.
    probes: list[WrittenPrediction] = field(default_factory=list)
    # Predictions of readable images that have been changed since the file was last written; they are compared too.
    changed: list[WrittenPrediction] = field(default_factory=list)
    written: int = 0  # when the file was last written, nanoseconds since 1970

    def __contains__(self, path: str) -> bool:
        return _escaped(path) in self.paths

    def add(self, prediction: WrittenPrediction, end: int) -> None:
        """Add a prediction that ends at byte `end` of the file."""
        start, self.length = self.length, end
        self.paths.add(_escaped(prediction.path))
        if prediction.error:
            self.errors += 1
            passing = prediction.error.endswith(PASSING) and os.path.isfile(prediction.path)  # noqa: PTH113 - see below
            if passing or _changed_after(prediction.path, self.written):
                self.again.append((start, end))
        elif _changed_after(prediction.path, self.written):
            self.changed.append(prediction)
        else:
            bisect.insort(self.probes, prediction, key=lambda probe: probe.probability)
            del self.probes[PROBES:]


def read_existing(path: Path, form: str, top: int, several: bool = False) -> ExistingPredictions:
    """The predictions in the file `path`; none where it is missing or empty, or where the form is a table.

    Raises UserError if the file holds anything but predictions of this form with `top` classes, and with `several`
    labels if the model gives them.
    """
    existing = ExistingPredictions()
    if form == "table" or not path.is_file():
        return existing
    with path.open("rb") as file:
        existing.written = os.fstat(file.fileno()).st_mtime_ns
        lines = _CompleteLines(file)
        # Line by line: the file may hold millions of predictions.
        if form == "jsonl":
            for line in lines:
                existing.add(_parse_json(path, line, top, several), lines.end)
            _check_half_line(path, lines.half, top, several)
            return existing
        rows = csv.reader(lines, strict=True)
        existing.header = _read_header(path, rows, top, several)
        if existing.header is None:
            return existing
        existing.length = lines.end
        try:
            for row in rows:
                existing.add(_parse_row(path, row, len(existing.header)), lines.end)
        except csv.Error:  # the file ends inside a quoted name, which may take several lines
            pass
    return existing


def forget_passing_errors(path: Path, existing: ExistingPredictions) -> None:
    """Remove the lines `existing.again` from the file `path`, so that their images are predicted again."""
    with atomic(path) as temporary, path.open("rb") as old, temporary.open("wb") as new:
        position = 0
        for start, end in (*existing.again, (existing.length, existing.length)):
            old.seek(position)
            for size in range(start - position, 0, -BLOCK):
                new.write(old.read(min(size, BLOCK)))
            position = end


def check_same_model(path: Path, existing: ExistingPredictions, classifier: Classifier) -> None:
    """Raise UserError if the predictions in the file `path` differ from those of this model."""
    # An image may have been moved since; then it proves nothing.
    # `Path.is_file` raises for a name that is too long, as escaped names may be.
    probes = [written for written in existing.probes if os.path.isfile(written.path)]  # noqa: PTH113
    probes += existing.changed
    for written, prediction in zip(probes, classifier.stream([probe.path for probe in probes]), strict=True):
        if prediction.error is not None:
            continue
        probabilities = {prediction.classes[k]: p for k, p in prediction.ranked(len(prediction.classes))}
        # Other hardware changes the last digits, another model much more.
        if abs(probabilities.get(written.best_class, 0.0) - written.probability) > TOLERANCE:
            raise UserError(
                f"{path}: holds predictions of another model, or of images that have changed since ({written.path}: "
                f"{written.best_class} {probability_percent(written.probability)}, now "
                f"{prediction.classes[prediction.index]} {probability_percent(prediction.probability)}); remove it, or "
                "give another --out"
            )


class _CompleteLines:
    """Iterates over the lines of a file that end in a newline."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.end = 0  # bytes up to the end of the last line
        self.half = ""  # what follows the last line

    def __iter__(self) -> Iterator[str]:
        for line in self.file:
            if not line.endswith(b"\n"):
                self.half = line.decode("utf-8", "surrogateescape")
                return
            self.end += len(line)
            yield line.decode("utf-8", "surrogateescape")


def _check_half_line(path: Path, half: str, top: int, several: bool) -> None:
    """Raise UserError if the end of the JSONL file, which has no newline, cannot be the beginning of a prediction."""
    half = half.rstrip("\0")  # a power cut may leave zeros
    if not HALF_LINE.startswith(half[: len(HALF_LINE)]):
        raise _foreign(path, "a line that is not a prediction")
    try:
        json.loads(half)
    except (ValueError, RecursionError):
        return
    _parse_json(path, half, top, several)  # only the newline is missing


def _read_header(path: Path, rows: Iterator[list[str]], top: int, several: bool) -> list[str] | None:
    """The header of the CSV file, if it has one. Raises UserError if its first line is another one."""
    header, expected = next(rows, None), csv_header(top, several=several)
    if header in (expected, csv_header(top, unknown=False, several=several)):
        return header
    if header is None:
        with path.open("rb") as file:  # no complete line: at most the beginning of the header may be there
            if (",".join(expected) + "\n").encode().startswith(file.read(1 << 16)):
                return None
        raise _foreign(path, "no predictions")
    classes = sum(column.startswith("class_") for column in header)
    ours = header in [csv_header(classes, unknown=unknown, several=several) for unknown in (True, False)]
    raise _foreign(path, f"predictions with --top {classes}" if ours else "other columns")


def _parse_row(path: Path, row: list[str], columns: int) -> WrittenPrediction:
    if len(row) != columns:
        raise _foreign(path, f"a line of {len(row)} cells instead of {columns}")
    try:
        return WrittenPrediction(plain_cell(row[0]), plain_cell(row[2]), plain_cell(row[3]), float(row[5] or 0))
    except ValueError:
        raise _foreign(path, f"a probability of {row[5]!r}") from None


def _parse_json(path: Path, line: str, top: int, several: bool) -> WrittenPrediction:
    try:
        values = json.loads(line)
        classes = len(values["top"])
        best: dict[str, Any] = values["top"][0] if classes else {"class": "", "probability": 0.0}
        written = WrittenPrediction(values["path"], values["error"] or "", best["class"], float(best["probability"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _foreign(path, "a line that is not a prediction") from None
    if ("labels" in values) != several:
        raise _foreign(path, f"predictions with {'one label' if several else 'several labels'} per image")
    if classes != top and not written.error:
        raise _foreign(path, f"predictions with --top {classes}")
    return written


def _changed_after(path: str, time: int) -> bool:
    """Whether the file was written, replaced or renamed after `time`, in nanoseconds since 1970."""
    try:
        status = os.stat(path)  # noqa: PTH116 - as fast as possible, for millions of images
    except (OSError, ValueError):
        return False
    return max(status.st_mtime_ns, status.st_ctime_ns) > time  # a file moved here keeps its old mtime


def _escaped(path: str) -> str:
    """The path as it is written: bytes that are not UTF-8 become escapes."""
    return path.encode("utf-8", ESCAPED).decode()


def _foreign(path: Path, content: str) -> UserError:
    return UserError(f"{path}: exists and holds {content}; remove it, or give another --out")
