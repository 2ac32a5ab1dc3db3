"""Metrics of a model together with its prediction for each image, for the Python interface and notebooks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from linnaeus.data.table import Table
from linnaeus.inference.prediction import data_frame
from linnaeus.inference.source import LabeledImages
from linnaeus.metrics.classification import Figures, confusion_matrix, figures
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import is_unsure
from linnaeus.text import html_table, percent, percent_range

if TYPE_CHECKING:
    import pandas


class MeasuredFigures(Figures):
    """Metrics together with the calibrated predictions behind them; equal to other metrics with the same values.

    `names` are the display names of the classes in index order.
    """

    def __init__(
        self,
        images: LabeledImages,
        outputs: Outputs,
        names: tuple[str, ...],
        threshold: float,
        limits: Thresholds | None = None,
        copies: np.ndarray | None = None,
    ):
        """`copies`, (n,) bool: the images that look like altered copies of images of the run."""
        super().__init__(**vars(figures(outputs)))
        some = copies is not None and copies.any() and not copies.all()
        without = figures(outputs.take(~copies)) if copies is not None and some else None
        # The base class is frozen.
        vars(self).update(images=images, outputs=outputs, names=names, threshold=threshold, limits=limits)
        vars(self).update(without_copies=without)

    images: LabeledImages
    outputs: Outputs
    names: tuple[str, ...]
    threshold: float
    limits: Thresholds | None
    """Thresholds beyond which an image is unknown; None if the model has none."""

    without_copies: Figures | None
    """The metrics without the images that look like altered copies of images of the run; None where there are none, or
    no others."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Figures) and self.to_dict() == other.to_dict()

    __hash__ = Figures.__hash__

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64 counts: rows true, columns predicted."""
        return confusion_matrix(self.outputs.labels, self.outputs.predicted, len(self.names))

    def to_pandas(self) -> pandas.DataFrame:
        """One row per image: path, true, predicted, probability, correct, unsure, unknown, distance.

        The table of `predict` has columns of the same names, and the same paths for the same folder. An unknown image
        is not answered, whether it is unsure or not. UserError if pandas is missing.
        """
        out, table = self.outputs, self.images.table
        confidence = out.confidence
        none = np.zeros(len(confidence), bool)
        unknown = none if self.limits is None else self.limits.unknown(out.distances, confidence)
        distances = [None] * len(confidence) if out.distances is None else out.distances.tolist()
        samples = self.images.indices.tolist()
        rows = zip(samples, out.labels, out.predicted, confidence, unknown, distances, strict=True)
        return data_frame(
            [
                {
                    "path": _path(table, i, self.images.source),
                    "true": self.names[true],
                    "predicted": self.names[predicted],
                    "probability": float(probability),
                    "correct": bool(true == predicted),
                    "unsure": is_unsure(float(probability), self.threshold),
                    "unknown": bool(beyond),
                    "distance": distance,
                }
                for i, true, predicted, probability, beyond, distance in rows
            ]
        )

    def _repr_html_(self) -> str:
        rows = [
            ("images", f"{self.n:,}"),
            ("accuracy", f"{percent(self.accuracy, 2)} ({self.correct:,} of {self.n:,})"),
            ("95 % interval", percent_range(self.accuracy_ci95)),
            ("balanced accuracy", percent(self.balanced_accuracy, 2)),
            ("log loss", f"{self.loss:.4f}"),
        ]
        if self.without_copies is not None:
            rows.append(("without altered copies", str(self.without_copies)))
        return html_table(f"{self.images.split} of {self.images.source}", rows)


def _path(table: Table, i: int, source: str) -> str:
    """A path that opens sample i, below the working directory relative to it unless `source` is absolute; of a sample
    that is no file, its name."""
    if table.paths is None or table.members is not None:
        return table.sample_id(i)
    path, here = table.paths[i], str(Path.cwd()) + os.sep
    return path.removeprefix(here) if not Path(source).is_absolute() else path
