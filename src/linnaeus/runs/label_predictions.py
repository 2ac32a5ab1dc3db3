"""predictions.csv of a run whose images may have several labels: one row per validation and test image.

sample, split, true, predicted, group, then a column `probability of CLASS` for each class
true and predicted are the labels, separated by |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from linnaeus.errors import UserError
from linnaeus.files import csv_file
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.parsing import ADVICE, csv_rows, parse_rows

FIRST = ("sample", "split", "true", "predicted", "group")
PROBABILITY = "probability of "


@dataclass(frozen=True, eq=False)
class LabelPredictionRow:
    """What the saved model predicts for one image."""

    sample: str
    split: str
    true: tuple[str, ...]  # names of the classes
    predicted: tuple[str, ...]  # the labels whose probability reaches their threshold
    probabilities: np.ndarray  # (classes,) calibrated
    group: str = ""

    @property
    def correct(self) -> bool:
        """Whether every label is right."""
        return set(self.true) == set(self.predicted)


def label_prediction_rows(
    split: str, samples: Sequence[str], outputs: Outputs, decisions: np.ndarray, classes: Sequence[str]
) -> Iterator[LabelPredictionRow]:
    """One row per sample of a split; `outputs` are calibrated, `decisions` (n, classes) bool."""
    probabilities, names = outputs.probabilities, np.array(classes, object)
    for i, sample in enumerate(samples):
        yield LabelPredictionRow(
            sample,
            split,
            tuple(names[outputs.labels[i]]),
            tuple(names[decisions[i]]),
            probabilities[i],
            "" if outputs.groups is None else str(outputs.groups[i]),
        )


def write_label_predictions(path: Path, rows: Iterable[LabelPredictionRow], classes: Sequence[str]) -> None:
    """Write predictions.csv; probabilities have ten significant digits."""
    with csv_file(path) as writer:
        writer.writerow([*FIRST, *(PROBABILITY + name for name in classes)])
        for row in rows:
            labels = "|".join(row.true), "|".join(row.predicted)
            numbers = (f"{value:.10g}" for value in row.probabilities.tolist())
            writer.writerow([row.sample, row.split, *labels, row.group, *numbers])


def read_label_names(path: Path) -> tuple[str, ...]:
    """The classes that the columns of predictions.csv name."""
    columns = next(csv_rows(path), {})
    return tuple(name.removeprefix(PROBABILITY) for name in columns if name.startswith(PROBABILITY))


def read_label_predictions(path: Path, classes: Sequence[str]) -> list[LabelPredictionRow]:
    """Read predictions.csv of a model with these classes. Raises UserError that names the file and the line."""
    rows, known = csv_rows(path), set(classes)
    first = next(rows, {})
    wanted = {*FIRST, *(PROBABILITY + name for name in classes)}
    if set(first) != wanted:
        raise UserError(f"{path}: must have rows with the columns {', '.join(FIRST)} and one for each class; {ADVICE}")

    def parse(row: dict[str, str]) -> LabelPredictionRow:
        true, predicted = (tuple(filter(None, row[key].split("|"))) for key in ("true", "predicted"))
        # A file of another model may have the same columns but other labels.
        if not known.issuperset((*true, *predicted)):
            raise ValueError(f"labels {row['true']!r} and {row['predicted']!r}")
        probabilities = np.array([float(row[PROBABILITY + name]) for name in classes])
        return LabelPredictionRow(row["sample"], row["split"], true, predicted, probabilities, row["group"])

    return parse_rows(path, chain([first], rows), parse)
