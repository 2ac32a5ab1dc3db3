"""Runs side by side, on the same images: a difference of three images is not called progress."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.console import duration
from linnaeus.data.names import listed
from linnaeus.data.table import group_numbers
from linnaeus.errors import UserError
from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.intervals import interval
from linnaeus.metrics.mcnemar import Paired, holm
from linnaeus.text import align, shorten

PREDICTIONS = "predictions.csv"
PREDICTION_COLUMNS = ("sample", "split", "true", "predicted", "probability", "probability_of_true", "group")
"""A row an image of validation and test: its name in the source, classes, calibrated probabilities, and a number that
images of one group share; "" where none come in groups."""

ENOUGH = 50  # shared images where not all are: with fewer a comparison says too little
VALUE = 28  # columns of a recipe's value
SIGNIFICANT = 0.05


@dataclass(frozen=True, eq=False)
class Told:
    """What a run says of its images of one split, and how it was made."""

    path: str
    answers: dict[str, tuple[str, str, float, float]]
    """Sample -> true class, predicted class, probability of that, probability of the true one."""
    groups: dict[str, str]
    """Sample -> group, of samples that have one."""
    seconds: float | None
    recipe: dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A run's figures on the images that all runs share. Shares in 0..1, loss in nats."""

    run: str
    n: int
    correct: int
    accuracy_ci95: tuple[float, float]
    loss: float
    ece: float
    seconds: float | None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Runs, pair by pair."""

    split: str
    rows: list[Row]
    pairs: dict[tuple[int, int], Paired]
    corrected: list[float]
    """p-values of the pairs, corrected for how many there are."""
    recipes: dict[str, list[str]]
    """Keys in which the recipes differ, with each run's value."""
    warnings: list[str] = field(default_factory=list)

    @property
    def grouped(self) -> bool:
        """Whether the images come in groups."""
        return any(pair.tossed is not None for pair in self.pairs.values())

    def render(self) -> str:
        """Three tables: the runs, the pairs, the recipes."""
        names = _short([row.run for row in self.rows])
        head = [["", "accuracy", "95 % interval", "right", "log loss", "ECE", "seconds"]]
        lines = [f"{self.split}, {self.rows[0].n} images in common", *align(head + self._runs(names), "<>>>>>>"), ""]
        test = "McNemar's exact test" + (", a group a toss" if self.grouped else "")
        lines.append(f"differences (p: {test}" + (", corrected by Holm)" if len(self.pairs) > 1 else ")"))
        lines += align(self._pairs(names), "<>><<")
        if self.recipes:
            keys = [[key, *(shorten(value, VALUE) for value in values)] for key, values in self.recipes.items()]
            lines += ["", "recipes differ in", *align([["", *names], *keys], "<" + "<" * len(names))]
        else:
            lines += ["", "the recipes are the same"]
        return "\n".join(lines)

    def _runs(self, names: list[str]) -> list[list[str]]:
        return [
            [
                name, f"{row.correct / row.n:.2%}", " to ".join(f"{v:.1%}" for v in row.accuracy_ci95),
                f"{row.correct} of {row.n}", f"{row.loss:.4f}", f"{row.ece:.1%}",
                "-" if row.seconds is None else duration(row.seconds),
            ]
            for name, row in zip(names, self.rows, strict=True)
        ]  # fmt: skip

    def _pairs(self, names: list[str]) -> list[list[str]]:
        rows = []
        for ((i, j), pair), p in zip(self.pairs.items(), self.corrected, strict=True):
            low, high = pair.difference_ci95
            better = names[j] if pair.difference > 0 else names[i]
            verdict = f"{better} is better" if p < SIGNIFICANT else "not to be told apart"
            found = f"{pair.only_second} right only by {names[j]}, {pair.only_first} only by {names[i]}"
            interval = f"{pair.difference:+.2%} ({low:+.1%} to {high:+.1%})"
            rows.append([f"{names[j]} - {names[i]}", interval, f"p = {p:.3g}", verdict, found])
        return rows

    def to_json(self) -> str:
        runs = [vars(row) | {"accuracy": row.correct / row.n, "accuracy_ci95": list(row.accuracy_ci95)} for row in self.rows]  # fmt: skip  # noqa: E501
        pairs = [
            {"first": self.rows[i].run, "second": self.rows[j].run, **pair.to_dict(), "p_holm": p}
            for ((i, j), pair), p in zip(self.pairs.items(), self.corrected, strict=True)
        ]
        found = {"split": self.split, "runs": runs, "pairs": pairs, "recipes": self.recipes, "warnings": self.warnings}
        return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def compare_runs(runs: Sequence[str | Path], split: str | None = None) -> Comparison:
    """Compare run folders on the images that all of them were measured on.

    Without `split`: test where every run has it, else validation. Raises UserError where a run cannot be read, or the
    images differ by so much that too few are shared.
    """
    if len(runs) < 2:
        raise UserError(f"compare {runs[0]}: give two runs or more")
    files = {run: _read_predictions(Path(run)) for run in runs}
    if len(files) < len(runs):
        raise UserError(f"compare {' '.join(map(str, runs))}: a run is given twice")
    if split is None:
        split = "test" if all(any(r["split"] == "test" for r in rows) for rows in files.values()) else "valid"
    told = [_told(Path(run), rows, split) for run, rows in files.items()]
    shared, warnings = _shared(told, split)
    answers = [[each.answers[sample] for sample in shared] for each in told]
    right = [np.array([true == predicted for true, predicted, *_ in each]) for each in answers]
    groups = _groups(told, shared)
    rows = [_row(each, of, hits, groups) for each, of, hits in zip(told, answers, right, strict=True)]
    pairs = {(i, j): Paired.of(right[i], right[j], groups) for i, j in combinations(range(len(told)), 2)}
    corrected = holm([pair.p for pair in pairs.values()])
    return Comparison(split, rows, pairs, corrected, differing([each.recipe for each in told]), warnings)


def _read_predictions(run: Path) -> list[dict[str, str]]:
    path = run / PREDICTIONS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except FileNotFoundError:
        what = "holds no predictions.csv" if run.is_dir() else "no such run folder"
        raise UserError(f"{run}: {what}; give folders that `linnaeus train` finished") from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read ({error}); train the run again") from None
    if not rows or set(rows[0]) | {"group"} != set(PREDICTION_COLUMNS):
        raise UserError(f"{path}: has not the columns {', '.join(PREDICTION_COLUMNS)}; train the run again")
    return rows


def _told(run: Path, rows: list[dict[str, str]], split: str) -> Told:
    answers, groups = {}, {}
    for number, row in enumerate(rows, 2):
        if row["split"] == split:
            try:
                probabilities = float(row["probability"]), float(row["probability_of_true"])
            except (TypeError, ValueError):
                raise UserError(f"{run / PREDICTIONS}:{number}: not a prediction: {list(row.values())}") from None
            answers[row["sample"]] = (row["true"], row["predicted"], *probabilities)
            if row.get("group"):  # which runs of before do not have
                groups[row["sample"]] = row["group"]
    if not answers:
        raise UserError(f"{run}: has no {split} images; compare on --split {'valid' if split == 'test' else 'test'}")
    seconds = recipe = None
    try:
        seconds = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["seconds"]["total"]
        recipe = tomllib.loads((run / "recipe.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}: metrics.json or recipe.toml cannot be read ({error}); train the run again") from None
    return Told(str(run), answers, groups, float(seconds), recipe)


def _shared(told: list[Told], split: str) -> tuple[list[str], list[str]]:
    """The samples that all runs have, and what is to be said of it. Raises UserError where they are too few."""
    first = told[0]
    shared = [sample for sample in first.answers if all(sample in each.answers for each in told)]
    sizes = [len(each.answers) for each in told]
    counts = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    if len(shared) < min(max(sizes), ENOUGH):
        raise UserError(
            f"{first.path}: its {split} images are not those of the other runs: {len(shared)} shared of {counts}, "
            f"and {ENOUGH} are needed; train on the same source with the same data.split"
        )
    for each in told[1:]:
        other = [sample for sample in shared if each.answers[sample][0] != first.answers[sample][0]]
        if other:
            raise UserError(
                f"{first.path}: {len(other)} of {len(shared)} {split} images have other labels than in {each.path}, "
                f"such as {listed(other, 2)}; compare runs on the same source"
            )
    if len(shared) == max(sizes):
        return shared, []
    return shared, [f"the runs have other {split} images ({counts}): compared on the {len(shared)} that all share"]


def _groups(told: list[Told], shared: list[str]) -> np.ndarray | None:
    """(n,) int64: the groups that the first run with any tells of; None where none of the images share one."""
    named: dict[str, str] = next((each.groups for each in told if each.groups), {})
    return group_numbers([named.get(sample, "") for sample in shared])


def _row(told: Told, answers: list[tuple[str, str, float, float]], right: np.ndarray, groups: np.ndarray | None) -> Row:
    n, correct = len(right), int(right.sum())
    of_true = np.array([p for *_, p in answers])
    loss = float(-np.log(np.maximum(of_true, np.finfo(np.float64).tiny)).mean())
    sure = np.array([p for _, _, p, _ in answers])
    return Row(told.path, n, correct, interval(right, groups), loss, calibration_error(sure, right), told.seconds)


def differing(recipes: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Dotted keys whose values differ between recipes, with each recipe's value as text; `-` where it has none."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = list(dict.fromkeys(key for each in flat for key in each))
    rows = {key: [str(each.get(key, "-")) for each in flat] for key in keys}
    return {key: values for key, values in rows.items() if len(set(values)) > 1}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """{"phase": [{"lr": 1}]} -> {"phase.1.lr": 1}."""
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        parts = {str(i): each for i, each in enumerate(value, 1)}.items()
    else:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, each in parts:
        found |= _flat(each, f"{prefix}.{key}" if prefix else key)
    return found


def _short(paths: list[str]) -> list[str]:
    """Names that tell runs apart: the last part of each path, or all of it."""
    names = [Path(path).name or path for path in paths]
    return names if len(set(names)) == len(names) else paths
