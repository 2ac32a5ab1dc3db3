"""The sections of the report on labels, where images may have several: each label, labels together, trust, doubts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.metrics.multilabel import co_occurrence
from linnaeus.report.calibration import OF_LABELS, reliability
from linnaeus.report.evaluation_text import unseen_note
from linnaeus.report.page_sections import PREDICTIONS, IntervalBar, shown_chance
from linnaeus.report.thumbnails import LARGE, Thumbnail, Thumbnails
from linnaeus.runs.label_predictions import LabelPredictionRow
from linnaeus.runs.reader import RunContents
from linnaeus.text import fraction, probability_percent, typeset_percent

TOGETHER = 24  # labels in the matrix; of more, the most frequent


@dataclass(frozen=True)
class DoubtfulLabel:
    """A label that an image has although it is improbable, or lacks although it is probable."""

    sample: str
    image: Thumbnail | None
    label: str
    probability: str
    true: str  # all labels of the image
    given: str  # all labels that the model gives it


def label_values(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    """The variables of several_labels.html.j2."""
    missing, improbable = doubtful_labels(run)
    images.decode(i for row, _ in (*missing, *improbable) if (i := images.find(row.sample)) is not None)
    chance = run.metrics[run.split].get("map_by_chance")
    return {
        "chance": typeset_percent(chance, 1),
        "label_rows": label_table(run),
        "together": labels_together(run),
        "set_sizes": set_sizes(run),
        "trust": _trust(run),
        "missing": [_shown(run, images, *pair) for pair in missing],
        "improbable": [_shown(run, images, *pair) for pair in improbable],
    }


def label_table(run: RunContents) -> list[dict[str, Any]]:
    """One row per label, the lowest average precision first; empty if the run has no evaluation.json."""
    rows = []
    for values in run.evaluation.get(run.split, {}).get("classes", []):
        row: dict[str, Any] = {key: values[key] for key in ("name", "support", "predicted")}
        row["threshold"] = _cell("threshold", values, absent="never")
        for name in ("average_precision", "roc_auc", "precision", "recall", "f1"):
            row[name] = _cell(name, values)
        rows.append(row)
    return sorted(rows, key=lambda row: (row["support"] == 0, row["average_precision"]["value"], -row["support"]))


def _cell(name: str, values: dict[str, Any], absent: str = "–") -> dict[str, Any]:
    """A figure of a label as text, as a sort key, and for the average precision and F1 as a bar."""
    value, ci95 = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return {"text": absent, "value": -1.0, "interval": "", "bar": None}
    exact = name == "threshold"
    text, *ends = (
        fraction(v, 3) if name == "roc_auc" else typeset_percent(v, 1, exact=exact) for v in (value, *(ci95 or ()))
    )
    interval = " to ".join(ends)
    words = name.replace("_", " ")
    drawn = name in ("average_precision", "f1")
    bar = IntervalBar.of(f"{words} of {values['name']}: {text}, {interval}", value, ci95) if drawn else None
    return {"text": text, "value": round(value, 6), "interval": interval, "bar": bar}


def labels_together(run: RunContents) -> dict[str, Any]:
    """The co-occurrence matrix of all images of the source, with the share of each row's label that has the other."""
    counts = co_occurrence(run.labels)
    support = np.diag(counts)
    shown = np.sort(np.argsort(-support, kind="stable")[:TOGETHER])
    rows = []
    for a in shown.tolist():
        shares = [float(counts[a, b] / support[a]) if support[a] else 0.0 for b in shown.tolist()]
        cells = [
            {"n": int(counts[a, b]), "share": typeset_percent(share), "strength": round(100 * share), "own": a == b}
            for b, share in zip(shown.tolist(), shares, strict=True)
        ]
        rows.append({"name": run.names[a], "n": int(support[a]), "cells": cells})
    return {"rows": rows, "left_out": len(support) - len(shown), "n": len(run.labels)}


def set_sizes(run: RunContents) -> list[tuple[str, int]]:
    """How many images have no label, one label, and so on."""
    counts = np.bincount(run.labels.sum(1))
    words = {0: "no label", 1: "1 label"}
    return [(words.get(k, f"{k} labels"), n) for k, n in enumerate(counts.tolist()) if n]


def doubtful_labels(
    run: RunContents, most: int = PREDICTIONS
) -> tuple[list[tuple[LabelPredictionRow, int]], list[tuple[LabelPredictionRow, int]]]:
    """(image, label) pairs: absent labels that are more probable than not, and labels that are less, the worst first.

    They are mistakes of the model or of the data; the most certain ones are worth a look.
    """
    rows = run.label_predictions[run.split]
    probabilities = np.array([row.probabilities for row in rows])
    labels = np.array([[name in row.true for name in run.model.classes] for row in rows])
    pairs = []
    for doubtful in (np.where(labels, -1.0, probabilities), np.where(labels, 1 - probabilities, -1.0)):
        image, label = np.nonzero(doubtful > 0.5)
        order = np.argsort(-doubtful[image, label], kind="stable")[:most]
        pairs.append([(rows[i], int(k)) for i, k in zip(image[order].tolist(), label[order].tolist(), strict=True)])
    return pairs[0], pairs[1]


def _shown(run: RunContents, images: Thumbnails, row: LabelPredictionRow, label: int) -> DoubtfulLabel:
    return DoubtfulLabel(
        row.sample,
        images.image(images.find(row.sample), LARGE),
        run.names[label],
        probability_percent(float(row.probabilities[label]), typeset=True),
        ", ".join(map(run.name_of, row.true)) or "none",
        ", ".join(map(run.name_of, row.predicted)) or "none",
    )


def _trust(run: RunContents) -> dict[str, Any] | None:
    """Calibration of all labels and of each; None if the run has none, or recorded no reliability diagram."""
    evaluation, stored = run.evaluation.get(run.split, {}), run.model.calibration
    if "reliability" not in evaluation or stored is None:
        return None
    effect = run.metrics[run.split]["calibration"]
    n = run.metrics[run.split]["n"]
    calibration = LabelCalibration.from_dict(stored, str(run.path), len(run.names))
    rows = [
        {
            "name": values["name"],
            "scale": f"{values['scale']:.3g}",
            "offset": f"{values['offset']:+.3g}".replace("-", "−"),
            "before": (typeset_percent(values["ece"]["before"], 1), values["ece"]["before"]),
            "after": (typeset_percent(values["ece"]["after"], 1), values["ece"]["after"]),
        }
        for values in evaluation["classes"]
    ]
    return {
        "reliability": reliability(evaluation["reliability"], OF_LABELS),
        "note": unseen_note(effect.get("n", n), n),
        "rows": sorted(rows, key=lambda row: -row["after"][1]),
        "cross_fitted": effect["cross_fitted"],
        "before": typeset_percent(effect["before"]["ece"], 1),
        "after": typeset_percent(effect["after"]["ece"], 1),
        "images": counted(effect.get("n", n), "image"),
        "chance": shown_chance(effect.get("ece_by_chance")),
        "thresholds": calibration.lines(run.names),
    }
