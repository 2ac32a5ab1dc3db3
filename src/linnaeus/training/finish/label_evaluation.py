"""The final evaluation of a run whose images may have several labels; the counterpart of `evaluation.py`.

In `metrics.json` a split has `map`, `macro_f1`, `subset_accuracy`, `hamming_loss` and more in place of `accuracy`, and
`calibration` has scale, offset and threshold of each label. `predictions.csv` has the labels of an image in one cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from linnaeus.data.table import Table
from linnaeus.metrics.label_assessment import assess_labels
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.metrics.multilabel import Headline, LabelFigures, MultiLabelMetrics, label_figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.runs.label_predictions import LabelPredictionRow, label_prediction_rows
from linnaeus.stores.samples import Samples
from linnaeus.text import percent, percent_range
from linnaeus.training.finish.evaluation import (
    NOTHING,
    certainty,
    kept,
    leak_lines,
    sample_names,
    split_dicts,
    summary_split,
)
from linnaeus.training.finish.rounding import map_within_rounding

HEADLINE = {"map": "mAP", "macro_f1": "macro F1", "subset_accuracy": "all labels right"}


def intervals(metrics: MultiLabelMetrics) -> str:
    """The 95 % intervals of the headline metrics that have one."""
    found = [(word, metrics[name].ci95) for name, word in HEADLINE.items()]
    parts = [f"{word} {percent_range(ci95)}" for word, ci95 in found if ci95 is not None]
    return ", ".join(parts) or "none, because all resamples of these images give the same figures"


class LabelEvaluation:
    """Calibration and thresholds fitted on validation, and the metrics of every split with them."""

    def __init__(
        self,
        outputs: dict[str, Outputs],
        names: Sequence[str],
        precision: float | None,
        unseen: Mapping[str, np.ndarray] = NOTHING,
    ):
        """`outputs`: outputs of the saved model by split, `valid` among them; `precision` as in the recipe.

        `unseen`, (n,) bool by split, are the images that chose it, fit the calibration and measure it, where not all
        do.
        """
        self.names, self.outputs, self.unseen = names, outputs, unseen.get("valid")
        self.calibration = LabelCalibration.fit(kept(outputs["valid"], self.unseen), "valid", precision)
        self.calibrated = {split: self.calibration.apply(out) for split, out in outputs.items()}
        self.assessments = {
            split: assess_labels(out, self.calibration, cross_fitted=split == "valid", unseen=unseen.get(split))
            for split, out in outputs.items()
        }
        self.figures: dict[str, Headline] = {
            split: assessment.figures for split, assessment in self.assessments.items()
        }
        self.without_leaks: dict[str, Headline | None] = {}
        self.held_out = None

    def measure(self, split: str, rows: np.ndarray) -> LabelFigures:
        """The headline metrics of some images of a split, (n,) bool; decided as in the figures of all of them."""
        return label_figures(self.calibrated[split].take(rows), self.assessments[split].decisions[rows])

    def difference(self, chosen: Headline, error: float) -> str:
        """A warning where the saved model is not as good as during training; empty otherwise.

        `error`: the relative error of the logits during training.
        """
        assert isinstance(chosen, LabelFigures)
        outputs = kept(self.outputs["valid"], self.unseen)
        saved = label_figures(outputs)
        if abs(saved.map - chosen.map) <= map_within_rounding(outputs, error):
            return ""
        return (
            f"the saved model has a mean average precision of {percent(saved.map, 2)} on validation, but had "
            f"{percent(chosen.map, 2)} during training"
        )

    def to_dict(self) -> dict[str, Any]:
        """For metrics.json: the splits, and the calibration."""
        splits = split_dicts(self.assessments, self.without_leaks)
        return {"task": "multi-label"} | splits | {"calibration": self.calibration.to_dict()}

    def prediction_rows(self, table: Table, samples: dict[str, Samples]) -> Iterator[LabelPredictionRow]:
        """The rows of predictions.csv."""
        for split, outputs in self.calibrated.items():
            names = sample_names(table, split, samples)
            decisions = self.calibration.decide(outputs.probabilities)
            yield from label_prediction_rows(split, names, outputs, decisions, table.classes)

    def lines(self) -> list[str]:
        """A short summary for the terminal."""
        split, place = summary_split(self.assessments)
        rare = [self.names[label.index] for label in self.assessments["valid"].metrics.labels if label.support == 0]
        missing = [f"threshold no {', '.join(rare)} in validation: 50 % stands in for a threshold"] if rare else []
        return [
            *(f"interval  {split}, 95 %: {intervals(of.metrics)}" for split, of in self.assessments.items()),
            *leak_lines(self.without_leaks, self.unseen),
            f"certainty {certainty(self.assessments[split], place)}",
            *(f"threshold {line}" for line in self.calibration.lines(self.names)),
            *missing,
            "unknown   not recognized with several labels per image: an image of something else gets labels, or none",
        ]

    @property
    def warnings(self) -> list[str]:
        """Those of `lines` that a user has to read before any figure."""
        return []
