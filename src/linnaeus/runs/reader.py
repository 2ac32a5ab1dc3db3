"""Read a finished run folder for its report. No image is opened, and the source need not exist any more."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from linnaeus.data.table import SPLITS
from linnaeus.errors import UserError, no_run
from linnaeus.metrics.abstention import NO_ANSWER
from linnaeus.metrics.classification import confusion_matrix
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.selective import is_unsure
from linnaeus.modelfile.safetensors import MODEL, ModelFile, read_header
from linnaeus.runs.history import Row, read_history
from linnaeus.runs.label_predictions import LabelPredictionRow, read_label_predictions
from linnaeus.runs.layout import (
    BAD_IMAGES,
    CHANGES,
    CHECK,
    EVALUATION,
    HISTORY,
    LABEL_CHECK,
    METRICS,
    PREDICTIONS,
    RECIPE,
    SPLIT,
)
from linnaeus.runs.model_selection import ModelSelection
from linnaeus.runs.parsing import ADVICE, csv_rows, parse_rows, read_csv, read_json, read_metrics, read_text
from linnaeus.runs.penalties import Trial, read_penalties
from linnaeus.runs.predictions import PredictionRow, read_predictions
from linnaeus.text import local_time

MANY_WRONG = 0.1  # share of the labels from which on it is rather the heads that are wrong

AnyRow = TypeVar("AnyRow", PredictionRow, LabelPredictionRow)


@dataclass(frozen=True)
class RecordedCheck:
    """The contents of check.json, or of check-labels.json."""

    findings: list[dict[str, Any]]  # each is {"kind", "severity", "paths", "classes", "detail"}
    notes: list[str]  # checks that were skipped, with the reason, and how labels were checked
    labels: int = 0  # number of labels that check-labels.json is about
    damage: list[str] = field(default_factory=list)  # a line about each file that is missing or cannot be read


@dataclass(frozen=True, eq=False)
class RunContents:
    """A finished run, as recorded in its folder."""

    path: Path
    model: ModelFile  # the header of the model file, without weights
    metrics: dict[str, Any]
    # By split, in the format of `linnaeus evaluate --json`; empty if the run has no evaluation.json.
    evaluation: dict[str, Any]
    history: list[Row]
    predictions: dict[str, list[PredictionRow]]  # by split; empty where images may have several labels
    # (n,) int64: class index of every image of the source; -1 for a class that the model does not have. (n, classes)
    # bool where images may have several labels.
    labels: np.ndarray
    splits: np.ndarray  # (n,) "<U5": split of every image of the source
    bad_images: list[tuple[str, str]]  # (image, reason) of every image that was left out
    recipe: str
    check: RecordedCheck | None  # None if the data was not checked
    finished: datetime
    # Phase -> the penalties tried for its head, where it was solved.
    penalties: dict[int, list[Trial]] = field(default_factory=dict)
    # The contents of changes.json; empty if the run was not derived from another one.
    changes: dict[str, Any] = field(default_factory=dict)
    # By split, where images may have several labels.
    label_predictions: dict[str, list[LabelPredictionRow]] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.model.task == "multi-label"

    @property
    def measured(self) -> tuple[str, ...]:
        """The splits with predictions."""
        return tuple(self.label_predictions if self.several else self.predictions)

    @property
    def names(self) -> tuple[str, ...]:
        """Display names of the classes."""
        return self.model.names

    def name_of(self, label: str) -> str:
        """The display name of a class."""
        return self.names[self.class_index[label]]

    @cached_property
    def class_index(self) -> dict[str, int]:
        return {label: i for i, label in enumerate(self.model.classes)}

    @cached_property
    def split(self) -> str:
        """The split whose figures are reported first: test if there is one."""
        return "test" if "test" in self.measured else "valid"

    @property
    def selection(self) -> ModelSelection:
        """What chose the model."""
        return ModelSelection.of(self.model.recipe, self.metrics.get("best") or {}, len(self.history))

    @property
    def threshold(self) -> float:
        """Answers with a lower probability count as unsure; 0 if the model never abstains."""
        abstention = (self.metrics.get("calibration") or {}).get("abstention")
        if abstention is None:
            return 0.0
        return NO_ANSWER if abstention.get("threshold") is None else float(abstention["threshold"])

    @cached_property
    def limits(self) -> Thresholds | None:
        """The thresholds beyond which an image is unknown; None for a model without."""
        return None if self.model.unknown is None else Thresholds(**self.model.unknown["thresholds"])

    def verdict(self, row: PredictionRow) -> str:
        """What the model answers instead of the most likely class: `unknown`, else `unsure`, else empty."""
        if self.limits is not None and self.limits.is_unknown(row.distance, row.probability):
            return "unknown"
        return "unsure" if is_unsure(row.probability, self.threshold) else ""

    @cached_property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64 counts of `split`: rows true, columns predicted."""
        rows = self.predictions[self.split]
        true = np.array([self.class_index[row.true] for row in rows], np.int64)
        predicted = np.array([self.class_index[row.predicted] for row in rows], np.int64)
        return confusion_matrix(true, predicted, len(self.names))

    @cached_property
    def counts(self) -> dict[str, np.ndarray]:
        """Number of images per class, (classes,), for each split that is not empty."""
        if self.several:
            parts = {split: self.labels[self.splits == split] for split in SPLITS}
            return {split: part.sum(0) for split, part in parts.items() if len(part)}
        known = self.labels >= 0
        return {
            split: np.bincount(self.labels[known & (self.splits == split)], minlength=len(self.names))
            for split in SPLITS
            if (self.splits == split).any()
        }


def read_run(path: Path) -> RunContents:
    """Read a run folder. Raises UserError that names the file if it is not a finished run or a file is damaged."""
    if not (path / MODEL).is_file() or not (path / METRICS).is_file():
        raise no_run(path, f"{MODEL} and {METRICS}")
    model, metrics = read_header(path / MODEL), read_metrics(path)
    evaluation, several = path / EVALUATION, model.task == "multi-label"
    labels, splits = _labels_and_splits(path / SPLIT, model)
    run = RunContents(
        path=path,
        model=model,
        metrics=metrics,
        evaluation=read_json(evaluation) if evaluation.is_file() else {},
        history=read_history(path / HISTORY),
        penalties=read_penalties(path),
        changes=read_json(path / CHANGES) if (path / CHANGES).is_file() else {},
        predictions=_by_split([] if several else _known_predictions(path / PREDICTIONS, model)),
        label_predictions=_by_split(read_label_predictions(path / PREDICTIONS, model.classes) if several else []),
        labels=labels,
        splits=splits,
        bad_images=[(row.get("path", ""), row.get("reason", "")) for row in read_csv(path / BAD_IMAGES)],
        recipe=read_text(path / RECIPE),
        check=_checks(path, metrics),
        finished=local_time((path / MODEL).stat().st_mtime),
    )
    if not set(run.measured) & {"valid", "test"}:
        raise UserError(f"{path / PREDICTIONS}: holds no predictions for valid or test; {ADVICE}")
    for split in run.measured:
        if not isinstance(metrics.get(split), dict):
            raise UserError(f"{path / METRICS}: has no figures for {split}, which has predictions; {ADVICE}")
    return run


def _labels_and_splits(path: Path, model: ModelFile) -> tuple[np.ndarray, np.ndarray]:
    """`RunContents.labels` and `splits` from split.csv, whose rows are not kept."""
    several, known = model.task == "multi-label", dict[str, str]()
    position = {label: i for i, label in enumerate(model.classes)}
    labels, splits = list[Any](), list[str]()
    for row in csv_rows(path):
        split = row.get("split", "")
        splits.append(known.setdefault(split, split))  # one text for all rows
        if several:
            names = (row.get("labels") or "").split("|")
            labels.append(np.isin(np.arange(len(position)), [position[name] for name in names if name in position]))
        else:
            labels.append(position.get(row.get("label", ""), -1))
    indices = np.array(labels, bool).reshape(-1, len(position)) if several else np.array(labels, np.int64)
    return indices, np.array(splits, "<U5")


def _known_predictions(path: Path, model: ModelFile) -> list[PredictionRow]:
    """The rows of predictions.csv. Raises UserError for a class that the model does not have."""
    rows, known = read_predictions(path), set(model.classes)
    for row in rows:
        if unknown := {row.true, row.predicted} - known:
            raise UserError(f"{path}: {row.sample} has class {unknown.pop()!r}, which the model lacks; {ADVICE}")
    return rows


def _by_split(rows: Iterable[AnyRow]) -> dict[str, list[AnyRow]]:
    by_split: dict[str, list[AnyRow]] = {}
    for row in rows:
        by_split.setdefault(row.split, []).append(row)
    return by_split


def _checks(path: Path, metrics: dict[str, Any]) -> RecordedCheck | None:
    """The data check of a run folder, with the labels that look wrong to its solved head."""
    found, recorded = [], metrics.get("checks")
    for name in (CHECK, LABEL_CHECK):
        check = read_check(path / name)
        if check is None and isinstance(recorded, list) and name in recorded:
            check = RecordedCheck([], [], damage=[f"{name} is missing; what it found is not shown"])
        found += [] if check is None else [check]
    if not found:
        return None
    findings, notes = [f for check in found for f in check.findings], [n for check in found for n in check.notes]
    return RecordedCheck(findings, notes, damage=[line for check in found for line in check.damage])


def label_lines(folder: Path) -> list[str]:
    """A line for the terminal about the labels that look wrong to the solved head of a run; empty without such labels.

    Labels that are only improbable are in the file, but not in the line: some images are hard.
    """
    check = read_check(folder / LABEL_CHECK)
    if check is not None and check.damage:
        return [f"labels    {check.damage[0]}"]
    wrong = [finding for finding in (check.findings if check else ()) if finding["severity"] == "warning"]
    if check is None or not wrong:
        return []
    n = check.labels
    hint = "; with so many, most may be mistakes of the heads" if len(wrong) > MANY_WRONG * n else ""
    first = " ".join([*wrong[0]["paths"][:1], wrong[0]["detail"]])
    return [
        f"labels    {len(wrong):,} of {n:,} training labels look wrong to heads that had not seen the image{hint}. The "
        f"first: {first}; all are in {LABEL_CHECK}"
    ]


def read_check(path: Path) -> RecordedCheck | None:
    """check.json: the output of `linnaeus check --json`, or only its list of findings. None if there is no file.

    A damaged file costs only what it found: the model, its figures and the report are complete without it.
    """
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
        # Earlier versions wrote the list alone.
        content = content if isinstance(content, dict) else {"findings": content}
        findings = [
            {
                "kind": str(finding["kind"]),
                "severity": str(finding["severity"]),
                "paths": list(map(str, finding.get("paths") or ())),
                "classes": list(map(str, finding.get("classes") or ())),
                "detail": str(finding.get("detail") or ""),
            }
            for finding in content["findings"]
        ]
        return RecordedCheck(findings, list(map(str, content.get("notes", []))), int(content.get("labels", 0)))
    except (UserError, ValueError, OverflowError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        return RecordedCheck([], [], damage=[f"{path.name} cannot be read ({reason}); what it found is not shown"])


def recorded_contents(path: Path) -> np.ndarray:
    """(n,) uint64: the content hashes of the images that split.csv names, UNKNOWN where it has none."""
    parsed = parse_rows(path, csv_rows(path), lambda row: np.uint64(int(row.get("content") or "0", 16)))
    return np.array(parsed, np.uint64)
