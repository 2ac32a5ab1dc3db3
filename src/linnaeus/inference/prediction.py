"""The prediction for one image, and several as a table."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from linnaeus.errors import UserError
from linnaeus.inference.runners import NOT_FINITE
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.selective import is_unsure
from linnaeus.text import html_table, probability_percent

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, eq=False)
class Prediction:
    """The prediction for one image: calibrated probabilities, and whether the model is unsure or the image unknown."""

    path: str
    """The path as the caller passed it; `image N` for bytes and pixels."""
    classes: tuple[str, ...]
    """Class names in index order."""
    names: tuple[str, ...]
    """Display names in index order."""
    probabilities: np.ndarray | None
    """(classes,) float64, summing to 1 unless images may have several labels; None if the image cannot be read."""
    error: str | None = None
    """Reason why the image could not be read; None if it was."""
    image: np.ndarray | None = None
    """(size, size, channels) uint8: the pixels that the network saw."""
    threshold: float = 0.0
    """The model is unsure if the probability of the most likely class is below this value."""
    distance: float | None = None
    """Cosine distance of the features from the training images, 0 to 2; None if the model measures none."""
    thresholds: np.ndarray | None = None
    """(classes,) smallest probability at which each label is assigned, of a multi-label model; else None."""
    limits: Thresholds | None = None
    """Thresholds beyond which the image is unknown; None if the model has none."""

    @property
    def index(self) -> int:
        """Index of the most likely class. Raises UserError if the image cannot be read."""
        return int(self.readable().argmax())

    @property
    def name(self) -> str:
        """Display name of the most likely class."""
        return self.names[self.index]

    @property
    def probability(self) -> float:
        """Calibrated probability of the most likely class."""
        return float(self.readable().max())

    @property
    def unsure(self) -> bool:
        """Whether the most likely class is less probable than the model's threshold."""
        return self.probabilities is not None and is_unsure(self.probability, self.threshold)

    @property
    def unknown(self) -> bool:
        """Whether the image belongs to none of the classes; False if the model has no thresholds for that."""
        if self.limits is None or self.probabilities is None:
            return False
        return self.limits.is_unknown(self.distance, self.probability)

    @property
    def verdict(self) -> str:
        """`unknown`, `unsure`, or empty if the most likely class is the answer."""
        return "unknown" if self.unknown else "unsure" if self.unsure else ""

    @property
    def labels(self) -> list[str]:
        """Display names of the assigned labels, the most likely first; else the most likely class alone."""
        return [self.names[i] for i in self.given]

    @property
    def given(self) -> list[int]:
        """Class indices of `labels`."""
        probabilities = self.readable()
        if self.thresholds is None:
            return [self.index]
        return [i for i, _ in self.ranked(len(self.classes)) if probabilities[i] >= self.thresholds[i]]

    @property
    def answer(self) -> str:
        """The most likely class, or all assigned labels, as text."""
        return self.name if self.thresholds is None else ", ".join(self.labels) or "no label"

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """(display name, probability) of the k most likely classes, the most likely first."""
        return [(self.names[i], p) for i, p in self.ranked(k)]

    def ranked(self, k: int) -> list[tuple[int, float]]:
        """(class index, probability) of the k most likely classes, the most likely first."""
        probabilities = self.readable()
        return [(int(i), float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:k]]

    def to_dict(self, k: int = 5) -> dict[str, Any]:
        """The object of a JSON line of `linnaeus predict`, with the k most likely classes; NaN becomes an `error`."""
        error = self.error
        # The class of a broken network would look like an answer.
        if self.probabilities is not None and not np.isfinite(self.probabilities).all():
            error = NOT_FINITE
        top = [] if self.probabilities is None or error else self.ranked(k)
        values = {
            "path": self.path,
            "top": [{"class": self.classes[i], "name": self.names[i], "probability": p} for i, p in top],
            "unsure": self.unsure,
            "unknown": None if self.limits is None or error is not None else self.unknown,
            "distance": None if error is not None else self.distance,
            "error": error,
        }
        if self.thresholds is not None:
            values["labels"] = [] if self.probabilities is None or error else [self.classes[i] for i in self.given]
        return values

    def __repr__(self) -> str:
        if self.probabilities is None:
            return f"Prediction({self.path!r}, error={self.error!r})"
        if self.thresholds is not None:
            return f"Prediction({self.path!r}, labels={self.labels!r})"
        answer = f"{self.name!r}, {probability_percent(self.probability)}" + (
            f", {self.verdict}" if self.verdict else ""
        )
        return f"Prediction({self.path!r}, {answer})"

    def _repr_html_(self) -> str:
        """A notebook's output: the answer and the most likely classes, without the pixels."""
        if self.probabilities is None:
            return f"<p>{html.escape(self.path)}: {html.escape(str(self.error))}</p>"
        rows = [(name, probability_percent(p)) for name, p in self.top(3)]
        return html_table(f"{self.path}: {self.verdict or self.answer}", rows)

    def readable(self) -> np.ndarray:
        """The probabilities. Raises UserError if the image cannot be read."""
        if self.probabilities is None:
            raise UserError(f"{self.path}: {self.error}")
        return self.probabilities


class Predictions(list[Prediction]):
    """What `Classifier.predict` returns for several images: a list with a table."""

    def to_pandas(self, top: int = 5) -> pandas.DataFrame:
        """One row per image: path, predicted, probability, then the other columns of `linnaeus predict --format csv`.

        Raises UserError if pandas is not installed.
        """
        return data_frame([_row(prediction, top) for prediction in self])

    def _repr_html_(self) -> str:
        rows = [(p.path, "no answer" if p.probabilities is None else p.verdict or p.answer) for p in self[:10]]
        more = f", the first {len(rows)}" if len(self) > len(rows) else ""
        return html_table(f"{len(self):,} predictions{more}", rows)


@dataclass(frozen=True, eq=False)
class Answer:
    """The output of a classifier for one image."""

    probabilities: np.ndarray  # (classes,) float64, calibrated
    distance: float | None  # cosine distance from the training images; None where the model has no references


def _row(prediction: Prediction, top: int) -> dict[str, Any]:
    values = prediction.to_dict(top)
    best = values["top"][0] if values["top"] else {}
    row: dict[str, Any] = {
        "path": values["path"],
        "predicted": best.get("name"),
        "probability": best.get("probability"),
        "unsure": values["unsure"],
        "error": values["error"],
    }
    for rank in range(1, min(top, len(prediction.classes)) + 1):
        answer = values["top"][rank - 1] if values["top"] else {}
        row |= {f"{key}_{rank}": answer.get(key) for key in ("class", "name", "probability")}
    several = {"labels": "|".join(values["labels"])} if "labels" in values else {}
    return row | {"unknown": values["unknown"], "distance": values["distance"]} | several


def data_frame(rows: list[dict[str, Any]]) -> pandas.DataFrame:
    """Rows as a DataFrame. Raises UserError if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise UserError("to_pandas needs pandas: pip install pandas") from None
    return pandas.DataFrame(rows)
