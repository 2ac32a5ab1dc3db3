"""An image of the report with its prediction and its true class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from linnaeus.report.thumbnails import LARGE, Thumbnail, Thumbnails
from linnaeus.runs.predictions import PredictionRow
from linnaeus.runs.reader import RunContents
from linnaeus.text import probability_percent


@dataclass(frozen=True)
class ShownPrediction:
    """An image with its prediction and its true class."""

    sample: str
    image: Thumbnail | None
    heat_map: Thumbnail | None
    predicted: str
    true: str
    probability: str
    probability_of_true: str
    correct: bool
    verdict: str  # what the model answers instead: `unknown`, `unsure` or nothing


def shown_prediction(
    run: RunContents,
    images: Thumbnails,
    row: PredictionRow,
    *,
    heat_maps: Mapping[int, Thumbnail] | None = None,
    side: int = LARGE,
) -> ShownPrediction:
    """A row of predictions.csv with its image, and with its heat map if `heat_maps` has one."""
    i = images.find(row.sample)
    return ShownPrediction(
        sample=row.sample,
        image=images.image(i, side),
        heat_map=None if i is None or heat_maps is None else heat_maps.get(i),
        predicted=run.name_of(row.predicted),
        true=run.name_of(row.true),
        probability=probability_percent(row.probability, typeset=True),
        probability_of_true=probability_percent(row.probability_of_true, typeset=True),
        correct=row.correct,
        verdict=run.verdict(row),
    )
