"""Write a run folder."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from linnaeus.errors import JobError, UserError, refuse_name
from linnaeus.files import atomic, csv_file, disk_errors, numbered, sync, write_text
from linnaeus.modelfile.safetensors import MODEL
from linnaeus.recipe import Recipe
from linnaeus.runs.history import Row, write_rows
from linnaeus.runs.layout import (
    BAD_IMAGES,
    CHECK,
    CHECKPOINT,
    EVALUATION,
    HISTORY,
    IDENTITY,
    LABEL_CHECK,
    MANIFEST,
    METRICS,
    RECIPE,
    SPLIT,
    TRACKING,
)
from linnaeus.runs.lock import LOCK
from linnaeus.runs.ownership import is_in_progress, is_vacant, remove_checkpoint, remove_remains, taken
from linnaeus.runs.parsing import read_metrics
from linnaeus.runs.penalties import FILES as PENALTIES

WRITTEN_FIRST = frozenset({RECIPE, CHECK, LABEL_CHECK, SPLIT, BAD_IMAGES, HISTORY, TRACKING})
"""Files that a run may have written before its first model."""
RANGE_TESTS = "lr-phase*.png"
_REMOVED = ".checkpoint-finished"  # earlier versions renamed the checkpoint to this before they deleted it


class RunFolder:
    """The folder of one run. Files are written completely or not at all; history.csv grows by complete lines."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = []
        self.resumed = False
        self._opened = _identity_of(path)

    @staticmethod
    def check(out: str | Path | None) -> None:
        """Raise UserError if `out` is a file or a folder that is not empty, or has a name that no file can have."""
        if out is None:
            return
        refuse_name(out)
        if os.path.lexists(out) and not (Path(out).is_dir() and is_vacant(Path(out))):
            raise taken(out)

    @classmethod
    def create(cls, out: str | Path | None, name: str) -> RunFolder:
        """Create a new folder: `out`, or runs/<name>-<n>. Raises UserError if `out` exists and is not empty."""
        if out is None:
            return cls(numbered(Path("runs") / name))
        cls.check(out)
        path = Path(out)
        with disk_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls(path)

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """Open the folder of an interrupted run, whose lock the caller holds, and delete what killed writers left."""
        folder = cls(path)
        remove_remains(path, alone=True)
        folder.resumed = True
        return folder

    @staticmethod
    def check_interrupted(path: Path) -> None:
        """Raise UserError if `path` is not the folder of an interrupted run."""
        if not is_in_progress(path):
            raise UserError(
                f"{path}: already exists and is not an interrupted run (it has no {CHECKPOINT}/{IDENTITY}); choose "
                "another --out"
            )

    def require(self) -> None:
        """Raise JobError if the folder was moved or removed since it was opened: no second one is begun there."""
        if self._opened is not None and _identity_of(self.path) != self._opened:
            raise JobError(
                f"{self.path}: was moved or removed while the run was writing to it, so the run has ended; if it was "
                "moved, `linnaeus train NEW_PLACE --resume` continues it"
            )

    def file(self, name: str) -> Path:
        """The path of a file that is about to be written. Raises JobError as `require` does."""
        self.require()
        return self.path / name

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    @property
    def model(self) -> Path:
        return self.path / MODEL

    def finished(self) -> bool:
        """Whether the run completed: metrics.json says so, and there is nothing to resume from."""
        try:
            metrics = read_metrics(self.path)
        except UserError:
            return False
        complete = metrics.get("interrupted") is False and {"best", "valid", "seconds"} <= metrics.keys()
        return complete and self.model.is_file() and not is_in_progress(self.path)

    def close(self) -> None:
        """Delete the checkpoint of a completed run, and what killed writers left."""
        with disk_errors(self.checkpoint):
            if is_in_progress(self.path):
                # First, because it decides whether the run has finished: half a checkpoint is never resumed.
                (self.checkpoint / IDENTITY).unlink()
                sync(self.checkpoint)
            for folder in (self.checkpoint, self.path / _REMOVED):
                remove_checkpoint(folder)
        remove_remains(self.path)

    def abandon(self) -> None:
        """Remove the folder after a failure if it holds nothing to resume from, so that its name is free again."""
        moved = _identity_of(self.path) != self._opened
        if not moved and not self.model.exists() and not self.resumed and not (self.checkpoint / MANIFEST).exists():
            with suppress(OSError):  # the failure itself is the error to report
                remove_checkpoint(self.checkpoint)
                for path in (
                    *map(self.path.joinpath, {*WRITTEN_FIRST, LOCK}),
                    *self.path.glob(RANGE_TESTS),
                    *self.path.glob(PENALTIES),
                ):
                    path.unlink(missing_ok=True)
                self.path.rmdir()

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.file(RECIPE), recipe.to_toml())

    def write_bad_images(self, bad: list[tuple[str, str]]) -> None:
        """Write (path, reason) of every image that was left out."""
        with csv_file(self.file(BAD_IMAGES)) as writer:
            writer.writerow(["path", "reason"])
            writer.writerows(bad)

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """Write evaluation.json. It is long, so it is not indented."""
        write_text(self.file(EVALUATION), json.dumps(evaluation, ensure_ascii=False, allow_nan=False) + "\n")

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_text(self.file(METRICS), json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n")

    def start(self, rows: list[Row]) -> None:
        """Restart history.csv with the epochs recorded in a checkpoint; later epochs will run again."""
        self.rows[:] = rows
        path = self.file(HISTORY)
        if rows:
            with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                write_rows(file, rows, header=True)
        else:
            with disk_errors(path):
                path.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Append an epoch to history.csv."""
        self.rows.append(row)
        path = self.file(HISTORY)
        with disk_errors(path), path.open("a", newline="", encoding="utf-8") as file:
            write_rows(file, [row], header=file.tell() == 0)


def _identity_of(path: Path) -> tuple[int, int] | None:
    """Device and number of a folder, which a move keeps; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
