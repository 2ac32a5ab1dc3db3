"""Compare runs on the images that all of them were measured on, with a paired test for each pair of runs."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import duration
from linnaeus.data.class_names import listed
from linnaeus.data.table import group_numbers
from linnaeus.errors import UserError
from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.mcnemar import McNemar, holm
from linnaeus.recipe.difference import differences
from linnaeus.runs.layout import METRICS, PREDICTIONS, RECIPE
from linnaeus.runs.parsing import ADVICE, read_metrics, read_text
from linnaeus.runs.predictions import PredictionRow, read_predictions
from linnaeus.text import align, percent, shorten

MIN_SHARED = 50
"""Images that runs must share if their splits differ; a comparison on fewer is not informative."""
VALUE_WIDTH = 28
"""Terminal columns of a recipe value."""
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run's predictions for one split, its recipe and its duration."""

    path: str
    predictions: dict[str, PredictionRow]
    """By sample."""
    seconds: float
    recipe: dict[str, Any]


@dataclass(frozen=True)
class RunFigures:
    """The figures of a run on the images that all runs share. Loss in nats, calibration error in 0..1."""

    run: str
    n: int
    correct: int
    accuracy_ci95: tuple[float, float]
    loss: float
    ece: float
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The figures of each run, and a paired test for each pair of runs."""

    split: str
    rows: list[RunFigures]
    pairs: dict[tuple[int, int], McNemar]
    corrected: list[float]
    """p-value of each pair, corrected for the number of pairs."""
    recipes: dict[str, list[str]]
    """Recipe keys whose values differ -> the value in each run."""
    warnings: list[str] = field(default_factory=list)

    @property
    def grouped(self) -> bool:
        """Whether the images come in groups."""
        return any(pair.group_wins is not None for pair in self.pairs.values())

    def render(self) -> str:
        """Three tables of plain text: runs, pairs, and recipe differences."""
        names = _short_names([row.run for row in self.rows])
        head = ["", "accuracy", "95 % interval", "correct", "log loss", "ECE", "seconds"]
        lines = [f"{self.split}, {self.rows[0].n} images in common", *align([head, *self._runs(names)], "<>>>>>>"), ""]
        test = "McNemar's exact test" + (", one trial per group" if self.grouped else "")
        lines.append(f"differences (p: {test}" + (", corrected by Holm)" if len(self.pairs) > 1 else ")"))
        lines += align(self._pairs(names), "<>><<")
        if self.recipes:
            keys = [[key, *(shorten(value, VALUE_WIDTH) for value in values)] for key, values in self.recipes.items()]
            lines += ["", "recipe differences", *align([["", *names], *keys], "<" + "<" * len(names))]
        else:
            lines += ["", "the recipes are the same"]
        return "\n".join(lines)

    def _runs(self, names: list[str]) -> list[list[str]]:
        rows = []
        for name, row in zip(names, self.rows, strict=True):
            ci95 = " to ".join(percent(v) for v in row.accuracy_ci95)
            accuracy = [percent(row.correct / row.n, 2), ci95, f"{row.correct} of {row.n}"]
            rows.append([name, *accuracy, f"{row.loss:.4f}", percent(row.ece), duration(row.seconds)])
        return rows

    def _pairs(self, names: list[str]) -> list[list[str]]:
        rows = []
        for ((i, j), pair), p in zip(self.pairs.items(), self.corrected, strict=True):
            low, high = pair.difference_ci95
            better = names[j] if pair.difference > 0 else names[i]
            verdict = f"{better} is better" if p < SIGNIFICANT else "no significant difference"
            counts = f"{pair.only_second} correct only in {names[j]}, {pair.only_first} only in {names[i]}"
            ci95 = f"{percent(low, signed=True)} to {percent(high, signed=True)}"
            difference = f"{percent(pair.difference, 2, signed=True)} ({ci95})"
            rows.append([f"{names[j]} - {names[i]}", difference, f"p = {p:.3g}", verdict, counts])
        return rows

    def to_json(self) -> str:
        runs = [
            vars(row) | {"accuracy": row.correct / row.n, "accuracy_ci95": list(row.accuracy_ci95)} for row in self.rows
        ]
        pairs = [
            {"first": self.rows[i].run, "second": self.rows[j].run, **pair.to_dict(), "p_holm": p}
            for ((i, j), pair), p in zip(self.pairs.items(), self.corrected, strict=True)
        ]
        content = {
            "split": self.split,
            "runs": runs,
            "pairs": pairs,
            "recipes": self.recipes,
            "warnings": self.warnings,
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def compare_runs(folders: Sequence[str | Path], split: str | None = None) -> Comparison:
    """Compare run folders on the images that all of them were measured on.

    `split` defaults to test if every run has it, else to valid. Raises UserError if a run cannot be read or the runs
    share too few images.
    """
    if len(folders) < 2:
        raise UserError(f"compare {folders[0]}: give at least two runs")
    rows = {folder: _read_predictions(Path(folder)) for folder in folders}
    # The folders are keys: a repeated one vanishes from the dictionary.
    if len(rows) < len(folders):
        raise UserError(f"compare {' '.join(map(str, folders))}: a run is listed twice; list each run once")
    if split is None:
        # Test figures are preferred, since validation selected the models.
        split = "test" if all(any(row.split == "test" for row in of_run) for of_run in rows.values()) else "valid"
    runs = [_read_run(Path(folder), of_run, split) for folder, of_run in rows.items()]
    samples, warnings = _shared_samples(runs, split)
    groups = _groups(runs, samples)
    predictions = [[run.predictions[sample] for sample in samples] for run in runs]
    correct = [np.array([row.correct for row in of_run]) for of_run in predictions]
    pairs = {(i, j): McNemar.of(correct[i], correct[j], groups) for i, j in combinations(range(len(runs)), 2)}
    return Comparison(
        split=split,
        rows=[_figures(run, of_run, groups) for run, of_run in zip(runs, predictions, strict=True)],
        pairs=pairs,
        corrected=holm([pair.p for pair in pairs.values()]),
        recipes=differing([run.recipe for run in runs]),
        warnings=warnings,
    )


def _read_predictions(run: Path) -> list[PredictionRow]:
    if not (run / PREDICTIONS).exists():
        reason = f"holds no {PREDICTIONS}" if run.is_dir() else "no such run folder"
        raise UserError(f"{run}: {reason}; give folders of runs that `linnaeus train` finished")
    if (run / METRICS).exists() and read_metrics(run).get("task") == "multi-label":
        raise UserError(f"{run}: its model gives images several labels, which compare does not support yet")
    return read_predictions(run / PREDICTIONS)


def _read_run(folder: Path, rows: list[PredictionRow], split: str) -> ComparedRun:
    predictions = {row.sample: row for row in rows if row.split == split}
    if not predictions:
        other = "valid" if split == "test" else "test"
        raise UserError(f"{folder}: has no {split} images; compare on --split {other}")
    try:
        seconds = float(read_metrics(folder)["seconds"]["total"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / METRICS}: does not record the total seconds; {ADVICE}") from None
    try:
        recipe = tomllib.loads(read_text(folder / RECIPE))
    except ValueError as error:
        raise UserError(f"{folder / RECIPE}: is not valid TOML ({error}); {ADVICE}") from None
    return ComparedRun(str(folder), predictions, seconds, recipe)


def _shared_samples(runs: list[ComparedRun], split: str) -> tuple[list[str], list[str]]:
    """The samples that all runs have, and warnings. Raises UserError if there are too few or their labels differ."""
    first = runs[0]
    shared = [sample for sample in first.predictions if all(sample in run.predictions for run in runs)]
    sizes = [len(run.predictions) for run in runs]
    counts = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    # Few shared images mean another data set, not a few removed files.
    if len(shared) < min(max(sizes), MIN_SHARED):
        raise UserError(
            f"{first.path}: its {split} images differ from those of the other runs: {len(shared)} shared of {counts}, "
            f"and {MIN_SHARED} are needed; train on the same source with the same data.split"
        )
    # The same image with another label makes the paired test meaningless.
    for run in runs[1:]:
        relabelled = [sample for sample in shared if run.predictions[sample].true != first.predictions[sample].true]
        if relabelled:
            raise UserError(
                f"{first.path}: {len(relabelled)} of {len(shared)} {split} images have other labels than in "
                f"{run.path}, such as {listed(relabelled, 2)}; compare runs on the same source"
            )
    if len(shared) == max(sizes):
        return shared, []
    return shared, [f"the runs have different {split} images ({counts}): compared on the {len(shared)} that all share"]


def _groups(runs: list[ComparedRun], samples: list[str]) -> np.ndarray | None:
    """(n,) int64 group numbers, from the first run that records groups; None if no images share a group."""
    # Runs from before groups were recorded have none; any other run on the same images can supply them.
    grouped = next((run for run in runs if any(row.group for row in run.predictions.values())), runs[0])
    return group_numbers([grouped.predictions[sample].group for sample in samples])


def _figures(run: ComparedRun, rows: list[PredictionRow], groups: np.ndarray | None) -> RunFigures:
    correct = np.array([row.correct for row in rows])
    of_true = np.array([row.probability_of_true for row in rows])
    return RunFigures(
        run=run.path,
        n=len(rows),
        correct=int(correct.sum()),
        accuracy_ci95=proportion_interval(correct, groups),
        loss=float(-np.log(np.maximum(of_true, np.finfo(np.float64).tiny)).mean()),
        ece=calibration_error(np.array([row.probability for row in rows]), correct),
        seconds=run.seconds,
    )


def differing(recipes: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys whose values differ between recipes -> the value in each recipe as text; `-` if it is absent."""
    rows = differences(recipes, expand=True)
    return {key: ["-" if value is None else str(value) for value in values] for key, values in rows.items()}


def _short_names(paths: list[str]) -> list[str]:
    """The last part of each path, or the whole paths if those are not unique."""
    names = [Path(path).name or path for path in paths]
    return names if len(set(names)) == len(names) else paths
