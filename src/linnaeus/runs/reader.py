"""What a run folder holds, read for its report. Nothing here opens an image, and the source need not be there."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from linnaeus.data.table import SPLITS
from linnaeus.errors import UserError
from linnaeus.modelfile.safetensors import MODEL, ModelFile, read_header
from linnaeus.runs.history import Row

EVALUATION = "evaluation.json"
CHECK = "check.json"
AGAIN = "train the run again"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Answer:
    """A line of predictions.csv; classes as indices, probabilities calibrated."""

    sample: str
    true: int
    predicted: int
    probability: float
    probability_of_true: float

    @property
    def right(self) -> bool:
        return self.true == self.predicted


@dataclass(frozen=True, eq=False)
class Contents:
    """A finished run, as its folder tells it."""

    path: Path
    model: ModelFile
    """Without its weights."""
    metrics: dict[str, Any]
    evaluation: dict[str, Any]
    """By split, as `linnaeus evaluate --json` writes it; empty where the run has none."""
    history: list[Row]
    answers: dict[str, list[Answer]]
    """By split."""
    labels: np.ndarray
    """(n,) int64: the class of every image of the source, -1 for one that the model does not know."""
    splits: np.ndarray
    """(n,) "<U5", beside `labels`."""
    bad: list[tuple[str, str]]
    """(image, reason) of what was left out."""
    recipe: str
    findings: list[dict[str, Any]] | None
    """What the check found: {"kind", "severity", "paths", "classes", "detail"}; None where there was no check."""
    notes: list[str]
    """What the check did not look for, and why."""
    finished: datetime

    @property
    def names(self) -> tuple[str, ...]:
        return self.model.names

    @cached_property
    def split(self) -> str:
        """The split that the figures are quoted on: test where there is one."""
        return "test" if "test" in self.answers else "valid"

    @property
    def threshold(self) -> float:
        """The probability below which the model is unsure; 0 where it answers everything."""
        return float((self.metrics.get("calibration") or {}).get("abstention", {}).get("threshold") or 0.0)

    @cached_property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64 counts of `split`: rows true, columns predicted."""
        matrix = np.zeros((len(self.names), len(self.names)), np.int64)
        for answer in self.answers[self.split]:
            matrix[answer.true, answer.predicted] += 1
        return matrix

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """Images by class (classes,), for each split that has any."""
        known = self.labels >= 0
        return {
            split: np.bincount(self.labels[known & (self.splits == split)], minlength=len(self.names))
            for split in SPLITS
            if (self.splits == split).any()
        }


def read_run(path: Path) -> Contents:
    """Read a run folder. Raises UserError, naming the file, where it is none, or a file in it cannot be read."""
    if not path.is_dir():
        raise UserError(f"{path}: no such run folder; give one that `linnaeus train` finished")
    if not (path / MODEL).is_file() or not (path / "metrics.json").is_file():
        raise UserError(f"{path}: holds no {MODEL} and metrics.json; give a folder that `linnaeus train` finished")
    model = read_header(path / MODEL)
    position = {name: i for i, name in enumerate(model.classes)}
    metrics, answers = _json(path / "metrics.json"), _answers(path / "predictions.csv", position)
    for split in answers:
        if not isinstance(metrics.get(split), dict):
            raise UserError(f"{path / 'metrics.json'}: has no figures of {split}, which was predicted; {AGAIN}")
    rows = _table(path / "split.csv")
    findings, notes = _check(path / CHECK)
    evaluation = path / EVALUATION
    return Contents(
        path=path,
        model=model,
        metrics=metrics,
        evaluation=_json(evaluation) if evaluation.is_file() else {},
        history=[_read(path / "history.csv", row, _epoch) for row in _table(path / "history.csv")],
        answers=answers,
        labels=np.array([position.get(row.get("label", ""), -1) for row in rows], np.int64),
        splits=np.array([row.get("split", "") for row in rows], "<U5"),
        bad=[(row.get("path", ""), row.get("reason", "")) for row in _table(path / "bad_images.csv")],
        recipe=_text(path / "recipe.toml"),
        findings=findings,
        notes=notes,
        finished=datetime.fromtimestamp((path / MODEL).stat().st_mtime),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from None


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds no JSON object; {AGAIN}")
    return found


def _table(path: Path) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(_text(path).splitlines(keepends=True), strict=True))
    except csv.Error as error:
        raise UserError(f"{path}: is no CSV ({error}); {AGAIN}") from None


def _read(path: Path, row: dict[str, str], make: Callable[[dict[str, str]], Found]) -> Found:
    try:
        return make(row)
    except (KeyError, TypeError, ValueError) as error:
        said = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: a line of it is not whole ({said}): {list(row.values())[:8]}; {AGAIN}") from None


def _epoch(row: dict[str, str]) -> Row:
    def number(name: str) -> float:
        return float(row[name])

    shown = row["train_accuracy"]
    return Row(
        int(row["phase"]), int(row["epoch"]), number("lr"), number("train_loss"), float(shown) if shown else None,
        number("valid_loss"), number("valid_accuracy"), number("seconds"),
    )  # fmt: skip


def _answers(path: Path, position: dict[str, int]) -> dict[str, list[Answer]]:
    found: dict[str, list[Answer]] = {}

    def answer(row: dict[str, str]) -> Answer:
        return Answer(
            row["sample"], position[row["true"]], position[row["predicted"]],
            float(row["probability"]), float(row["probability_of_true"]),
        )  # fmt: skip

    for row in _table(path):
        found.setdefault(row.get("split") or "", []).append(_read(path, row, answer))
    if not found.keys() & {"valid", "test"}:
        raise UserError(f"{path}: holds no predictions; {AGAIN}")
    return found


def _check(path: Path) -> tuple[list[dict[str, Any]] | None, list[str]]:
    """The findings of a check: what `linnaeus check --json` writes, or its list of findings alone."""
    if not path.is_file():
        return None, []
    try:
        found = json.loads(_text(path))
        listed = found["findings"] if isinstance(found, dict) else found
        notes = found.get("notes", []) if isinstance(found, dict) else []
        findings = [
            {
                "kind": str(each["kind"]),
                "severity": str(each["severity"]),
                "paths": list(map(str, each.get("paths") or ())),
                "classes": list(map(str, each.get("classes") or ())),
                "detail": str(each.get("detail") or ""),
            }
            for each in listed
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not what a check writes ({type(error).__name__}: {error}); run `linnaeus check --json` again"
        ) from None
    return findings, list(map(str, notes))
