"""The predictions of runs that are compared, and the images that all of them have."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.class_names import listed
from linnaeus.data.table import group_numbers
from linnaeus.errors import UserError, no_run
from linnaeus.runs.label_predictions import LabelPredictionRow, read_label_names, read_label_predictions
from linnaeus.runs.layout import METRICS, PREDICTIONS, RECIPE
from linnaeus.runs.parsing import ADVICE, read_metrics, read_text
from linnaeus.runs.predictions import PredictionRow, read_predictions

MIN_SHARED = 50
"""Images that runs must share if their splits differ; a comparison on fewer is not informative."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run's predictions for one split, its recipe and its duration."""

    path: str
    predictions: Mapping[str, PredictionRow | LabelPredictionRow]
    """By sample."""
    seconds: float
    recipe: dict[str, Any]
    classes: tuple[str, ...] | None = None
    """Where images may have several labels."""


def read_compared_predictions(run: Path) -> list[PredictionRow] | list[LabelPredictionRow]:
    """The rows of predictions.csv. Raises UserError."""
    if not (run / PREDICTIONS).exists():
        raise no_run(run, PREDICTIONS)
    if (run / METRICS).exists() and read_metrics(run).get("task") == "multi-label":
        return read_label_predictions(run / PREDICTIONS, read_label_names(run / PREDICTIONS))
    return read_predictions(run / PREDICTIONS)


def read_compared_run(folder: Path, rows: Sequence[PredictionRow | LabelPredictionRow], split: str) -> ComparedRun:
    """A run with those of its rows that are of `split`. Raises UserError."""
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
    several = bool(rows) and isinstance(rows[0], LabelPredictionRow)
    return ComparedRun(
        str(folder), predictions, seconds, recipe, read_label_names(folder / PREDICTIONS) if several else None
    )


def shared_samples(runs: list[ComparedRun], split: str) -> tuple[list[str], list[str]]:
    """The samples that all runs have, and warnings. Raises UserError if there are too few or their labels differ."""
    first = runs[0]
    shared = [sample for sample in first.predictions if all(sample in run.predictions for run in runs)]
    sizes = [len(run.predictions) for run in runs]
    counts = f"{', '.join(map(str, sizes[:-1]))} and {sizes[-1]}"
    # Few shared images mean another dataset, not a few removed files.
    if len(shared) < min(max(sizes), MIN_SHARED):
        raise UserError(
            f"{first.path}: its {split} images differ from those of the other runs: {len(shared)} shared of {counts}, "
            f"and {MIN_SHARED} are needed; train on the same source with the same data.split"
        )
    for run in runs[1:]:
        if run.classes is not None and set(run.classes) != set(first.classes or ()):
            odd = sorted(set(run.classes) ^ set(first.classes or ()))
            raise UserError(
                f"{run.path}: has other labels than {first.path}, such as {listed(odd, 2)}; compare runs on the "
                "same labels"
            )
        # The same image with another label makes the paired test meaningless.
        relabelled = [sample for sample in shared if _labels(run, sample) != _labels(first, sample)]
        if relabelled:
            raise UserError(
                f"{first.path}: {len(relabelled)} of {len(shared)} {split} images have other labels than in "
                f"{run.path}, such as {listed(relabelled, 2)}; compare runs on the same source"
            )
    if len(shared) == max(sizes):
        return shared, []
    return shared, [f"the runs have different {split} images ({counts}): compared on the {len(shared)} that all share"]


def _labels(run: ComparedRun, sample: str) -> set[str]:
    true = run.predictions[sample].true
    return {true} if isinstance(true, str) else set(true)


def shared_groups(runs: list[ComparedRun], samples: list[str]) -> np.ndarray | None:
    """(n,) int64 group numbers, from the first run that records groups; None if no images share a group."""
    # Runs from before groups were recorded have none; any other run on the same images can supply them.
    grouped = next((run for run in runs if any(row.group for row in run.predictions.values())), runs[0])
    return group_numbers([grouped.predictions[sample].group for sample in samples])
