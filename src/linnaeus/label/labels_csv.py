"""The answers as `labels.csv` (path, label, provenance, time): a source for `train`, kept in step with the journal.

The journal is written first. A process that is killed in between leaves a file that lacks the last action; it is
completed when the folder is opened again. Rows that somebody has edited in the file are taken over as answers.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from linnaeus.data.class_names import read_text
from linnaeus.data.csvfile import read_csv
from linnaeus.errors import UserError
from linnaeus.files import atomic, disk_errors
from linnaeus.label.journal import HUMAN, IMPORTED, PROVENANCES, UNKNOWN, Answer, Journal, Label
from linnaeus.text import SafeCsvWriter

COLUMNS = ("path", "label", "provenance", "time")


@dataclass
class LabelStore:
    """The answers about the images of a folder: a journal, and two CSV files that follow it.

    Images of no class stand in a file of their own, because `train` would take "unknown" for a class.
    """

    folder: Path
    csv: Path
    journal: Journal
    _written: tuple[int, int] | None = None
    """Size and time of the file as this process has written it."""

    @classmethod
    def open(cls, folder: Path, csv_file: Path) -> LabelStore:
        """The store of `csv_file`, whose journal lies in a hidden folder beside it.

        Raises UserError for a CSV file that was not written here and has columns that would be lost.
        """
        journal = Journal.open(csv_file.parent / f".{csv_file.stem}.linnaeus" / "journal")
        store = cls(folder, csv_file, journal)
        if csv_file.exists() and not journal.records:
            _refuse_other_columns(csv_file)
        with journal.exclusively():
            store._follow()
        return store

    @property
    def unknown_csv(self) -> Path:
        """The images of no class: `labels-unknown.csv`."""
        return self.csv.with_name(f"{self.csv.stem}-unknown.csv")

    def answer(self, answers: Sequence[Answer], classes: Sequence[str] = ()) -> int:
        """Write answers to the disk; they are durable when this returns. Returns the number of the record."""
        with self.journal.exclusively():
            self._take_over_edits()
            number = self.journal.append(answers, classes)
            self._write(answers)
            return number

    def undo(self, number: int) -> list[Answer]:
        """Take back record `number`. Returns the labels that are restored."""
        with self.journal.exclusively():
            self._take_over_edits()
            restored = self.journal.undo(number)
            self._rewrite()
            return restored

    def import_csv(self, file: Path) -> int:
        """Take over the labels of another CSV for images that have none. Returns their number."""
        rows = [answer for answer in self._read(file) if answer.path not in self.journal.labels]
        if rows:
            self.answer(rows)
        return len(rows)

    def _follow(self) -> None:
        """Bring the CSV up to date after another process has written it, or was killed before it could."""
        self._take_over_edits()
        if self.journal.records and self._stamp() != self._written:
            self._rewrite()

    def _take_over_edits(self) -> None:
        """Append rows that were changed, added or removed in the CSV since it was written."""
        stamp = self._stamp()
        if stamp is None or stamp == self._written:
            return
        labels, before = self.journal.labels, self.journal.before_last
        found = {answer.path: answer for answer in self._read(self.csv)}
        edits = []
        for path in sorted({*found, *(path for path, label in labels.items() if label.label != UNKNOWN)}):
            answer, current = found.get(path), labels.get(path)
            shown = None if answer is None else answer.label
            states = [current, before[path]] if path in before else [current]
            if shown not in [_shown(state) for state in states]:
                edits.append(answer or Answer(path, None))
        if edits:
            self.journal.append(edits)
            self._rewrite()

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self.csv.stat()
        except FileNotFoundError:
            return None
        return status.st_size, status.st_mtime_ns

    def _write(self, answers: Sequence[Answer]) -> None:
        """Append the rows where all are new, otherwise write the file again."""
        last = len(self.journal.records) - 1
        known = any(self.journal.before_last.get(a.path) is not None for a in answers)
        plain = all(a.label for a in answers) and len({a.path for a in answers}) == len(answers)
        if known or not plain or self._stamp() is None or self._stamp() != self._written:
            self._rewrite()
            return
        time = self.journal.records[last].time
        with disk_errors(self.csv), self.csv.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            writer = SafeCsvWriter(file)
            writer.writerows([self._place(a.path), a.label, a.provenance, time] for a in answers)
            file.flush()
            os.fsync(file.fileno())
        self._written = self._stamp()

    def _rewrite(self) -> None:
        labels = self.journal.labels
        _write_rows(self.csv, [self._row(path, label) for path, label in labels.items() if label.label != UNKNOWN])
        unknown = [self._row(path, label) for path, label in labels.items() if label.label == UNKNOWN]
        if unknown or self.unknown_csv.exists():
            _write_rows(self.unknown_csv, unknown)
        self._written = self._stamp()

    def _row(self, path: str, label: Label) -> list[str]:
        return [self._place(path), label.label or "unknown", label.provenance, label.time]

    def _place(self, path: str) -> str:
        """The path of an image as the CSV names it: relative to the CSV where it lies in the folder of images."""
        return path if self.csv.parent == self.folder else str(self.folder / path)

    def _read(self, file: Path) -> list[Answer]:
        """The answers of a CSV, with paths relative to the folder of images."""
        if len(read_text(file).split()) < 2 and file == self.csv:
            return []  # the header alone
        rows, given = read_csv(file), _provenances(file)
        answers = []
        for text, label, line in zip(rows.texts, rows.labels, rows.lines, strict=True):
            place = Path(os.path.normpath(file.absolute().parent / text))
            inside = place.is_relative_to(self.folder)
            path = place.relative_to(self.folder).as_posix() if inside else str(place)
            default = HUMAN if file == self.csv else IMPORTED
            answers.append(Answer(path, label, given.get(line, default)))
        return answers


def _shown(label: Label | None) -> str | None:
    """What the CSV says about an image; None if it has no row."""
    return None if label is None or label.label == UNKNOWN else label.label


def _write_rows(file: Path, rows: Sequence[Sequence[str]]) -> None:
    with (
        atomic(file) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream,
    ):
        writer = SafeCsvWriter(stream)
        writer.writerow(COLUMNS)
        writer.writerows(rows)


def _provenances(file: Path) -> dict[int, str]:
    """Line -> provenance, where the file states a known one."""
    reader = csv.DictReader(read_text(file).splitlines(keepends=True))
    found = {}
    for row in reader:
        value = str(row.get("provenance") or "").strip()
        if value in PROVENANCES:
            found[reader.line_num] = value
    return found


def _refuse_other_columns(file: Path) -> None:
    header = next(csv.reader(read_text(file).splitlines()), [])
    others = [name for name in header if name.strip().lower() not in COLUMNS]
    if others:
        raise UserError(
            f"{file}:1: has the column {others[0]!r}, which labelling would lose; start from it with --labels {file} "
            "and write to another file with --out"
        )
