"""The end of labelling: a run from the labels, as `train` would write it, in a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.data.readers.csvfile import LABELS_TO_TRAIN
from linnaeus.distributed.environment import PARENT
from linnaeus.errors import JobError, UserError, exhausted, out_of
from linnaeus.files import csv_file, numbered
from linnaeus.label.estimate import ENOUGH
from linnaeus.label.journal import ACCEPTED, UNKNOWN, Label
from linnaeus.label.session import Session

MIN_PER_CLASS = 2  # images of a class, so that one can be held out
LINES = 8  # of the output that the page shows


@dataclass
class Finish:
    """Training on the labels of a session; one run at a time."""

    session: Session
    runs: Path  # folder for the runs
    device: str = "auto"
    run: Path | None = None  # the run that was started last
    error: str = ""
    lines: list[str] = field(default_factory=list)  # the last lines of its output
    # A line on the classes that the run does not have, if there are any.
    left_out: list[str] = field(default_factory=list)
    _process: subprocess.Popen[str] | None = None
    _reader: threading.Thread | None = None
    _stopped: bool = False  # whether the training was ended on purpose
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> bool:
        return self._reader is not None and self._reader.is_alive()

    def start(self) -> Path:
        """Start to train. Returns the run folder. Raises UserError if the labels are too few or it runs already."""
        with self._mutex:
            if self.running:
                raise UserError("training is running already; wait until it has finished")
            source = self.write_source()
            run = numbered(self.runs / "label")
            # A process of its own, so that training does not block the page.
            try:
                self._process = subprocess.Popen(
                    self._training(source, run),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    errors="replace",
                    env={**os.environ, PARENT: str(os.getpid())},  # it ends with this process, however this one ends
                )
            except OSError as error:
                with suppress(OSError):  # the empty folder
                    run.rmdir()
                reason = out_of(lack) if (lack := exhausted(error)) else str(error.strerror)
                raise JobError(f"training cannot be started: {reason}; all labels are stored") from None
            self.run, self.error, self.lines, self.left_out = run, "", [], self._left_out()
            self._reader = threading.Thread(target=self._follow, args=(self._process,), name="finish", daemon=True)
            self._reader.start()
            return run

    def _training(self, source: Path, run: Path) -> list[str]:
        """The command that trains."""
        command = [sys.executable, "-m", "linnaeus", "train", str(source), "--out", str(run), "--device", self.device]
        backbone = self.session.features.backbone
        if backbone.model is not None:
            command += ["--model", backbone.model, "--weights", str(backbone.weights)]
        if backbone.about is not None:  # a reviewed model: it sees images as it has seen them in its training
            shown = backbone.preprocessing
            for key in ("channels", "size", "resize", "fit", "interpolation"):
                command += ["--set", f"data.{key}={getattr(shown, key)}"]
        return command

    def wait(self) -> None:
        """Return once the training has ended and its output is known."""
        if self._reader is not None:
            self._reader.join()

    def stop(self) -> None:
        """End the training, if it runs."""
        if self._process is not None and self._reader is not None and self.running:
            self._stopped = True
            self._process.terminate()
            self._reader.join(60)

    def commands(self) -> list[str]:
        """What to do with the run, once it is complete."""
        return [] if self.run is None or self.running or self.error else self._commands(self.run)

    def _commands(self, path: Path) -> list[str]:
        run = shlex.quote(str(path))
        session = self.session
        folder = shlex.quote(str(session.store.folder))
        commands = [f"linnaeus serve {run}", f"linnaeus predict {run} {folder}"]
        # A model reviews only images that it was not trained on.
        rest = any(
            i not in session.features.unreadable and path not in session.labels for path, i in session.position.items()
        )
        return [*commands, f"linnaeus label {run} {folder}"] if rest else commands

    def to_dict(self) -> dict[str, Any]:
        return {
            "running": self.running,
            "run": None if self.run is None else str(self.run),
            "error": self.error,
            "lines": [*self.left_out, *self.lines[-LINES:]],  # the log must not scroll it out of sight
            "commands": self.commands(),
        }

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        console = self.session.console
        # Its output must be read, or the process would block on a full pipe.
        for line in process.stdout:
            if line.strip():
                self.lines = [*self.lines[-LINES:], line.rstrip()]
                console.say(f"  {line.rstrip()}")
        if status := process.wait():
            if self.run is not None:
                with suppress(OSError):  # it is empty where `train` has not come to write
                    self.run.rmdir()
            if status < 0:  # the last line says nothing about it
                self.error = f"train was ended by {signal.Signals(-status).name}"
            else:
                self.error = self.lines[-1] if self.lines else f"train ended with status {status}"
            console.warn(f"training {'was stopped' if self._stopped else 'has failed'}: {self.error}")
        elif self.run is not None:
            self._say_next(self.run)

    def say_next(self) -> None:
        """Print what the run lacks and what to do with it, once it is complete."""
        if self.commands() and self.run is not None:
            self._say_next(self.run)

    def _say_next(self, run: Path) -> None:
        for line in self.left_out:
            self.session.console.warn(line)
        for command in self._commands(run):
            self.session.console.say(f"next      {command}")

    @property
    def _source(self) -> Path:
        """The labels with their split, in a hidden folder beside them."""
        return self.session.store.journal.path.with_name("train.csv")

    def _classes(self, labels: Mapping[str, Label]) -> tuple[set[str], set[str]]:
        """(classes with enough images to train, the others)."""
        counts = Counter(label.label for label in labels.values() if label.label != UNKNOWN)
        kept = {name for name, n in counts.items() if n >= MIN_PER_CLASS}
        return kept, set(counts) - kept

    def _left_out(self) -> list[str]:
        others = sorted(self._classes(self.session.labels)[1])
        if not others:
            return []
        return [f"left out, with a single image each: {', '.join(others)}; to keep a class, label a second image of it"]

    def write_source(self) -> Path:
        """Write the labels as a source for `train`, with split and groups of near duplicates. Returns the file.

        The random sample, which people have labelled, validates. The others train, but for near duplicates of images
        that validate. Without enough of a sample `train` draws the split itself; accepted labels only train.
        """
        session = self.session
        # Labels of images that are no longer in the folder cannot be trained on.
        labels = {path: label for path, label in session.labels.items() if path in session.position}
        kept, _ = self._classes(labels)
        if len(kept) < 2:
            raise UserError(
                f"{session.store.csv}: training needs two classes with {MIN_PER_CLASS} labels each; label more images"
            )
        sample = set(session.learner.audit.sample(labels, session.passed_over)[0])
        labels = {path: label for path, label in labels.items() if label.label in kept}
        rows = [session.position[path] for path in labels]
        groups = session.learner.groups(rows)
        # Copies stay on one side of the split, or validation would repeat training images.
        split = self._split(labels, dict(zip(labels, groups, strict=True)), sample)
        file = self._source
        with csv_file(file, errors="surrogateescape") as writer:
            writer.writerow(LABELS_TO_TRAIN)
            for (path, label), group in zip(labels.items(), groups, strict=True):
                if path in split:
                    place = str(session.store.folder / path)
                    writer.writerow((place, label.label, split[path], group, label.provenance))
        return file

    def _split(self, labels: Mapping[str, Label], group: Mapping[str, int], sample: set[int]) -> dict[str, str]:
        """Path -> train, valid or "", which leaves the choice to `train`; without images that must be left out."""
        drawn = {path for path in labels if self.session.position[path] in sample}
        for name in {label.label for label in labels.values()}:  # each class needs images to learn from
            members = [path for path, label in labels.items() if label.label == name]
            if drawn.issuperset(members):
                drawn.discard(members[0])
        # Too few random answers for a validation split: `train` draws one.
        if len(drawn) < ENOUGH or 2 * len(drawn) > len(labels):
            return {path: "train" if label.provenance == ACCEPTED else "" for path, label in labels.items()}
        validating = {group[path] for path in drawn}
        return {
            path: "valid" if path in drawn else "train"
            for path in labels
            if path in drawn or group[path] not in validating
        }
