"""The answers as `labels.csv` (path, label, provenance, time): a source for `train`, kept in step with the journal.

The journal is written first, and what it holds counts. A process that is killed in between leaves a file that lacks the
last action; it is completed when the folder is opened again. A file that cannot be written or read for a while, because
the disk is full or somebody has half edited it, is completed as soon as possible. Rows that somebody has added to the
file, or given another label, are taken over as answers, also where the journal was lost; rows that are missing are
written again, because a kill or a full disk may be the reason.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from linnaeus.data import tree
from linnaeus.data.class_names import class_name, read_text
from linnaeus.data.readers.csvfile import LABELS_CSV, read_csv
from linnaeus.data.readers.provenance import PROVENANCES
from linnaeus.errors import UserError, described
from linnaeus.files import csv_file, disk_errors, read_object, write_text
from linnaeus.label.journal import HUMAN, IMPORTED, UNKNOWN, Answer, Journal, Label, Record
from linnaeus.text import SafeCsvWriter, plain_cell

UNKNOWN_CELL = "unknown"  # the label UNKNOWN in a file


@dataclass
class LabelStore:
    """The answers about the images of a folder: a journal, and two CSV files that follow it.

    Images of no class stand in a file of their own, because `train` would take "unknown" for a class.
    """

    folder: Path
    csv: Path
    journal: Journal
    problem: str = ""  # why the files do not hold what the journal holds; empty if they do
    _before: Path = Path()  # the folder of images before it was moved, which rows of the file may still name
    _written: tuple[object, ...] | None = None  # versions of the files as this process has written them; None: unknown

    @classmethod
    def open(cls, folder: Path, csv_file: Path) -> LabelStore:
        """The store of `csv_file`, whose journal lies in a hidden folder beside it.

        Raises UserError for a CSV file of another folder, and for one that was not written here and has columns that
        would be lost.
        """
        journal = Journal.open(csv_file.parent / f".{csv_file.stem}.linnaeus" / "journal")
        store = cls(folder, csv_file, journal)
        with journal.exclusively():
            present = store._recognize()
            store._take_over_edits()
            if journal.records:
                store._rewrite()
            if present != read_object(store._record):
                write_text(store._record, json.dumps(present) + "\n")
        return store

    @property
    def _record(self) -> Path:
        """Where the folder of images is recorded, beside the journal."""
        return self.journal.path.with_name("folder.json")

    def _recognize(self) -> dict[str, str]:
        """What is recorded of the folder of images. Raises UserError if the answers are about another folder.

        The journal names images relative to the folder, and an image there may have the name of an image here. A folder
        that was moved together with the file is the same.
        """
        recorded, relative = read_object(self._record), ""
        with suppress(ValueError):  # another drive of Windows
            relative = os.path.relpath(self.folder, self.csv.parent)
        present = {"folder": str(self.folder), "relative": relative}
        before = str(recorded.get("folder", self.folder))
        if before == str(self.folder) or (relative and recorded.get("relative") == relative):
            self._before = Path(before)
        elif self.journal.records:
            raise UserError(
                f"{self.csv}: holds the labels of the images in {before}; label that folder, or choose another file "
                "with --out"
            )
        return present

    @property
    def unknown_csv(self) -> Path:
        """The images of no class: `labels-unknown.csv`."""
        return self.csv.with_name(f"{self.csv.stem}-unknown.csv")

    def answer(self, answers: Sequence[Answer], classes: Sequence[str] = ()) -> int:
        """Write answers to the disk; they are durable when this returns. Returns the number of the record."""
        with self.journal.exclusively():
            self._attempt(self._take_over_edits)
            labelled = any(answer.path in self.journal.labels for answer in answers)
            number = self.journal.append(answers, classes)
            if not self.problem and (labelled or any(answer.label is not None for answer in answers)):
                self._attempt(lambda: self._write(answers, new=not labelled))
            return number

    def undo(self, number: int) -> list[str]:
        """Take back record `number`. Returns the images whose labels change."""
        with self.journal.exclusively():
            self._attempt(self._take_over_edits)
            paths = self.journal.undo(number)
            if not self.problem:
                self._attempt(self._rewrite)
            return paths

    def catch_up(self) -> None:
        """Bring the files up to date, if an action could not."""
        if self.problem:
            self._attempt(self._complete)

    def _complete(self) -> None:
        with self.journal.exclusively():
            self._take_over_edits()
            self._rewrite()

    def _attempt(self, work: Callable[[], None]) -> None:
        """Read or write the files; where that fails, the journal still holds every answer, and `problem` says why."""
        try:
            work()
            self.problem = ""
        except (OSError, UserError) as error:
            self._written, self.problem = None, described(error)

    def import_csv(self, file: Path) -> int:
        """Take over the labels of another CSV for images that have none. Returns their number."""
        rows, provenances = read_csv(file), _provenances(file)
        answers = []
        for text, label, line in zip(rows.texts, rows.labels, rows.lines, strict=True):
            path = self._inside(file, text)
            if path not in self.journal.labels:
                answers.append(Answer(path, label, provenances.get(line, IMPORTED)))
        if answers:
            self.answer(answers)
        return len(answers)

    def _take_over_edits(self) -> None:
        """Append rows that were added, or given another label, since the files were written.

        Of the images of no class only those without any label: an image can stand in both files for a moment.
        """
        version = self._version()
        if version == self._written:
            return
        # A row that states an answer of the journal, with its time, is an old one that was not yet replaced.
        known = {(a.path, a.label, record.time) for record in self.journal.records for a in record.answers}
        edits, labels = dict[str, Answer](), self.journal.labels
        for path, label, provenance, time in (*self._read(self.csv), *self._read_unknown()):
            current = labels.get(path)
            is_new = (
                current is None and path not in edits if label == UNKNOWN else not current or current.label != label
            )
            if is_new and (path, label, time) not in known:
                edits[path] = Answer(path, label, provenance if provenance in PROVENANCES else HUMAN)
        if edits:
            self.journal.append([*edits.values()])
            self._rewrite()

    def _read_unknown(self) -> list[list[str]]:
        """The rows of the images of no class, with the label UNKNOWN. Raises UserError for a file of somebody else."""
        rows = self._read(self.unknown_csv)
        for path, label, _, _ in rows:
            if label != UNKNOWN_CELL:
                raise UserError(
                    f"{self.unknown_csv}: {path} has the label {label!r}, and this file is for the label "
                    f"{UNKNOWN_CELL!r} alone; rename the file, or choose another file with --out"
                )
        return [[path, UNKNOWN, provenance, time] for path, _, provenance, time in rows]

    def _read(self, file: Path) -> list[list[str]]:
        """The rows of a CSV as [path relative to the folder, label, provenance, time]. Raises UserError."""
        if self._version_of(file) is None:
            return []
        text = read_text(file)
        # A row without its newline may be half written.
        end = text.rfind("\n") + 1
        if text[end:] and self.journal.records:
            # The row of a process that was killed while it wrote, or whose disk was full.
            lines = (line for record in self.journal.records for line in self._lines(record).split("\n"))
            if any(line.startswith(text[end:]) for line in lines):
                text = text[:end]
        reader = csv.reader(io.StringIO(text, newline=""))
        header = [name.strip().lower() for name in next(reader, [])]
        if header and ("path" not in header or "label" not in header):
            raise UserError(f"{file}:1: has no columns path and label; choose another file with --out")
        others = [name for name in header if name not in LABELS_CSV]
        if others:
            raise UserError(
                f"{file}:1: has the column {others[0]!r}, which labelling would lose; start from it with "
                f"--labels {file} and write to another file with --out"
            )
        rows = []
        for cells in reader:
            row = dict(zip(header, map(plain_cell, cells), strict=False))
            path, label = row.get("path", ""), class_name(row.get("label", ""))
            # Rows without a label are not mistakes: people keep them as reminders.
            if path and label:
                rows.append([self._inside(file, path), label, row.get("provenance", ""), row.get("time", "")])
        return rows

    def _version(self) -> tuple[object, ...]:
        """The versions of both files."""
        return self._version_of(self.csv), self._version_of(self.unknown_csv)

    @staticmethod
    def _version_of(file: Path) -> tuple[int, ...] | None:
        try:
            return tree.version(file)
        except FileNotFoundError:
            return None

    def _write(self, answers: Sequence[Answer], new: bool) -> None:
        """Append the rows of the last record where all images are new, otherwise write the file again."""
        plain = new and all(a.label for a in answers) and len({a.path for a in answers}) == len(answers)
        if not plain or self._written is None or self._version() != self._written:
            self._rewrite()
            return
        self._written = None  # until it is complete
        with disk_errors(self.csv), self.csv.open("a", encoding="utf-8", errors="surrogateescape", newline="") as file:
            file.write(self._lines(self.journal.records[-1]))
            file.flush()
            os.fsync(file.fileno())
        self._written = self._version()

    def _lines(self, record: Record) -> str:
        """The lines that the answers of a record add to the file."""
        stream = io.StringIO(newline="")
        rows = ([self._place(a.path), a.label, a.provenance, record.time] for a in record.answers if a.label)
        SafeCsvWriter(stream).writerows(rows)
        return stream.getvalue()

    def _rewrite(self) -> None:
        labels = self.journal.labels
        _write_rows(self.csv, [self._row(path, label) for path, label in labels.items() if label.label != UNKNOWN])
        unknown = [self._row(path, label) for path, label in labels.items() if label.label == UNKNOWN]
        if unknown or self.unknown_csv.exists():
            _write_rows(self.unknown_csv, unknown)
        self._written = self._version()

    def _row(self, path: str, label: Label) -> list[str]:
        return [self._place(path), label.label or UNKNOWN_CELL, label.provenance, label.time]

    def _place(self, path: str) -> str:
        """The path of an image as the CSV names it: relative to the CSV where it lies in the folder of images."""
        return path if self.csv.parent == self.folder else str(self.folder / path)

    def _inside(self, file: Path, text: str) -> str:
        """A path in a CSV file as one relative to the folder of images."""
        place = Path(os.path.normpath(file.absolute().parent / text))
        base = next((folder for folder in (self.folder, self._before) if place.is_relative_to(folder)), None)
        return str(place) if base is None else place.relative_to(base).as_posix()


def _write_rows(file: Path, rows: Sequence[Sequence[str]]) -> None:
    with csv_file(file, errors="surrogateescape") as writer:
        writer.writerow(LABELS_CSV)
        writer.writerows(rows)


def _provenances(file: Path) -> dict[int, str]:
    """Line -> provenance, where the file states a known one."""
    reader = csv.DictReader(read_text(file).splitlines(keepends=True))
    provenances = {}
    for row in reader:
        value = str(row.get("provenance") or "").strip()
        if value in PROVENANCES:
            provenances[reader.line_num] = value
    return provenances
