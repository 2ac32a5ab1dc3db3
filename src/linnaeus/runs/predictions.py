"""predictions.csv: one row per validation and test image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from itertools import chain
from pathlib import Path
from sys import intern

from linnaeus.errors import UserError
from linnaeus.files import csv_file
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.parsing import ADVICE, csv_rows, parse_rows


@dataclass(frozen=True, slots=True)
class PredictionRow:
    """What the saved model predicts for one image."""

    sample: str
    """Name of the image in its source."""
    split: str
    """`valid` or `test`."""
    true: str
    """The class, not its display name."""
    predicted: str
    """The most probable class, even if the model is unsure."""
    probability: float
    """Calibrated probability of `predicted`."""
    probability_of_true: float
    """Calibrated probability of `true`."""
    group: str = ""
    """A number that all images of one group share; empty if the images have no groups."""
    distance: float | None = None
    """Cosine distance from the training images, 0 to 2; empty where the network has no features below its head."""

    @property
    def correct(self) -> bool:
        return self.true == self.predicted


COLUMNS = tuple(field.name for field in fields(PredictionRow))
LATER_COLUMNS = frozenset({"group", "distance"})  # columns that older files lack


def prediction_rows(
    split: str, samples: Sequence[str], outputs: Outputs, classes: Sequence[str]
) -> Iterator[PredictionRow]:
    """One row per sample of a split; `outputs` are calibrated."""
    probabilities, predicted, groups = outputs.probabilities, outputs.predicted, outputs.groups
    for i, sample in enumerate(samples):
        true, top = int(outputs.labels[i]), int(predicted[i])
        yield PredictionRow(
            sample=sample,
            split=split,
            true=classes[true],
            predicted=classes[top],
            probability=float(probabilities[i, top]),
            probability_of_true=float(probabilities[i, true]),
            group="" if groups is None else str(groups[i]),
            distance=None if outputs.distances is None else float(outputs.distances[i]),
        )


def write_predictions(path: Path, rows: Iterable[PredictionRow]) -> None:
    """Write predictions.csv; probabilities have ten significant digits."""
    with csv_file(path) as writer:
        writer.writerow(COLUMNS)
        for row in rows:
            writer.writerow(f"{value:.10g}" if isinstance(value, float) else value for value in astuple(row))


def read_predictions(path: Path) -> list[PredictionRow]:
    """Read predictions.csv, also of older versions. Raises UserError that names the file and the line."""
    rows = csv_rows(path)
    first = next(rows, {})
    if set(first) | LATER_COLUMNS != set(COLUMNS):
        raise UserError(f"{path}: must have rows with the columns {', '.join(COLUMNS)}; {ADVICE}")
    return parse_rows(path, chain([first], rows), _parse)


def _parse(row: dict[str, str]) -> PredictionRow:
    return PredictionRow(
        sample=row["sample"],
        split=intern(row["split"]),  # one text for all rows
        true=intern(row["true"]),
        predicted=intern(row["predicted"]),
        probability=float(row["probability"]),
        probability_of_true=float(row["probability_of_true"]),
        group=row.get("group") or "",
        distance=float(row["distance"]) if row.get("distance") else None,
    )
