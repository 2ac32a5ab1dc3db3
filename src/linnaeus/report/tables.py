"""What `linnaeus evaluate` prints: figures as lines and tables of plain text."""

from __future__ import annotations

from collections.abc import Sequence

from linnaeus.metrics.assessment import Abstention, Assessment, CalibrationEffect, MeasuredPoint, ViewsEffect
from linnaeus.metrics.calibration import calibration_failure
from linnaeus.metrics.classification import ClassMetrics, Estimate, Metrics, most_confused
from linnaeus.metrics.selective import required_samples
from linnaeus.text import align, shorten

ALL_CLASSES = 20  # so many classes are all shown; of more, the worst
WORST = 10
PAIRS = 10
NAME = 24  # columns of a class name
PERCENT = ("accuracy", "top5", "balanced_accuracy", "macro_precision", "macro_f1", "ece", "ece_equal_mass")
LABELS = {
    "accuracy": "accuracy",
    "top5": "top-5",
    "balanced_accuracy": "balanced accuracy",
    "macro_precision": "macro precision",
    "macro_f1": "macro F1",
    "macro_roc_auc": "macro ROC AUC",
    "macro_average_precision": "macro average precision",
    "loss": "log loss",
    "brier": "Brier score",
    "ece": "calibration error (ECE)",
    "ece_equal_mass": "  in bins of equal mass",
}


def render(found: Assessment, names: Sequence[str]) -> str:
    """The whole assessment, in the order in which it is read."""
    blocks = [
        summary(found.metrics),
        classes(found.metrics, names),
        confused(found.metrics, names),
        calibration(found.calibration, found.metrics),
        abstention(found.abstention, found.metrics.n),
        views(found),
    ]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def summary(m: Metrics) -> list[str]:
    """A line a figure: value, 95 % interval, count."""
    rows = [["", "", "95 % interval", ""]]
    groups = "" if m.groups is None else f", in {m.groups} groups"
    counts = {"accuracy": f"{m.correct} of {m.n}{groups}"}
    if m["top5"].value is not None:
        counts["top5"] = f"{round(m['top5'].value * m.n)} of {m.n}"
    for name, label in LABELS.items():
        if m[name].value is not None:
            rows.append([label, *_figure(m[name], percent=name in PERCENT), counts.get(name, "")])
    return align(rows, "<>><")


def classes(m: Metrics, names: Sequence[str]) -> list[str]:
    """A line a class that occurs; of many, the worst by F1."""
    occurring = [each for each in m.classes if each.support]
    ordered = sorted(occurring, key=lambda each: (each.f1.value or 0.0, -each.support))
    shown = ordered if len(ordered) <= ALL_CLASSES else ordered[:WORST]
    head = f"classes, the worst first{'' if shown is ordered else f' ({WORST} of {len(ordered)}; all with --json)'}"
    absent = len(m.classes) - len(occurring)
    if absent:
        head += f"; {absent} of the model's do not occur"
    rows = [["", "n", "found", "recall", "95 % interval", "precision", "95 % interval", "F1", "ROC AUC", "avg. prec."]]
    return [head, *align(rows + [_class_row(each, names) for each in shown], "<>>>>>>>>>")]


def _class_row(each: ClassMetrics, names: Sequence[str]) -> list[str]:
    return [
        shorten(names[each.index], NAME),
        str(each.support),
        str(each.correct),
        *_figure(each.recall, percent=True, digits=1),
        *_figure(each.precision, percent=True, digits=1),
        _value(each.f1.value, percent=True, digits=1),
        _value(each.roc_auc.value, percent=False),
        _value(each.average_precision.value, percent=False),
    ]


def confused(m: Metrics, names: Sequence[str]) -> list[str]:
    """The pairs most often confused."""
    pairs = most_confused(m.confusion, PAIRS)
    if not pairs:
        return ["no image was taken for another class"]
    short = [shorten(name, NAME) for name in names]
    rows = [
        [short[true], "taken for", short[predicted], f"{count} of {m.classes[true].support}"]
        for true, predicted, count in pairs
    ]
    return ["most often confused", *align(rows, "<<<>")]


def calibration(found: CalibrationEffect, m: Metrics) -> list[str]:
    """Probabilities before and after the temperature."""
    how = "each fifth of the images by the others" if found.cross_fitted else "fitted on validation"
    title = f"calibration by temperature {found.temperature:.3g} ({how})"
    if not found.stored:
        title = f"calibration: the model has none; a temperature of {found.temperature:.3g} would do this ({how})"
    rows = [["", "uncalibrated", "calibrated"]]
    for name in ("loss", "brier", "ece", "ece_equal_mass"):
        both = (found.before[name], found.after[name])
        rows.append([LABELS[name], *(_value(value, percent=name in PERCENT) for value in both)])
    mean, most = m.ece_by_chance
    failed = calibration_failure(found.temperature)
    return [
        title,
        *([failed] if failed else []),
        *align(rows, "<>>"),
        f"by chance alone a perfect model would show an ECE of {mean:.2%} on {m.n} images on average"
        + (f", up to {most:.2%} in 95 of 100 draws" if most > mean else ""),
    ]


def abstention(found: Abstention, n: int) -> list[str]:
    """The thresholds, and what they do here."""
    rule, share = found.rule, f"{100 * found.rule.target_risk:.3g} %"
    chose = f"the {rule.n} {found.chosen_on} images of the training" if found.chosen_on else "these very images"
    lines = [f"abstention, for at most {share} wrong among the answered; thresholds chosen on {chose}"]
    for name, here in (("guaranteed", found.guaranteed), ("estimated", found.estimated)):
        lines.append(f"  {name:10} " + (_none(found, name) if here is None else _effect(here, n)))
    area, excess = found.aurc, found.excess_aurc
    lines.append(f"  area under the risk-coverage curve {area:.4f}, of which {excess:.4f} by imperfect order")
    return lines


def _effect(here: MeasuredPoint, n: int) -> str:
    if here.threshold == 0:
        return f"everything answered, {here.wrong} of {n} wrong ({here.wrong / n:.1%})"
    wrong = f", {here.wrong} of them wrong ({here.wrong / here.answered:.1%})" if here.answered else ""
    return f"unsure below {here.threshold:.1%}: {here.answered} of {n} answered ({here.answered / n:.1%}){wrong}"


def _none(found: Abstention, name: str) -> str:
    if name == "estimated":
        return "none: even the surest answers are wrong more often"
    rule = found.rule
    few = f", and there were {rule.n}" if rule.n < required_samples(rule.target_risk) and not rule.grouped else ""
    return f"none: {rule.no_guarantee_reason}{few}"


def views(found: Assessment) -> list[str]:
    """Test-time augmentation, side by side with the plain answers."""
    if not found.views:
        return []
    m = found.metrics
    head = ["accuracy", "log loss", "Brier", "ECE", "only so right", "only plain", "difference", "95 % interval", "p"]
    rows = [["", *head]]
    plain = [f"{m[name].value:.4f}" for name in ("loss", "brier")]
    rows.append(["plain", f"{m['accuracy'].value:.2%}", *plain, f"{m['ece'].value:.2%}", "", "", "", "", ""])
    rows += [_view_row(name, each) for name, each in found.views.items()]
    title = (
        "test-time augmentation: mean probability of several views, each at the cost of one (p: McNemar's exact test)"
    )
    return [title, *align(rows, "<" + 9 * ">")]


def _view_row(name: str, each: ViewsEffect) -> list[str]:
    low, high = each.comparison.difference_ci95
    f = each.metrics
    return [
        name, f"{f['accuracy']:.2%}", f"{f['loss']:.4f}", f"{f['brier']:.4f}", f"{f['ece']:.2%}",
        str(each.comparison.only_second), str(each.comparison.only_first), f"{each.comparison.difference:+.2%}",
        f"{low:+.1%} to {high:+.1%}", f"{each.comparison.p:.3g}",
    ]  # fmt: skip


def _figure(estimate: Estimate, *, percent: bool, digits: int = 2) -> list[str]:
    """Value and interval."""
    interval = ""
    if estimate.ci95 is not None:
        interval = " to ".join(f"{v:.1%}" if percent else f"{v:.4f}" for v in estimate.ci95)
    return [_value(estimate.value, percent=percent, digits=digits), interval]


def _value(value: float | None, *, percent: bool, digits: int = 2) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}%}" if percent else f"{value:.4f}"
