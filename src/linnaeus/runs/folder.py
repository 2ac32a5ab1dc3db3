"""What a run leaves behind: a folder with a model, its figures, and the story of how it came to be.

    model.safetensors   the best model so far
    recipe.toml         the recipe as resolved, defaults included: `train --recipe` on it repeats the run
    history.csv         a row an epoch
    metrics.json        the figures of the saved model, with counts and intervals, and what the run ran on
    evaluation.json     the same with all classes, the confusion matrix and the diagrams
    predictions.csv     a row an image of validation and test; `linnaeus compare` reads it
    check.json          what is wrong with the data, as `linnaeus check --json` writes it
    split.csv           path, label and split of every image, as the CSV reader reads them
    bad_images.csv      path and reason of every image left out
    curves.png, predictions.png, confusion.png
    report.html         all of it on one page that needs no network
    checkpoint/         what --resume needs; gone when the run has come to its end
    .lock               held by the process that trains; a killed one leaves the file, and holds nothing
    lr-phaseN.png       the range test of phase N, where its lr is "auto"
    tensorboard/        events, with --tensorboard
    model.onnx, model-int8.onnx, exports.json     what `linnaeus export` wrote, and how fast each is here

What was not asked for, or does not apply, is not there.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TextIO

from linnaeus.check.inspection import Inspection
from linnaeus.data.table import Table, write_split
from linnaeus.errors import UserError
from linnaeus.files import atomic, disk_errors, leftovers, numbered, sync, write_text
from linnaeus.modelfile.safetensors import MODEL
from linnaeus.recipe import Recipe
from linnaeus.runs.compare import PREDICTION_COLUMNS, PREDICTIONS
from linnaeus.runs.history import Row
from linnaeus.runs.layout import MANIFEST
from linnaeus.runs.lock import LOCK
from linnaeus.runs.reader import EVALUATION

BEGINNINGS = frozenset({"recipe.toml", "check.json", "split.csv", "bad_images.csv", "history.csv"})
"""What a run has written before its first model."""
CHECKPOINT = "checkpoint"
_DONE = ".checkpoint-finished"  # what is left of the checkpoint of a run that is over, for an instant


class RunFolder:
    """The folder of one run. Files are written whole or not at all, but for history.csv, which grows by whole lines."""

    def __init__(self, path: Path):
        self.path = path
        self.rows: list[Row] = []
        self.resumed = False
        self._events: Any = None

    @staticmethod
    def check(out: str | Path | None) -> None:
        """Raise UserError where `out` is taken: by a file, or a folder with something in it."""
        if out is None or not Path(out).exists():
            return
        if not Path(out).is_dir() or any(file.name != LOCK for file in Path(out).iterdir()):
            raise UserError(f"{out}: already exists; choose another --out, or remove it")

    @classmethod
    def create(cls, out: str | Path | None, name: str) -> RunFolder:
        """A new folder: `out`, or runs/<name>-<n>. Raises UserError where `out` is taken."""
        if out is not None:
            cls.check(out)
            path = Path(out)
            with disk_errors(path):
                path.mkdir(parents=True, exist_ok=True)
            return cls(path)
        return cls(numbered(Path("runs") / name))

    @classmethod
    def resume(cls, path: Path) -> RunFolder:
        """The folder of a run that was cut, rid of what killed writers left. Raises UserError where it is no run's."""
        folder = cls(path)
        names = {file.name for file in path.iterdir()} if path.is_dir() else {path.name}
        ours = {file.name for file in (*leftovers(path), *path.glob("lr-phase*.png"))} | {
            *BEGINNINGS,
            MODEL,
            CHECKPOINT,
            LOCK,
        }
        if not folder.checkpoint.is_dir() and names - ours:
            raise UserError(f"{path}: already exists and is no run that was cut; choose another --out")
        for file in leftovers(path):
            file.unlink(missing_ok=True)
        folder.resumed = True
        return folder

    @property
    def checkpoint(self) -> Path:
        return self.path / CHECKPOINT

    def finished(self) -> bool:
        """Whether the run came to its end: metrics.json says so, and there is nothing left to go on with."""
        try:
            metrics = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return metrics.get("interrupted") is False and not self.checkpoint.exists()

    def close(self) -> None:
        """The run is over: remove its checkpoint, in one instant."""
        done = self.path / _DONE
        shutil.rmtree(done, ignore_errors=True)
        if self.checkpoint.exists():
            with disk_errors(self.checkpoint):
                self.checkpoint.rename(done)
                sync(self.path)
            shutil.rmtree(done, ignore_errors=True)

    def abandon(self) -> None:
        """Leave nothing behind where there is nothing to go on with, so that the next try may have the name."""
        if not self.model.exists() and not self.resumed and not (self.checkpoint / MANIFEST).exists():
            with suppress(OSError):  # there is an error to show already
                shutil.rmtree(self.checkpoint, ignore_errors=True)
                for path in (*map(self.path.joinpath, {*BEGINNINGS, LOCK}), *self.path.glob("lr-phase*.png")):
                    path.unlink(missing_ok=True)
                self.path.rmdir()

    @property
    def model(self) -> Path:
        return self.path / MODEL

    def write_recipe(self, recipe: Recipe) -> None:
        write_text(self.path / "recipe.toml", recipe.to_toml())

    def write_bad_images(self, bad: list[tuple[str, str]]) -> None:
        """(path, reason) of every image left out."""
        with (
            atomic(self.path / "bad_images.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["path", "reason"])
            writer.writerows(bad)

    def write_check(self, inspection: Inspection) -> None:
        """check.json: what is wrong with the data, as `linnaeus check --json` has it."""
        if inspection.found:
            write_text(self.path / "check.json", inspection.json)

    def write_split(self, table: Table) -> None:
        """Which sample is in which split, in the form that the CSV reader reads."""
        write_split(table, self.path / "split.csv")

    def write_predictions(self, rows: Iterable[Sequence[object]]) -> None:
        """What the saved model says of every image of validation and test; `linnaeus compare` reads it."""
        with (
            atomic(self.path / PREDICTIONS) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(PREDICTION_COLUMNS)
            writer.writerows(rows)

    def write_evaluation(self, found: dict[str, Any]) -> None:
        """Every figure by split and class, with the diagrams; the report reads it. In one line, for it is long."""
        write_text(self.path / EVALUATION, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n")

    def start(self, rows: list[Row]) -> None:
        """Begin history.csv anew, with the epochs that a checkpoint knows of; later ones are run again."""
        self.rows[:] = rows
        path = self.path / "history.csv"
        if rows:
            with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
                _write_rows(file, rows, header=True)
        else:
            with disk_errors(path):
                path.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Append an epoch to history.csv."""
        self.rows.append(row)
        path = self.path / "history.csv"
        with disk_errors(path), path.open("a", newline="", encoding="utf-8") as file:
            _write_rows(file, [row], header=file.tell() == 0)
        if self._events is not None:
            step = len(self.rows)
            for name in ("lr", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy"):
                value = getattr(row, name)
                if value is not None:
                    self._events.add_scalar(name.replace("_", "/"), value, step)

    @contextmanager
    def tensorboard(self, wanted: bool) -> Iterator[None]:
        """Write every row as TensorBoard events too, where wanted. Raises UserError where it is not installed."""
        if not wanted:
            yield
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError('--tensorboard: not installed; pip install "linnaeus[tensorboard]"') from None
        self._events = SummaryWriter(
            str(self.path / "tensorboard"), purge_step=len(self.rows) + 1 if self.resumed else None
        )
        try:
            yield
        finally:
            self._events.close()
            self._events = None

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_text(
            self.path / "metrics.json", json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        )


def _write_rows(file: TextIO, rows: list[Row], *, header: bool) -> None:
    """Lines of history.csv; floats with six digits, seconds to the millisecond."""
    writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(Row)], lineterminator="\n")
    if header:
        writer.writeheader()
    for row in rows:
        values = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(row).items()}
        writer.writerow({**values, "seconds": f"{row.seconds:.3f}"})
