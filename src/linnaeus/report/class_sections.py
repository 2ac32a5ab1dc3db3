"""The sections of the report on classes, confusions, trust and mistakes: of a run with one label per image."""

from __future__ import annotations

from typing import Any

import numpy as np

from linnaeus.console import counted
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.classification import most_confused
from linnaeus.report.calibration import reliability, risk_coverage
from linnaeus.report.confusion import confusion_chart
from linnaeus.report.page_sections import DECIMAL, PREDICTIONS, IntervalBar, format_metric, shown_chance
from linnaeus.report.shown_prediction import ShownPrediction, shown_prediction
from linnaeus.report.thumbnails import LARGE, Thumbnail, Thumbnails
from linnaeus.report.unknown import unknown_section
from linnaeus.runs.reader import RunContents
from linnaeus.text import typeset_percent

PAIRS, EXAMPLES = 10, 3  # pairs of confused classes, and images of each
PAIRS_BESIDE = 6  # pairs that fit beside a small matrix


def class_values(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    """The variables of one_label.html.j2."""
    wrong, unsure = mistakes(run, images)
    matrix = confusion_chart(run.confusion, run.names)
    return {
        "threshold": run.threshold,
        "class_rows": class_table(run),
        "matrix": matrix,
        "pairs": confused(run, images, PAIRS if matrix.clustered else PAIRS_BESIDE),
        "trust": _trust(run),
        "unknown": unknown_section(run, images),
        "mistakes": wrong,
        "least_confident": unsure,
        "has_heat_maps": any(prediction.heat_map for prediction in wrong),
    }


def class_table(run: RunContents) -> list[dict[str, Any]]:
    """One row per class, the lowest F1 first; empty if the run has no evaluation.json."""
    rows = []
    for values in run.evaluation.get(run.split, {}).get("classes", []):
        row: dict[str, Any] = {"name": values["name"], "support": values["support"], "correct": values["correct"]}
        for name in ("recall", "precision", "f1", "roc_auc", "average_precision"):
            value, ci95 = values[name], values.get(f"{name}_ci95")
            text = "–" if value is None else format_metric(name, value)
            interval = " to ".join(typeset_percent(v) for v in ci95) if ci95 and name not in DECIMAL else ""
            bar = None
            if name in ("recall", "precision") and value is not None:
                bar = IntervalBar.of(f"{name} of {values['name']}: {text}, {interval}", value, ci95)
            # Rounded as shown, so that equal texts keep the order of the support.
            sort_key = -1.0 if value is None else round(value, 6)
            row[name] = {"text": text, "value": sort_key, "interval": interval, "bar": bar}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["support"] == 0, row["f1"]["value"], -row["support"]))


def confused(run: RunContents, images: Thumbnails, most: int = PAIRS) -> list[dict[str, Any]]:
    """The most confused pairs, with images of the mistakes and of the class that was predicted instead."""
    rows = []
    for true, predicted, count in most_confused(run.confusion, most):
        labels = run.model.classes[true], run.model.classes[predicted]
        mistakes = [row for row in run.predictions[run.split] if (row.true, row.predicted) == labels]
        # Confident mistakes come first: they are the ones that a user can learn from.
        mistakes.sort(key=lambda row: -row.probability)
        typical: list[Thumbnail] = []
        if images.table is not None:
            of_class = np.flatnonzero((run.labels == predicted) & (run.splits == "train"))
            sample = np.random.default_rng(0).permutation(of_class)[:EXAMPLES].tolist()
            images.decode(sample)
            typical = [image for i in sample if (image := images.image(i)) is not None]
        rows.append(
            {
                "true": run.names[true],
                "predicted": run.names[predicted],
                "n": count,
                "of": int(run.confusion[true].sum()),
                "examples": [shown_prediction(run, images, row, side=LARGE // 2) for row in mistakes[:EXAMPLES]],
                "typical": typical,
            }
        )
    return rows


def mistakes(run: RunContents, images: Thumbnails) -> tuple[list[ShownPrediction], list[ShownPrediction]]:
    """The most confident mistakes with heat maps, and the least confident correct predictions."""
    rows = run.predictions[run.split]
    wrong = sorted((row for row in rows if not row.correct), key=lambda row: -row.probability)[:PREDICTIONS]
    right = sorted((row for row in rows if row.correct), key=lambda row: row.probability)[:PREDICTIONS]
    images.decode(i for row in (*wrong, *right) if (i := images.find(row.sample)) is not None)
    targets = {i: run.class_index[row.predicted] for row in wrong if (i := images.find(row.sample)) is not None}
    maps = images.heat_maps(targets)
    return [shown_prediction(run, images, row, heat_maps=maps) for row in wrong], [
        shown_prediction(run, images, row) for row in right
    ]


def _trust(run: RunContents) -> dict[str, Any] | None:
    """Calibration and abstention; None if the run has no evaluation.json or no calibration."""
    evaluation, stored = run.evaluation.get(run.split), run.model.calibration
    if not evaluation or stored is None:
        return None
    rule = Calibration.from_dict(stored, str(run.path)).rule
    effect = run.metrics[run.split]["calibration"]
    by_chance = effect.get("ece_by_chance") or run.metrics[run.split]["ece_by_chance"]  # of earlier versions
    n, of = effect.get("n", run.metrics[run.split]["n"]), run.metrics[run.split]["n"]
    return {
        "reliability": reliability(evaluation["reliability"]),
        "risk": risk_coverage(evaluation["risk_coverage"], rule.target_risk, rule.threshold),
        "temperature": f"{effect['temperature']:.3g}",
        "cross_fitted": effect["cross_fitted"],
        "losses": [f"{effect[when]['loss']:.3f}" for when in ("before", "after")],
        "before": typeset_percent(effect["before"]["ece"], 1),
        "after": typeset_percent(effect["after"]["ece"], 1),
        "images": counted(n, "image") + " without a copy in an earlier split" * (n < of),
        "chance": shown_chance(by_chance),
        "rule": str(rule).replace("never: ", "never, because ", 1),
        "notice": rule.notice,
    }
