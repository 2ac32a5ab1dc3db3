"""The comparison of runs whose images may have several labels: mean average precision, paired by resampling.

All runs are measured on the same resamples of the images, or groups, so that the interval of a difference is a paired
one (Efron and Tibshirani 1993, An introduction to the bootstrap, section 8.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from linnaeus.metrics.bootstrap import percentile_interval, resample
from linnaeus.metrics.calibration import calibration_error
from linnaeus.metrics.multilabel import LabelFigures, WeightedLabels, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.label_predictions import LabelPredictionRow

SMALLEST = 1e-12  # a probability in predictions.csv may be rounded to 0 or 1


@dataclass(frozen=True, eq=False)
class MeasuredLabels:
    """The figures of a run on the images that all runs share."""

    figures: LabelFigures
    ece: float
    """Calibration error of all pairs of an image and a label, 0 to 1."""
    maps: np.ndarray = field(repr=False)
    """(resamples,) the mean average precision on the same resamples for every run; empty if they would take too
    long."""

    @property
    def map_ci95(self) -> tuple[float, float] | None:
        return percentile_interval(self.maps, self.figures.groups)


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
    return MeasuredLabels(label_figures(outputs, given), ece, drawn.metrics.get("map", np.zeros(0)))


def map_difference(first: MeasuredLabels, second: MeasuredLabels) -> tuple[float, tuple[float, float] | None]:
    """The mean average precision of the second run minus that of the first, and its paired 95 % interval."""
    return second.figures.map - first.figures.map, percentile_interval(second.maps - first.maps, first.figures.groups)
