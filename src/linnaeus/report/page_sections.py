"""The contents of the report's sections: plain values and drawings for the template, limited in number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.check.findings import KINDS, SEVERITIES
from linnaeus.console import counted, duration
from linnaeus.metrics.calibration import chance_words
from linnaeus.metrics.mcnemar import significance
from linnaeus.report import evaluation_text, label_text
from linnaeus.report.thumbnails import Thumbnails
from linnaeus.runs.reader import RunContents
from linnaeus.text import fraction, typeset_percent

CLASS_IMAGES, PER_CLASS = 320, 6  # images of classes on the page, and of one class
PREDICTIONS = 12  # images in a gallery
FINDINGS, FINDING_IMAGES = 6, 60  # findings shown of each kind; images of all of them
BAD_IMAGES = 20  # unreadable images that are named
LOWER_IS_BETTER = ("loss", "brier", "ece", "hamming_loss")  # metrics without an upper bound of 1: they have no bar
DECIMAL = ("loss", "brier", "macro_roc_auc", "macro_average_precision", "roc_auc", "average_precision")
"""Metrics that are not shown in percent."""
PARTS = {
    "prepare": "Reading and decoding",
    "evaluate": "Final evaluation",
    "pictures": "Plots",  # the key of `plots` in older runs
    "check": "Data check",
    "report": "This report",
}
WORDS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class IntervalBar:
    """A value and its 95 % interval on a horizontal bar 160 units wide; positions in these units."""

    label: str
    value: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, label: str, value: float, ci95: Sequence[float] | None, start: float = 0.0) -> IntervalBar:
        """A bar for values from `start` to 1."""
        at, *ends = (round(5 + 150 * min(max((v - start) / (1 - start), 0.0), 1.0), 1) for v in (value, *(ci95 or ())))
        low, high = ends or (None, None)
        return cls(label, at, low, high)


def metrics(run: RunContents) -> dict[str, Any]:
    """One row per metric, with value and interval for each split that was evaluated."""
    splits = [split for split in ("test", "valid") if split in run.metrics]
    values = {split: run.metrics[split] for split in splits}
    labels = label_text.LABELS if run.several else evaluation_text.LABELS
    bounded = [name for name in labels if name not in (*LOWER_IS_BETTER, "ece_equal_mass")]
    # Runs of earlier versions hold values without intervals.
    bounds = [(of.get(f"{name}_ci95") or [of.get(name)])[0] for of in values.values() for name in bounded]
    lowest = min((bound for bound in bounds if bound is not None), default=0.0)
    # Bars start at a round share below all of them, else good models could not be distinguished.
    start = min(max(math.floor(10 * lowest) / 10, 0.0), 0.9)
    rows = []
    for name, label in labels.items():
        label = label[0].upper() + label[1:]
        cells = [_metric(values[split], name, label, start) for split in splits]
        if name != "ece_equal_mass" and any(cell is not None for cell in cells):
            rows.append({"label": label, "cells": cells})
    heads = [(split, WORDS[split], values[split]["n"]) for split in splits]
    return {
        "rows": rows,
        "splits": heads,
        "start": typeset_percent(start),
        "cross_fitted": _cross_fitted(run.metrics.get("valid", {})),
    }


def _metric(values: dict[str, Any], name: str, label: str, start: float) -> dict[str, Any] | None:
    value, ci95 = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return None
    text, interval = format_metric(name, value), " to ".join(format_metric(name, v) for v in ci95 or ())
    bar = None if name in LOWER_IS_BETTER else IntervalBar.of(f"{label} {text}, {interval}", value, ci95, start)
    return {"value": text, "interval": interval, "bar": bar}


def format_metric(name: str, value: float) -> str:
    """A metric in percent, or a decimal number."""
    if name in ("loss", "brier"):
        return f"{value:.3f}"
    return fraction(value, 3) if name in DECIMAL else typeset_percent(value, 1)


def shown_chance(by_chance: dict[str, float] | None) -> str:
    """The calibration error of a perfectly calibrated model; empty where the run has not recorded it."""
    if by_chance is None:
        return ""
    mean, p95 = (typeset_percent(by_chance[key], 1) for key in ("mean", "p95"))
    return chance_words(mean, p95, skewed=by_chance["p95"] <= by_chance["mean"])


def _cross_fitted(valid: dict[str, Any]) -> str:
    """The figures of validation by a calibration that other images fitted; empty where it was not cross-fitted."""
    effect = valid.get("calibration", {})
    if not effect.get("cross_fitted"):
        return ""
    labels = {"loss": "log loss", "brier": "Brier score", "ece": "calibration error"}
    after = effect["after"]
    return ", ".join(f"{label} {format_metric(name, after[name])}" for name, label in labels.items() if name in after)


def classes_of(run: RunContents, i: int) -> list[int]:
    """The classes of image i of the source that the model has."""
    labels = np.flatnonzero(run.labels[i]).tolist() if run.several else [int(run.labels[i])]
    return [label for label in labels if label >= 0]


def sizes(run: RunContents) -> dict[str, int]:
    """Number of images of each split that is not empty; without several labels, of classes that the model has."""
    if run.several:
        return {split: int((run.splits == split).sum()) for split in run.counts}
    return {split: int(of.sum()) for split, of in run.counts.items()}


def classes(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    """For each class the number of images by split, and some training images."""
    per_class = min(PER_CLASS, CLASS_IMAGES // len(run.names))
    counts = run.counts
    most = max((int(sum(of[i] for of in counts.values())) for i in range(len(run.names))), default=1) or 1
    chosen: list[list[int]] = [[] for _ in run.names]
    if images.table is not None and per_class:
        train = np.flatnonzero(run.splits == "train")
        # Drawn at random with a fixed seed: the first images of a folder are often shots of one series.
        for i in np.random.default_rng(0).permutation(train).tolist():
            for label in classes_of(run, i):
                if len(chosen[label]) < per_class:
                    chosen[label].append(i)
        images.decode(i for of_class in chosen for i in of_class)
    rows = []
    for c, name in enumerate(run.names):
        numbers = [(split, int(of[c])) for split, of in counts.items()]
        shown = [image for i in chosen[c] if (image := images.image(i)) is not None]
        bars = [(split, round(100 * n / most, 2)) for split, n in numbers]
        rows.append({"name": name, "class": run.model.classes[c], "counts": numbers, "bars": bars, "images": shown})
    totals = [(split, WORDS[split], n) for split, n in sizes(run).items()]
    return {"rows": rows, "totals": totals, "per_class": per_class if images.table is not None else 0}


def findings(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    """The findings of the data check by severity and kind, the worst first, and the images that cannot be read."""
    by_kind: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in run.check.findings if run.check else ():
        by_kind.setdefault((finding["severity"], finding["kind"]), []).append(finding)

    def rank(key: tuple[str, str]) -> int:
        return SEVERITIES.index(key[0]) if key[0] in SEVERITIES else len(SEVERITIES)

    groups = []
    # The number of images on the page is limited, so the worst findings take theirs first.
    room = FINDING_IMAGES
    for severity, kind in sorted(by_kind, key=rank):
        shown = []
        for finding in by_kind[severity, kind][:FINDINGS]:
            row = _finding(run, images, finding, with_images=room > 0)
            room -= len(row["images"])
            shown.append(row)
        n, title = len(by_kind[severity, kind]), KINDS.get(kind, kind.replace("-", " "))
        title = title[:1].upper() + title[1:]
        groups.append({"severity": severity, "title": title, "n": n, "shown": shown, "more": n - len(shown)})
    return {
        "checked": run.check is not None,
        "damaged": run.check is not None and bool(run.check.damage),
        "groups": groups,
        "notes": [*run.check.notes, *run.check.damage] if run.check else [],
        "bad": run.bad_images[:BAD_IMAGES],
        "bad_n": len(run.bad_images),
    }


def _finding(run: RunContents, images: Thumbnails, finding: dict[str, Any], *, with_images: bool) -> dict[str, Any]:
    """A finding with its first two images, or with its classes if it is about no images."""
    pairs = [(name, images.image(images.find(name))) for name in finding["paths"][:2] if with_images]
    names = [run.name_of(label) if label in run.class_index else label for label in finding["classes"]]
    subject = "" if finding["paths"] else ", ".join(names)
    return {
        "images": [(name, image) for name, image in pairs if image is not None],
        "paths": finding["paths"][:4],
        "detail": ": ".join(part for part in (subject, finding["detail"]) if part),
    }


def times(run: RunContents) -> dict[str, Any]:
    """Seconds by part of the run, in order, and the time that was assigned to no part."""
    seconds = dict(run.metrics.get("seconds", {}))
    # Runs of earlier versions hold no total.
    total = float(seconds.pop("total", 0.0)) or sum(seconds.values()) or 1.0
    other = total - sum(seconds.values())
    # Below one percent it is rounding, not a part of its own.
    if other > 0.01 * total:
        seconds["other"] = other
    rows = [
        {
            "name": PARTS.get(name, name.capitalize()),
            "duration": duration(value),
            "share": typeset_percent(value / total),
            "grow": round(1000 * value / total, 2),
        }
        for name, value in seconds.items()
    ]
    return {"rows": rows, "total": duration(total)}


def facts(run: RunContents) -> list[tuple[str, str]]:
    """Data, network, hardware and time of the run: ten facts, which fill two or five columns."""
    model, selection = run.model, run.selection
    p = model.preprocessing
    source = run.metrics.get("source") or {}
    after = duration(float((run.metrics.get("seconds") or {}).get("total", 0))).replace(" ", "\u00a0")
    rows: Sequence[tuple[str, object]] = [
        ("Source", source.get("path") or model.data.get("kind")),
        ("Images", ", ".join(f"{n:,} {WORDS[split]}" for split, n in sizes(run).items() if n)),
        ("Labels" if run.several else "Classes", len(run.names)),
        ("Recipe", model.recipe.get("name")),
        ("Network", model.arch["name"]),
        ("Weights", (model.recipe.get("model") or {}).get("weights")),
        ("Preprocessing", f"{p.brief()}, {'gray' if p.channels == 1 else 'color'}"),
        (selection.title, str(selection) if run.metrics.get("best") else None),
        ("Hardware", _hardware(run)),
        ("Finished", f"{run.finished:%Y-%m-%d %H:%M}, after {after}"),
    ]
    return [(label, str(value)) for label, value in rows if value not in (None, "")]


def _hardware(run: RunContents) -> str:
    """The processor or GPU, and the precisions that the phases were trained in."""
    hardware = run.metrics.get("hardware") or {}
    precisions = dict.fromkeys((run.metrics.get("precision") or {}).values())
    return ", ".join(filter(None, [hardware.get("gpu") or hardware.get("processor"), *precisions]))


def phases(run: RunContents) -> list[str]:
    """What each phase of the recipe trained, and how."""
    lines = []
    for phase in run.model.recipe.get("phase", []):
        stages = "all stages" if phase.get("train") == ["all"] else ", ".join(map(str, phase.get("train", [])))
        if phase.get("head") == "auto":
            lines.append(f"{stages}: linear probe on the frozen network")
            continue
        lr, epochs = phase.get("lr"), counted(int(str(phase.get("epochs"))), "epoch")
        rate = f"{lr:g}" if isinstance(lr, float) else lr
        lines.append(
            f"{stages}: {epochs}, batch size {phase.get('batch')}, {phase.get('optimizer')}, learning rate {rate}"
        )
    return lines


def changes_section(run: RunContents) -> dict[str, Any] | None:
    """The variables of the section: the changes, and the accuracies before and after on the same images.

    None for a run that was trained from its source.
    """
    if not run.changes:
        return None
    tests = []
    for split, test in run.changes.get("before_after", {}).items():
        low, high = (typeset_percent(value, 1) for value in test["difference_ci95"])
        accuracies = {key: typeset_percent(test.get(key), 1) for key in ("before", "after")}
        verdict = significance(test["p"])
        interval, p = f"{low} to {high}", f"{test['p']:.3g}"
        tests.append(
            {"word": WORDS[split], "n": test["n"], "interval": interval, "p": p, "verdict": verdict} | accuracies
        )
    return {"old": run.changes.get("from"), "lines": run.changes.get("changes", []), "tests": tests}
