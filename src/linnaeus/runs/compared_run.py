"""The predictions of runs that are compared, and the images that all of them have."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data.class_names import listed
from linnaeus.data.table import group_numbers
from linnaeus.errors import UserError, no_run
from linnaeus.files import read_object
from linnaeus.recipe.renamed import with_present_names
from linnaeus.runs.label_predictions import LabelPredictionRow, read_label_names, read_label_predictions
from linnaeus.runs.layout import EVALUATION, METRICS, PREDICTIONS, RECIPE, SPLIT
from linnaeus.runs.parsing import ADVICE, read_csv, read_metrics, read_text
from linnaeus.runs.predictions import PredictionRow, read_predictions

MIN_SHARED = 50  # images that runs must share if their splits differ; a comparison on fewer is not informative


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A run's predictions for one split, its recipe and its duration."""

    path: str
    predictions: Mapping[str, PredictionRow | LabelPredictionRow]  # by sample
    seconds: float
    recipe: dict[str, Any]
    classes: tuple[str, ...] | None = None  # where images may have several labels
    # Sample -> hash of its image; without those that are unknown, as in runs of earlier versions.
    contents: Mapping[str, str] = field(default_factory=dict)
    seen: int = 0  # images of the split that have a copy in training, or that trained the initial weights
    known: frozenset[str] = frozenset()  # classes that the model knows; none where the run does not record them

    def has(self, sample: str, other: ComparedRun) -> bool:
        """Whether the run was measured on this sample of another run: on the same image, not only the same name."""
        content = self.contents.get(sample)
        return sample in self.predictions and content in (None, other.contents.get(sample, content))


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
    metrics = read_metrics(folder)
    try:
        seconds = float(metrics["seconds"]["total"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{folder / METRICS}: does not record the total seconds; {ADVICE}") from None
    try:
        recipe = with_present_names(tomllib.loads(read_text(folder / RECIPE)))
    except ValueError as error:
        raise UserError(f"{folder / RECIPE}: is not valid TOML ({error}); {ADVICE}") from None
    several = bool(rows) and isinstance(rows[0], LabelPredictionRow)
    classes = read_label_names(folder / PREDICTIONS) if several else None
    contents = _contents(folder / SPLIT, predictions.keys())
    whole = metrics.get(split) or {}
    seen = whole["n"] - (whole["without_leaks"] or {"n": 0})["n"] if "without_leaks" in whole else 0
    known = frozenset() if several else _known_classes(folder, split)
    return ComparedRun(str(folder), predictions, seconds, recipe, classes, contents, seen, known)


def _known_classes(folder: Path, split: str) -> frozenset[str]:
    """The classes of the model, as evaluation.json lists them with their figures."""
    try:
        rows = read_object(folder / EVALUATION)[split]["classes"]
        return frozenset(row["class"] for row in rows)
    except (KeyError, TypeError):  # a run of an earlier version
        return frozenset()


def _contents(path: Path, samples: Collection[str]) -> dict[str, str]:
    """Sample -> content hash, by the paths in split.csv, which end with the name of the sample."""
    if not path.exists():
        return {}
    lengths = {len(_parts(sample)) for sample in samples}
    known = {
        _parts(row["path"])[-length:]: row["content"]
        for row in read_csv(path)
        if row.get("content") and row.get("path")
        for length in lengths
    }
    found = {sample: known.get(_parts(sample)) for sample in samples}
    return {sample: content for sample, content in found.items() if content is not None}


def _parts(path: str) -> tuple[str, ...]:
    return tuple(path.replace("\\", "/").split("/"))


def shared_samples(runs: list[ComparedRun], split: str) -> tuple[list[str], list[str]]:
    """The samples that all runs have, and warnings. Raises UserError if there are too few or their labels differ."""
    first = runs[0]
    shared = [sample for sample in first.predictions if all(run.has(sample, first) for run in runs)]
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
    warnings = [*_seen(runs, split), *_other_classes(runs)]
    if len(shared) == max(sizes):
        return shared, warnings
    different = f"the runs have different {split} images ({counts}): compared on the {len(shared)} that all share"
    return shared, [*warnings, different]


def _seen(runs: list[ComparedRun], split: str) -> list[str]:
    """A warning for each run that had seen some of the images."""
    return [
        f"{run.path}: {run.seen:,} of its {len(run.predictions):,} {split} images were seen in training, which favors "
        "models that memorize; remove the copies, which `linnaeus check` lists"
        for run in runs
        if run.seen
    ]


def _other_classes(runs: list[ComparedRun]) -> list[str]:
    """A warning for each run that can give answers which another one does not know: its task is harder."""
    common = frozenset.intersection(*(run.known for run in runs))
    return [
        f"{run.path} also knows {listed(sorted(run.known - common), 3)}, which not all of these runs know: on the same "
        "images its task is harder, so that accuracy, log loss and ECE are not those of equal tasks"
        for run in runs
        if common and run.known > common
    ]


def _labels(run: ComparedRun, sample: str) -> set[str]:
    true = run.predictions[sample].true
    return {true} if isinstance(true, str) else set(true)


def shared_groups(runs: list[ComparedRun], samples: list[str]) -> np.ndarray | None:
    """(n,) int64 group numbers, from the first run that records groups; None if no images share a group."""
    # Runs from before groups were recorded have none; any other run on the same images can supply them.
    grouped = next((run for run in runs if any(row.group for row in run.predictions.values())), runs[0])
    return group_numbers([grouped.predictions[sample].group for sample in samples])
