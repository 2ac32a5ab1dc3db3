"""The journal of answers: one line per action, appended and synced before it counts, shared by all servers of a folder.

A line is JSON behind its CRC-32. What a killed process has left of a line is skipped by its checksum; it was never
acknowledged. Lines are never changed: undoing an action appends a line that says so.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from linnaeus.data.readers.provenance import PROVENANCES
from linnaeus.errors import DiskError, UserError
from linnaeus.files import disk_errors, locked, sync

UNKNOWN = ""  # the label of an image that belongs to none of the classes; no class has this name

HUMAN, ACCEPTED, IMPORTED = PROVENANCES

SKIPPED = "skipped"
"""The provenance of an answer without a label: a person who looked at the image cannot tell, and is not asked again."""


@dataclass(frozen=True)
class Answer:
    """A label for an image."""

    path: str  # relative to the folder, with forward slashes
    label: str | None  # a class, UNKNOWN, or None: the image has no label
    provenance: str = HUMAN


@dataclass(frozen=True)
class Label:
    """The current label of an image."""

    label: str  # a class, or UNKNOWN
    provenance: str
    time: str  # UTC, ISO 8601
    record: int  # number of the record that gave it
    confirmed: bool = False  # whether a person gave the label that the image had already


@dataclass(frozen=True)
class _State:
    """The state of an image after a record."""

    record: int
    label: Label | None
    skipped: bool


@dataclass(frozen=True)
class Record:
    """One action."""

    time: str
    answers: tuple[Answer, ...]
    classes: tuple[str, ...] = ()  # new classes, which may have no image yet
    undoes: int | None = None  # number of the record that this one takes back


@dataclass
class Journal:
    """The answers about the images of a folder; `append` and `refresh` are thread-safe."""

    path: Path
    labels: dict[str, Label] = field(default_factory=dict)  # image -> current label, for images that have one
    skipped: set[str] = field(default_factory=set)  # images about which a person could not tell
    classes: list[str] = field(default_factory=list)  # in the order in which they were first named
    records: list[Record] = field(default_factory=list)
    damaged: int = 0  # lines that were skipped because their checksum does not match
    # Image -> its states, the current one last; one that is undone is removed.
    _states: dict[str, list[_State]] = field(default_factory=dict)
    _named: dict[str, int] = field(default_factory=dict)  # class -> number of the record that named it first
    _offset: int = 0  # bytes that were read
    _end: bytes = b""  # the last line that was read
    _depth: int = 0  # how often this process holds the lock of the file, which cannot be taken twice
    _mutex: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """Read the journal at `path`; it is created by the first answer. Raises UserError if it cannot be read."""
        journal = cls(path)
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with journal.exclusively():
                pass
        return journal

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the lock that all servers of the folder share, with their answers read."""
        with self._mutex:
            if self._depth:
                yield
                return
            with disk_errors(self.path), locked(self.path.with_suffix(".lock")):
                self._depth += 1
                try:
                    self.refresh()
                    yield
                finally:
                    self._depth -= 1

    def refresh(self) -> bool:
        """Read what other servers have appended. Returns whether there was anything."""
        with self._mutex:
            try:
                with self.path.open("rb") as file:
                    if not self._continues(file):
                        return False
                    text = file.read()
            except FileNotFoundError:
                return False
            # A last line without its newline is still being written by another process.
            whole = text.rpartition(b"\n")[0]
            if not whole:
                return False
            self._offset += len(whole) + 1
            self._end = whole.rpartition(b"\n")[2] + b"\n"
            for line in whole.split(b"\n"):
                self._read_line(line)
            return True

    def append(self, answers: Sequence[Answer], classes: Sequence[str] = (), undoes: int | None = None) -> int:
        """Write an action to the disk. Returns the number of its record.

        Raises DiskError if the disk is full, or somebody has removed or replaced what was written before.
        """
        time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        record = Record(time, tuple(answers), tuple(name for name in classes if name not in self.classes), undoes)
        with self.exclusively(), disk_errors(self.path):
            body = json.dumps(_to_json(record), ensure_ascii=True, separators=(",", ":")).encode()
            # The checksum finds lines that a crash has torn or a disk has damaged.
            line = b"%08x %b\n" % (zlib.crc32(body), body)
            new = not self.path.exists()
            if self._offset and new:
                raise self._lost()
            # O_APPEND: two processes never overwrite each other's lines.
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                with open(handle, "rb", closefd=False) as file:
                    if not self._continues(file):
                        raise self._lost()
                end = os.fstat(handle).st_size
                if end > self._offset:  # a killed process has left a part of a line
                    line = b"\n" + line
                _write_all(handle, line)
                os.fsync(handle)
            finally:
                os.close(handle)
            # A new file is durable only once its folder is synced too.
            if new:
                sync(self.path.parent)
            self.refresh()
            return len(self.records) - 1

    def _continues(self, file: BinaryIO) -> bool:
        """Whether a file holds what was read, and ends there or goes on: the last line, with its time, stands there."""
        file.seek(self._offset - len(self._end))
        return file.read(len(self._end)) == self._end

    def _lost(self) -> DiskError:
        """In another file, an answer would be shown nowhere, and have the number of an earlier one."""
        return DiskError(
            f"{self.path}: was removed, cut or replaced while it was in use; stop and start labelling again"
        )

    def undo(self, number: int) -> list[str]:
        """Take back record `number` for the images about which nobody has answered since. Returns these images.

        Raises UserError if there is no such record.
        """
        with self.exclusively():
            if not 0 <= number < len(self.records):
                raise UserError(f"{self.path}: no answer {number}; it has {len(self.records)}")
            record = self.records[number]
            answered = sorted({answer.path for answer in record.answers})
            paths = [path for path in answered if any(state.record == number for state in self._states[path][-1:])]
            if paths or record.classes:
                self.append([Answer(path, None) for path in paths], undoes=number)
            return paths

    def _read_line(self, line: bytes) -> None:
        checksum, _, body = line.partition(b" ")
        try:
            if int(checksum, 16) != zlib.crc32(body):
                raise ValueError
            record = _from_json(json.loads(body))
        except (ValueError, KeyError, TypeError):
            self.damaged += bool(line.strip())
            return
        self._apply(record)

    def _apply(self, record: Record) -> None:
        number = len(self.records)
        self.records.append(record)
        for answer in record.answers:
            states = self._states.setdefault(answer.path, [])
            if record.undoes is not None:
                # Only the last state can be undone; a later answer to the same image stays.
                if states and states[-1].record == record.undoes:
                    states.pop()
            else:
                states.append(self._state(answer, record.time, number))
            state = states[-1] if states else _State(number, None, False)
            self._show(answer.path, state)
        named = [answer.label for answer in record.answers if answer.label]
        for name in (*named, *record.classes):
            if name not in self._named:
                self._named[name] = number
                self.classes.append(name)
        if record.undoes is not None:
            self._forget_classes(record.undoes)

    def _state(self, answer: Answer, time: str, number: int) -> _State:
        if answer.label is None:
            return _State(number, None, answer.provenance == SKIPPED)
        before = self.labels.get(answer.path)
        again = before is not None and before.label == answer.label and answer.provenance == HUMAN
        return _State(number, Label(answer.label, answer.provenance, time, number, again), False)

    def _show(self, path: str, state: _State) -> None:
        """Bring `labels` and `skipped` up to date."""
        if state.label is None:
            self.labels.pop(path, None)
        else:
            self.labels[path] = state.label
        if state.skipped:
            self.skipped.add(path)
        else:
            self.skipped.discard(path)

    def _forget_classes(self, number: int) -> None:
        """Remove the classes that record `number` named, perhaps misspelled, and that no image has."""
        for name in [name for name, record in self._named.items() if record == number]:
            if all(label.label != name for label in self.labels.values()):
                del self._named[name]
                self.classes.remove(name)


def _write_all(handle: int, data: bytes) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _to_json(record: Record) -> dict[str, Any]:
    values: dict[str, Any] = {"time": record.time, "answers": [[a.path, a.label, a.provenance] for a in record.answers]}
    values |= {"classes": record.classes} if record.classes else {}
    return values | ({} if record.undoes is None else {"undoes": record.undoes})


def _from_json(values: dict[str, Any]) -> Record:
    answers = tuple(Answer(path, label, provenance) for path, label, provenance in values["answers"])
    return Record(values["time"], answers, tuple(values.get("classes", ())), values.get("undoes"))
