"""The text output of `linnaeus evaluate`: metrics as lines and tables."""

from __future__ import annotations

from collections.abc import Sequence

from linnaeus.console import counted
from linnaeus.metrics.assessment import Abstention, Assessment, CalibrationEffect, MeasuredPoint, ViewsEffect
from linnaeus.metrics.calibration import chance_words
from linnaeus.metrics.classification import ClassMetrics, Metrics, most_confused, no_better_than_one_class
from linnaeus.metrics.intervals import Estimate
from linnaeus.metrics.label_assessment import LabelAssessment
from linnaeus.metrics.slices import Slice
from linnaeus.metrics.temperature import calibration_failure
from linnaeus.text import align, percent, percent_range, shorten

ALL_CLASSES = 20  # up to this many classes are all shown; of more, the worst
WORST = 10
PAIRS = 10
NAME = 24  # terminal columns of a class name
PERCENT = ("accuracy", "top5", "balanced_accuracy", "macro_precision", "macro_f1", "ece", "ece_equal_mass")
LABELS = {
    "accuracy": "accuracy",
    "top5": "top-5 accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_f1": "macro F1",
    "macro_roc_auc": "macro ROC AUC",
    "macro_average_precision": "macro average precision",
    "loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "ece_equal_mass": "  with bins of equal mass",
}
"""Metric -> its name in texts and on the page, in the order in which they are shown."""


def render(assessment: Assessment, names: Sequence[str], verdicts: Sequence[str] = ()) -> str:
    """The whole assessment; `names` are the display names of the classes, `verdicts` the lines of `Verdicts`."""
    metrics, effect = assessment.metrics, assessment.calibration
    note = unseen_note(effect.n, metrics.n)
    blocks = [
        [*summary(metrics), *in_sample(effect.stored and effect.cross_fitted)],
        [f"{verdicts[0]}{note}", *verdicts[1:]] if verdicts else [],
        classes(metrics, names),
        confused(metrics, names),
        calibration(effect, note),
        abstention(assessment.abstention, note),
        views(assessment),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def summary(metrics: Metrics) -> list[str]:
    """One line per metric: value, 95 % interval, count."""
    rows = [["", "", "95 % interval", ""]]
    groups = "" if metrics.groups is None else f", in {metrics.groups} groups"
    counts = {"accuracy": f"{metrics.correct} of {metrics.n}{groups}"}
    top5 = metrics["top5"].value
    if top5 is not None:
        counts["top5"] = f"{round(top5 * metrics.n)} of {metrics.n}"
    for name, label in LABELS.items():
        if metrics[name].value is not None:
            rows.append([label, *_with_interval(metrics[name], as_percent=name in PERCENT), counts.get(name, "")])
    no_better = no_better_than_one_class(metrics.to_dict())
    return [*align(rows, "<>><"), *([f"this accuracy is {no_better}"] if no_better else [])]


def in_sample(cross_fitted: bool) -> list[str]:
    """What to know of the figures of probabilities where the images fitted the calibration themselves."""
    if not cross_fitted:
        return []
    return ["these images fitted the calibration: log loss and calibration error are optimistic here, and not below"]


def classes(metrics: Metrics, names: Sequence[str]) -> list[str]:
    """One line per class that occurs, the lowest F1 first; of many classes, only the worst."""
    occurring = [row for row in metrics.classes if row.support]
    ordered = sorted(occurring, key=lambda row: (row["f1"].value or 0.0, -row.support))
    shown = ordered if len(ordered) <= ALL_CLASSES else ordered[:WORST]
    title = f"classes, the worst first{'' if shown is ordered else f' ({WORST} of {len(ordered)}; all with --json)'}"
    absent = len(metrics.classes) - len(occurring)
    if absent:
        title += f"; {absent} of the model's classes {'does' if absent == 1 else 'do'} not occur"
    head = ["", "n", "correct", "recall", "95 % interval", "precision", "95 % interval", "F1", "ROC AUC", "avg. prec."]
    return [title, *align([head, *(_class_row(row, names) for row in shown)], "<>>>>>>>>>")]


def _class_row(row: ClassMetrics, names: Sequence[str]) -> list[str]:
    return [
        shorten(names[row.index], NAME),
        str(row.support),
        str(row.correct),
        *_with_interval(row["recall"], as_percent=True, digits=1),
        *_with_interval(row["precision"], as_percent=True, digits=1),
        _format(row["f1"].value, as_percent=True, digits=1),
        _format(row["roc_auc"].value, as_percent=False),
        _format(row["average_precision"].value, as_percent=False),
    ]


def confused(metrics: Metrics, names: Sequence[str]) -> list[str]:
    """The pairs of classes that are confused most often."""
    pairs = most_confused(metrics.confusion, PAIRS)
    if not pairs:
        return ["no images were confused with another class"]
    short = [shorten(name, NAME) for name in names]
    rows = [
        [short[true], "taken for", short[predicted], f"{count} of {metrics.classes[true].support}"]
        for true, predicted, count in pairs
    ]
    return ["most often confused", *align(rows, "<<<>")]


def calibration(effect: CalibrationEffect, note: str = "") -> list[str]:
    """Quality of the probabilities before and after temperature scaling; `note` tells of which images."""
    method = "cross-fitted in five folds" if effect.cross_fitted else "fitted on validation"
    title = f"calibration by temperature {effect.temperature:.3g} ({method})"
    if not effect.stored:
        title = f"calibration: none in the model; the effect of a temperature of {effect.temperature:.3g} ({method})"
    rows = [["", "uncalibrated", "calibrated"]]
    for name in ("loss", "brier", "ece", "ece_equal_mass"):
        values = (effect.before[name], effect.after[name])
        rows.append([LABELS[name], *(_format(value, as_percent=name in PERCENT) for value in values)])
    failure = calibration_failure(effect.temperature)
    return [
        f"{title}{note}",
        *([failure] if failure else []),
        *align(rows, "<>>"),
        reference(effect),
    ]


def reference(effect: CalibrationEffect | LabelAssessment) -> str:
    """The calibration error by chance: a finite sample has a positive one even if the probabilities are perfect."""
    mean, p95 = effect.ece_by_chance
    return f"on {counted(effect.n, 'image')}, a perfectly calibrated model would show an ECE of " + chance_words(
        percent(mean, 2), percent(p95, 2), skewed=p95 <= mean
    )


def unseen_note(measured: int, n: int) -> str:
    """Which images were measured, where some of `n` have a copy in an earlier split and are left out."""
    return "" if measured == n else f"; measured on the {measured:,} images without a copy in an earlier split"


def abstention(result: Abstention, note: str = "") -> list[str]:
    """The thresholds, and their effect on these images, of which `note` tells more."""
    n, rule, share = result.n, result.rule, percent(result.rule.target_risk, 0, exact=True)
    source = f"the {rule.n} {result.chosen_on} images of the training run" if result.chosen_on else "these very images"
    if (rule.candidates or 1) > 1:
        source += f", which also chose the best of {rule.candidates} epochs"
    lines = [f"abstention, so that at most {share} of the answers are wrong; thresholds chosen on {source}{note}"]
    if result.unknown:
        lines.append(f"  unknown     {result.unknown} of {n} get no answer, whatever their probability")
    for name, point in (
        ("tested", result.tested),
        ("uncorrected", result.uncorrected),
        ("estimated", result.estimated),
    ):
        if name != "uncorrected" or point is not None:
            lines.append(f"  {name:11} " + (_no_threshold(result, name) if point is None else _effect(point, n)))
    area, excess = result.aurc, result.excess_aurc
    every = " of all images, by their probability alone," if result.unknown else ""
    lines.append(
        f"  area under the risk-coverage curve{every} {area:.4f}, of which {excess:.4f} due to imperfect ranking"
    )
    return lines


def _effect(point: MeasuredPoint, n: int) -> str:
    interval = f"95 % interval {percent_range(point.risk_ci95)}"
    if point.threshold == 0 and point.answered == n:
        return f"all images answered, {point.wrong} of {n} wrong ({percent(point.wrong / n)}, {interval})"
    wrong = ""
    if point.answered:
        wrong = f", {point.wrong} of them wrong ({percent(point.wrong / point.answered)}, {interval})"
    answered = f"{point.answered} of {n} answered ({percent(point.answered / n)})"
    if point.threshold == 0:
        return f"never unsure: {answered}{wrong}"
    return f"unsure below {percent(point.threshold, exact=True)}: {answered}{wrong}"


def _no_threshold(result: Abstention, name: str) -> str:
    if name == "estimated":
        return "none: no threshold is expected to keep wrong answers so few"
    rule = result.rule
    few = (
        f", and there were {rule.n}" if rule.n < rule.required and not (rule.grouped or rule.candidates is None) else ""
    )
    return f"none: {rule.why_not_tested}{few}"


def views(assessment: Assessment) -> list[str]:
    """Test-time augmentation compared with the plain predictions."""
    if not assessment.views:
        return []
    metrics = assessment.metrics
    errors = ["accuracy", "log loss", "Brier", "ECE"]
    rows = [["", *errors, "gained", "lost", "difference", "95 % interval", "p"]]
    plain = [f"{metrics[name].value:.4f}" for name in ("loss", "brier")]
    accuracy, ece = percent(metrics["accuracy"].value, 2), percent(metrics["ece"].value, 2)
    rows.append(["plain", accuracy, *plain, ece, *5 * [""]])
    rows += [_view_row(name, effect) for name, effect in assessment.views.items()]
    title = "test-time augmentation: mean probability of several views, each at the cost of one prediction"
    note = "gained and lost: images that only the views, or only the plain prediction, classify correctly"
    return [title, *align(rows, "<" + 9 * ">"), f"  {note}; p: McNemar's exact test"]


def _view_row(name: str, effect: ViewsEffect) -> list[str]:
    metrics, comparison = effect.metrics, effect.comparison
    return [
        name,
        percent(metrics["accuracy"], 2),
        f"{metrics['loss']:.4f}",
        f"{metrics['brier']:.4f}",
        percent(metrics["ece"], 2),
        str(comparison.only_second),
        str(comparison.only_first),
        percent(comparison.difference, 2, signed=True),
        percent_range(comparison.difference_ci95, signed=True),
        f"{comparison.p:.3g}",
    ]


def slices(column: str, parts: Sequence[Slice]) -> str:
    """One line per value of a column, and which values are significantly worse than the rest."""
    rows = [["", "n", "correct", "accuracy", "95 % interval", "difference", "p"]]
    for part in parts:
        difference = percent(part.difference, signed=True)
        interval = percent_range(part.interval)
        rows.append(
            [
                shorten(part.value, NAME),
                str(part.n),
                str(part.correct),
                percent(part.accuracy),
                interval,
                difference,
                f"{part.p:.2g}",
            ]
        )
    worse = [part.value for part in parts if part.is_worse]
    verdict = (
        f"significantly worse than the other images: {', '.join(worse)}"
        if worse
        else "no value is significantly worse than the other images"
    )
    title = f"by {column}, the lowest accuracy first; difference from all other images, p corrected for {len(parts)}"
    return "\n".join([title, *align(rows, "<>>>>>>"), verdict])


def _with_interval(estimate: Estimate, *, as_percent: bool, digits: int = 2) -> list[str]:
    """Value and interval."""
    interval = ""
    if estimate.ci95 is not None:
        interval = " to ".join(percent(v) if as_percent else f"{v:.4f}" for v in estimate.ci95)
    return [_format(estimate.value, as_percent=as_percent, digits=digits), interval]


def _format(value: float | None, *, as_percent: bool, digits: int = 2) -> str:
    if value is None:
        return "-"
    return percent(value, digits) if as_percent else f"{value:.4f}"
