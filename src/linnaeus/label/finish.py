"""The end of labelling: a run from the labels, as `train` would write it, in a process of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
import threading
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linnaeus.errors import UserError
from linnaeus.files import atomic, numbered
from linnaeus.label.backbone import Backbone
from linnaeus.label.estimate import ENOUGH, Audit
from linnaeus.label.journal import ACCEPTED, UNKNOWN
from linnaeus.label.labels_csv import LabelStore
from linnaeus.text import SafeCsvWriter

MIN_PER_CLASS = 2  # images of a class, so that one can be held out
LINES = 8  # of the output that the page shows


@dataclass
class Finish:
    """Training on the labels; one at a time."""

    store: LabelStore
    audit: Audit
    backbone: Backbone
    runs: Path
    """Folder for the runs."""
    device: str = "auto"
    run: Path | None = None
    """The run that was written last."""
    error: str = ""
    lines: list[str] = field(default_factory=list)
    """The last lines of its output."""
    _process: subprocess.Popen[str] | None = None
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, passed_over: Container[int] = ()) -> Path:
        """Start to train. Returns the run folder. Raises UserError where the labels are too few or it runs already."""
        with self._mutex:
            if self.running:
                raise UserError("training is running already; wait until it has finished")
            source = self._write_source(passed_over)
            run = numbered(self.runs / "label")
            run.rmdir()  # `train` creates it; the number is free
            command = [sys.executable, "-m", "linnaeus", "train", str(source), "--out", str(run)]
            command += ["--device", self.device]
            if self.backbone.model is not None:
                command += ["--model", self.backbone.model, "--weights", str(self.backbone.weights)]
            self.run, self.error, self.lines = run, "", []
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
            )
            threading.Thread(target=self._follow, args=(self._process,), name="finish", daemon=True).start()
            return run

    def stop(self) -> None:
        """End the training, if it runs."""
        if self._process is not None and self.running:
            self._process.terminate()
            self._process.wait(60)

    def commands(self) -> list[str]:
        """What to do with the run."""
        if self.run is None or self.running or self.error:
            return []
        run = shlex.quote(str(self.run))
        folder = shlex.quote(str(self.store.folder))
        return [
            f"linnaeus evaluate {run}",
            f"linnaeus serve {run}",
            f"linnaeus predict {run} {folder}",
            f"linnaeus label {run} {folder}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """As the page receives it."""
        return {
            "running": self.running,
            "run": None if self.run is None else str(self.run),
            "error": self.error,
            "lines": self.lines[-LINES:],
            "commands": self.commands(),
        }

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip():
                self.lines = [*self.lines[-LINES:], line.rstrip()]
        if process.wait():
            self.error = self.lines[-1] if self.lines else f"train ended with status {process.returncode}"

    def _write_source(self, passed_over: Container[int]) -> Path:
        """The labels with a split: the random sample, which people have labelled, validates; the others train.

        Without enough of a sample `train` draws the split itself. What was accepted in batches only trains.
        """
        everything = dict(self.store.journal.labels)
        labels = {path: label for path, label in everything.items() if label.label != UNKNOWN}
        counts: dict[str, int] = {}
        for label in labels.values():
            counts[label.label] = counts.get(label.label, 0) + 1
        kept = {name for name, n in counts.items() if n >= MIN_PER_CLASS}
        if len(kept) < 2:
            raise UserError(
                f"{self.store.csv}: training needs two classes with {MIN_PER_CLASS} labels each; label some more images"
            )
        sample = {self.audit.paths[i] for i in self.audit.sample(everything, passed_over)[0]}
        split = {path: "valid" if path in sample else "train" for path in labels}
        for name in kept:  # each class needs images to learn from
            members = [path for path, label in labels.items() if label.label == name]
            if all(split[path] == "valid" for path in members):
                split[members[0]] = "train"
        stated = len(sample) >= ENOUGH and 2 * len(sample) <= len(labels)
        if not stated:
            split = {path: "train" if label.provenance == ACCEPTED else "" for path, label in labels.items()}
        file = self.store.journal.path.with_name("train.csv")
        with atomic(file) as temporary, temporary.open("w", encoding="utf-8", errors="surrogateescape") as stream:
            writer = SafeCsvWriter(stream)
            writer.writerow(("path", "label", "split", "provenance"))
            for path, label in labels.items():
                if label.label in kept:
                    place = str(self.store.folder / path)
                    writer.writerow((place, label.label, split[path], label.provenance))
        return file
