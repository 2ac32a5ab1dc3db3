"""Compare runs on the images that all of them were measured on, with a paired test for each pair of runs.

Where images may have several labels, an image is right if all its labels are, and the mean average precision is
compared as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import duration
from linnaeus.errors import UserError
from linnaeus.metrics.bootstrap import percentile_interval, resample
from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.intervals import proportion_interval
from linnaeus.metrics.mcnemar import SIGNIFICANT, McNemar, holm
from linnaeus.metrics.multilabel import LabelFigures, WeightedLabels, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.recipe.difference import differences
from linnaeus.runs.compared_run import (
    ComparedRun,
    read_compared_predictions,
    read_compared_run,
    shared_groups,
    shared_samples,
)
from linnaeus.runs.label_predictions import LabelPredictionRow
from linnaeus.runs.predictions import PredictionRow
from linnaeus.text import align, percent, percent_range, shorten

VALUE_WIDTH = 28  # terminal columns of a recipe value
SMALLEST = 1e-12  # a probability in predictions.csv may be rounded to 0 or 1


@dataclass(frozen=True, eq=False)
class MeasuredLabels:
    """The figures of a run on the images that all runs share."""

    figures: LabelFigures
    ece: float  # calibration error of all pairs of an image and a label, 0 to 1
    # (resamples,) the mean average precision on the same resamples for every run; empty if they would take too long.
    maps: np.ndarray = field(repr=False)
    map_ci95: tuple[float, float] | None  # that of `linnaeus evaluate` on the same images


def measure_labels(
    rows: Sequence[LabelPredictionRow], classes: Sequence[str], groups: np.ndarray | None
) -> MeasuredLabels:
    """Measure the predictions of one run; `rows` are the same images in the same order for every run."""
    true, given = (
        np.array([[name in sets for name in classes] for sets in of_rows])
        for of_rows in ([row.true for row in rows], [row.predicted for row in rows])
    )
    probabilities = np.clip([row.probabilities for row in rows], SMALLEST, 1 - SMALLEST)
    outputs = Outputs(true, np.log(probabilities / (1 - probabilities)), groups)
    drawn = resample(WeightedLabels(outputs, given))
    ece = calibration_error(probabilities.ravel(), true.ravel())
    maps = drawn.metrics.get("map", np.zeros(0))
    return MeasuredLabels(label_figures(outputs, given), ece, maps, drawn.interval("map"))


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
    labels: MeasuredLabels | None = None  # where images may have several labels

    @property
    def accuracy(self) -> float:
        """Share of the images that are right."""
        return self.correct / self.n

    def to_dict(self) -> dict[str, Any]:
        values = {key: value for key, value in vars(self).items() if key != "labels"} | {"accuracy": self.accuracy}
        values["accuracy_ci95"] = list(self.accuracy_ci95)
        if self.labels is not None:
            interval = self.labels.map_ci95
            values |= {"map": self.labels.figures.map, "map_ci95": None if interval is None else list(interval)}
            values |= {"macro_f1": self.labels.figures.macro_f1, "hamming_loss": self.labels.figures.hamming_loss}
        return values


@dataclass(frozen=True, eq=False)
class Comparison:
    """The figures of each run, and a paired test for each pair of runs."""

    split: str
    rows: list[RunFigures]
    pairs: dict[tuple[int, int], McNemar]
    corrected: list[float]  # p-value of each pair, corrected for the number of pairs
    recipes: dict[str, list[str]]  # recipe keys whose values differ -> the value in each run
    warnings: list[str] = field(default_factory=list)

    @property
    def grouped(self) -> bool:
        """Whether the images come in groups."""
        return any(pair.group_wins is not None for pair in self.pairs.values())

    def render(self) -> str:
        """Three tables of plain text: runs, pairs, and recipe differences."""
        names = _short_names([row.run for row in self.rows])
        several = self.rows[0].labels is not None
        head = ["", "accuracy", "95 % interval", "correct", "log loss", "ECE", "seconds"]
        if several:
            head[1:4] = ["mAP", "95 % interval", "macro F1", "all labels right", "95 % interval", "images"]
        runs = align([head, *self._runs(names)], "<" + ">" * (len(head) - 1))
        lines = [f"{self.split}, {self.rows[0].n} images in common", *runs, ""]
        if several and self.split == "valid":
            # Those of other folds, by which `train` and `evaluate` decide, are not in predictions.csv.
            note = "macro F1, all labels right: by thresholds that were chosen on these images (evaluate: on others)"
            lines[-1:] = [note, ""]
        if several:
            lines += ["differences of mAP (interval: paired bootstrap)", *align(self._maps(names), "<>"), ""]
        test = "McNemar's exact test" + (", one trial per group" if self.grouped else "")
        what = "differences of all labels right" if several else "differences"
        lines.append(f"{what} (p: {test}" + (", corrected by Holm)" if len(self.pairs) > 1 else ")"))
        lines += align(self._pairs(names), "<>><<")
        if self.recipes:
            keys = [[key, *(shorten(value, VALUE_WIDTH) for value in values)] for key, values in self.recipes.items()]
            lines += ["", "recipe differences", *align([["", *names], *keys], "<" + "<" * len(names))]
        else:
            lines += ["", "the recipes are identical"]
        return "\n".join(lines)

    def _runs(self, names: list[str]) -> list[list[str]]:
        rows = []
        for name, row in zip(names, self.rows, strict=True):
            accuracy = [percent(row.accuracy, 2), percent_range(row.accuracy_ci95), f"{row.correct} of {row.n}"]
            if row.labels is not None:
                accuracy = [
                    percent(row.labels.figures.map, 2),
                    percent_range(row.labels.map_ci95 or ()),
                    percent(row.labels.figures.macro_f1),
                    *accuracy,
                ]
            rows.append([name, *accuracy, f"{row.loss:.4f}", percent(row.ece), duration(row.seconds)])
        return rows

    def _maps(self, names: list[str]) -> list[list[str]]:
        rows = []
        for i, j in self.pairs:
            difference, interval = self.map_difference(i, j)
            ci95 = "" if interval is None else f" ({percent_range(interval, 2, signed=True)})"
            rows.append([f"{names[j]} - {names[i]}", percent(difference, 2, signed=True) + ci95])
        return rows

    def map_difference(self, i: int, j: int) -> tuple[float, tuple[float, float] | None]:
        """The mean average precision of run j minus that of run i, and its 95 % interval.

        All runs are measured on the same resamples of the images, or groups, so that the interval is a paired one
        (Efron and Tibshirani 1993, An introduction to the bootstrap, section 8.3).
        """
        first, second = self.rows[i].labels, self.rows[j].labels
        assert first is not None
        assert second is not None
        interval = percentile_interval(second.maps - first.maps, first.figures.groups)
        return second.figures.map - first.figures.map, interval

    def _pairs(self, names: list[str]) -> list[list[str]]:
        rows = []
        for ((i, j), pair), p in zip(self.pairs.items(), self.corrected, strict=True):
            better = names[j] if pair.difference > 0 else names[i]
            verdict = f"{better} is better" if p < SIGNIFICANT else "no significant difference"
            counts = f"{pair.only_second} correct only in {names[j]}, {pair.only_first} only in {names[i]}"
            ci95 = percent_range(pair.difference_ci95, signed=True)
            difference = f"{percent(pair.difference, 2, signed=True)} ({ci95})"
            rows.append([f"{names[j]} - {names[i]}", difference, f"p = {p:.3g}", verdict, counts])
        return rows

    def to_json(self) -> str:
        runs = [row.to_dict() for row in self.rows]
        pairs: list[dict[str, Any]] = [
            {"first": self.rows[i].run, "second": self.rows[j].run, **pair.to_dict(), "p_holm": p}
            for ((i, j), pair), p in zip(self.pairs.items(), self.corrected, strict=True)
        ]
        for pair, (i, j) in zip(pairs, self.pairs if self.rows[0].labels is not None else (), strict=False):
            difference, interval = self.map_difference(i, j)
            pair |= {"map_difference": difference, "map_difference_ci95": None if interval is None else list(interval)}
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
    rows = {folder: read_compared_predictions(Path(folder)) for folder in folders}
    several = {isinstance(row, LabelPredictionRow) for of_run in rows.values() for row in of_run[:1]}
    if len(several) > 1:
        raise UserError(
            f"compare {' '.join(map(str, folders))}: some runs give images one label, the others several; compare runs "
            "of one task"
        )
    # The folders are keys: a repeated one vanishes from the dictionary.
    if len(rows) < len(folders):
        raise UserError(f"compare {' '.join(map(str, folders))}: a run is listed twice; list each run once")
    if split is None:
        # Test figures are preferred, since validation selected the models.
        split = "test" if all(any(row.split == "test" for row in of_run) for of_run in rows.values()) else "valid"
    runs = [read_compared_run(Path(folder), of_run, split) for folder, of_run in rows.items()]
    samples, warnings = shared_samples(runs, split)
    groups = shared_groups(runs, samples)
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


def _figures(
    run: ComparedRun, rows: Sequence[PredictionRow | LabelPredictionRow], groups: np.ndarray | None
) -> RunFigures:
    correct = np.array([row.correct for row in rows])
    if run.classes is None:
        ones = [row for row in rows if isinstance(row, PredictionRow)]
        of_true = np.array([row.probability_of_true for row in ones])
        loss = float(-np.log(np.maximum(of_true, np.finfo(np.float64).tiny)).mean())
        ece, measured = calibration_error(np.array([row.probability for row in ones]), correct), None
    else:
        sets = [row for row in rows if isinstance(row, LabelPredictionRow)]
        measured = measure_labels(sets, run.classes, groups)
        loss, ece = measured.figures.loss, measured.ece
    interval = proportion_interval(correct, groups)
    return RunFigures(run.path, len(rows), int(correct.sum()), interval, loss, ece, run.seconds, measured)


def differing(recipes: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys whose values differ between recipes -> the value in each recipe as text; `-` if it is absent."""
    rows = differences(recipes, expand=True)
    return {key: ["-" if value is None else str(value) for value in values] for key, values in rows.items()}


def _short_names(paths: list[str]) -> list[str]:
    """The last part of each path, or the whole paths if those are not unique."""
    names = [Path(path).name or path for path in paths]
    return names if len(set(names)) == len(names) else paths
