"""The text output of `linnaeus evaluate` for a model that gives images several labels."""

from __future__ import annotations

from collections.abc import Sequence

from linnaeus.metrics.classification import ClassMetrics
from linnaeus.metrics.intervals import Estimate
from linnaeus.metrics.label_assessment import LabelAssessment
from linnaeus.metrics.label_calibration import NEVER
from linnaeus.report.evaluation_text import in_sample, reference, unseen_note
from linnaeus.text import align, percent, shorten

ALL_LABELS = 30  # up to this many labels are all shown; of more, the worst
WORST = 15
NAME = 24  # terminal columns of a label's name
LABELS = {
    "map": "mean average precision (mAP)",
    "micro_average_precision": "micro average precision",
    "macro_roc_auc": "macro ROC AUC",
    "macro_precision": "macro precision",
    "macro_recall": "macro recall",
    "macro_f1": "macro F1",
    "micro_precision": "micro precision",
    "micro_recall": "micro recall",
    "micro_f1": "micro F1",
    "subset_accuracy": "all labels right",
    "hamming_loss": "wrong decisions (Hamming)",
    "loss": "log loss, summed",
    "ece": "calibration error (ECE)",
}
"""Metric -> its name in texts and on the page, in the order in which they are shown."""
IN_NATS = ("loss",)


def render(assessment: LabelAssessment, names: Sequence[str]) -> str:
    """The whole assessment; `names` are the display names of the classes."""
    blocks = [summary(assessment), labels(assessment, names), calibration(assessment, names)]
    return "\n\n".join("\n".join(block) for block in blocks)


def summary(assessment: LabelAssessment) -> list[str]:
    """One line per metric: value, 95 % interval, count."""
    metrics = assessment.metrics
    groups = "" if metrics.groups is None else f", in {metrics.groups} groups"
    counts = {
        "map": f"{percent(assessment.chance)} by chance",
        "subset_accuracy": f"{metrics.correct} of {metrics.n}{groups}",
        "hamming_loss": f"of {metrics.n * len(metrics.labels)}",
    }
    rows = [["", "", "95 % interval", ""]]
    for name, label in LABELS.items():
        if metrics[name].value is not None:
            rows.append([label, *_with_interval(metrics[name], name not in IN_NATS), counts.get(name, "")])
    return [*align(rows, "<>><"), *in_sample(assessment.cross_fitted)]


def labels(assessment: LabelAssessment, names: Sequence[str]) -> list[str]:
    """One line per label, the lowest average precision first; of many labels, only the worst."""
    metrics, thresholds = assessment.metrics, assessment.calibration.thresholds
    ordered = sorted(metrics.labels, key=lambda row: (row["average_precision"].value or 0.0, -row.support))
    shown = ordered if len(ordered) <= ALL_LABELS else ordered[:WORST]
    title = f"labels, the worst first{'' if shown is ordered else f' ({WORST} of {len(ordered)}; all with --json)'}"
    absent = sum(row.support == 0 for row in metrics.labels)
    if absent:
        title += f"; {absent} of the model's labels do not occur"
    head = [
        "",
        "n",
        "avg. prec.",
        "95 % interval",
        "ROC AUC",
        "precision",
        "recall",
        "F1",
        "95 % interval",
        "threshold",
    ]
    return [title, *align([head, *(_row(row, names, float(thresholds[row.index])) for row in shown)], "<>>>>>>>>>")]


def _row(row: ClassMetrics, names: Sequence[str], threshold: float) -> list[str]:
    return [
        shorten(names[row.index], NAME),
        str(row.support),
        *_with_interval(row["average_precision"]),
        *(percent(row[name].value) for name in ("roc_auc", "precision", "recall")),
        *_with_interval(row["f1"]),
        "never" if threshold >= NEVER else percent(threshold, exact=True),
    ]


def calibration(assessment: LabelAssessment, names: Sequence[str]) -> list[str]:
    """Quality of the probabilities before and after calibration, and how the thresholds were chosen."""
    method = "cross-fitted in five folds" if assessment.cross_fitted else "fitted on validation"
    note = unseen_note(assessment.n, assessment.metrics.n)
    before, after = assessment.before, assessment.after
    rows = [
        ["", "uncalibrated", "calibrated"],
        ["log loss, summed", f"{before['loss']:.4f}", f"{after['loss']:.4f}"],
        ["calibration error (ECE)", percent(before["ece"], 2), percent(after["ece"], 2)],
    ]
    title = f"calibration and thresholds of each label ({method}){note}"
    thresholds = [f"thresholds: {line}" for line in assessment.calibration.lines(names)]
    return [title, *align(rows, "<>>"), reference(assessment), *thresholds]


def _with_interval(estimate: Estimate, as_percent: bool = True) -> list[str]:
    """[value, interval]"""

    def text(value: float | None) -> str:
        return percent(value) if as_percent else "–" if value is None else f"{value:.4f}"

    low_high = "" if estimate.ci95 is None else f"{text(estimate.ci95[0])} to {text(estimate.ci95[1])}"
    return [text(estimate.value), low_high]
