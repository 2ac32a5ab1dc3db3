"""The answers behind an evaluation, image by image: confusion matrix, table, and a notebook's output."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from linnaeus.inference.prediction import data_frame
from linnaeus.inference.source import LabeledImages
from linnaeus.metrics.classification import Figures, confusion_matrix, figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.metrics.selective import is_unsure
from linnaeus.text import html_table, percent

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class MeasuredImages:
    """The calibrated answers of a model for labeled images."""

    images: LabeledImages
    outputs: Outputs
    names: tuple[str, ...]
    """Display names of the classes, in index order."""
    threshold: float

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64 counts: rows true, columns predicted."""
        return confusion_matrix(self.outputs.labels, self.outputs.predicted, len(self.names))

    def to_pandas(self) -> pandas.DataFrame:
        """One row per image: path, true, predicted, probability, correct, unsure. UserError if pandas is missing."""
        columns = ("path", "true", "predicted", "probability", "correct", "unsure")
        out, table = self.outputs, self.images.table
        rows = zip(self.images.indices.tolist(), out.labels, out.predicted, out.confidence, strict=True)
        return data_frame(
            (
                {
                    "path": table.sample_id(i),
                    "true": self.names[true],
                    "predicted": self.names[predicted],
                    "probability": float(probability),
                    "correct": bool(true == predicted),
                    "unsure": is_unsure(float(probability), self.threshold),
                }
                for i, true, predicted, probability in rows
            ),
            columns,
        )


class MeasuredFigures(Figures):
    """Figures with the answers that they count; equal to other figures of the same values."""

    measured: MeasuredImages

    def __init__(self, measured: MeasuredImages):
        result = figures(measured.outputs)
        super().__init__(**{field.name: getattr(result, field.name) for field in fields(result)})
        object.__setattr__(self, "measured", measured)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Figures) and self.to_dict() == other.to_dict()

    __hash__ = Figures.__hash__

    @property
    def confusion(self) -> np.ndarray:
        """(classes, classes) int64 counts: rows true, columns predicted."""
        return self.measured.confusion

    def to_pandas(self) -> pandas.DataFrame:
        """One row per image: path, true, predicted, probability, correct, unsure. UserError if pandas is missing."""
        return self.measured.to_pandas()

    def _repr_html_(self) -> str:
        return figures_html(f"{self.measured.images.split} of {self.measured.images.source}", self)


def figures_html(title: str, result: Figures) -> str:
    """Figures as a small table for notebooks."""
    low, high = result.accuracy_ci95
    return html_table(
        title,
        [
            ("images", f"{result.n:,}"),
            ("accuracy", f"{percent(result.accuracy, 2)} ({result.correct:,} of {result.n:,})"),
            ("95 % interval", f"{percent(low)} to {percent(high)}"),
            ("balanced accuracy", percent(result.balanced_accuracy, 2)),
            ("log loss", f"{result.loss:.4f}"),
        ],
    )
