"""The contents of the report's sections: plain values and drawings for the template, limited in number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.check.findings import KINDS, SEVERITIES
from linnaeus.console import counted, duration
from linnaeus.metrics.classification import most_confused
from linnaeus.metrics.selective import is_unsure
from linnaeus.report.evaluation_text import LABELS
from linnaeus.report.thumbnails import LARGE, Thumbnail, Thumbnails
from linnaeus.runs.predictions import PredictionRow
from linnaeus.runs.reader import RunContents
from linnaeus.text import typeset_percent

CLASS_IMAGES, PER_CLASS = 320, 6  # images of classes on the page, and of one class
PAIRS, EXAMPLES = 10, 3  # pairs of confused classes, and images of each
PAIRS_BESIDE = 6  # pairs that fit beside a small matrix
PREDICTIONS = 12  # mistakes shown, and correct predictions shown
FINDINGS, FINDING_IMAGES = 6, 60  # findings shown of each kind; images of all of them
BAD_IMAGES = 20  # unreadable images that are named
METRICS = {name: label[0].upper() + label[1:] for name, label in LABELS.items() if name != "ece_equal_mass"}
LOWER_IS_BETTER = ("loss", "brier", "ece")
"""Metrics without an upper bound of 1: they have no bar."""
DECIMAL = ("loss", "brier", "macro_roc_auc", "macro_average_precision", "roc_auc", "average_precision")
"""Metrics that are not shown in percent."""
PARTS = {
    "prepare": "Reading and decoding",
    "evaluate": "Final evaluation",
    "pictures": "Plots",
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


@dataclass(frozen=True)
class ShownPrediction:
    """An image with its prediction and its true class."""

    sample: str
    image: Thumbnail | None
    heat_map: Thumbnail | None
    predicted: str
    true: str
    probability: str
    probability_of_true: str
    correct: bool
    unsure: bool


def metrics(run: RunContents) -> dict[str, Any]:
    """One row per metric, with value and interval for each split that was evaluated."""
    splits = [split for split in ("test", "valid") if split in run.metrics]
    values = {split: run.metrics[split] for split in splits}
    bounded = [name for name in METRICS if name not in LOWER_IS_BETTER]
    bounds = [(of.get(f"{name}_ci95") or [of.get(name)])[0] for of in values.values() for name in bounded]
    lowest = min((bound for bound in bounds if bound is not None), default=0.0)
    start = min(max(math.floor(10 * lowest) / 10, 0.0), 0.9)
    rows = []
    for name, label in METRICS.items():
        cells = [_metric(values[split], name, label, start) for split in splits]
        if any(cell is not None for cell in cells):
            rows.append({"label": label, "cells": cells})
    heads = [(split, WORDS[split], values[split]["n"]) for split in splits]
    return {"rows": rows, "splits": heads, "start": typeset_percent(start)}


def _metric(values: dict[str, Any], name: str, label: str, start: float) -> dict[str, Any] | None:
    value, ci95 = values.get(name), values.get(f"{name}_ci95")
    if value is None:
        return None
    text, interval = _format(name, value), " to ".join(_format(name, v) for v in ci95 or ())
    bar = None if name in LOWER_IS_BETTER else IntervalBar.of(f"{label} {text}, {interval}", value, ci95, start)
    return {"value": text, "interval": interval, "bar": bar}


def _format(name: str, value: float) -> str:
    return f"{value:.3f}" if name in DECIMAL else typeset_percent(value, 1)


def classes(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    """For each class the number of images by split, and some training images."""
    per_class = min(PER_CLASS, CLASS_IMAGES // len(run.names))
    counts = run.counts
    most = max((int(sum(of[i] for of in counts.values())) for i in range(len(run.names))), default=1) or 1
    chosen: list[list[int]] = [[] for _ in run.names]
    if images.table is not None and per_class:
        train = np.flatnonzero(run.splits == "train")
        for i in np.random.default_rng(0).permutation(train).tolist():
            if run.labels[i] >= 0 and len(chosen[run.labels[i]]) < per_class:
                chosen[run.labels[i]].append(i)
        images.decode(i for of_class in chosen for i in of_class)
    rows = []
    for c, name in enumerate(run.names):
        numbers = [(split, int(of[c])) for split, of in counts.items()]
        shown = [image for i in chosen[c] if (image := images.image(i)) is not None]
        bars = [(split, round(100 * n / most, 2)) for split, n in numbers]
        rows.append({"name": name, "class": run.model.classes[c], "counts": numbers, "bars": bars, "images": shown})
    totals = [(split, WORDS[split], int(of.sum())) for split, of in counts.items()]
    return {"rows": rows, "totals": totals, "per_class": per_class if images.table is not None else 0}


def findings(run: RunContents, images: Thumbnails) -> dict[str, Any]:
    """The findings of the data check by severity and kind, the worst first, and the images that cannot be read."""
    by_kind: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in run.check.findings if run.check else ():
        by_kind.setdefault((finding["severity"], finding["kind"]), []).append(finding)

    def rank(key: tuple[str, str]) -> int:
        return SEVERITIES.index(key[0]) if key[0] in SEVERITIES else len(SEVERITIES)

    groups = []
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
        "groups": groups,
        "notes": run.check.notes if run.check else [],
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


def class_table(run: RunContents) -> list[dict[str, Any]]:
    """One row per class, the lowest F1 first; empty if the run has no evaluation.json."""
    rows = []
    for values in run.evaluation.get(run.split, {}).get("classes", []):
        row: dict[str, Any] = {"name": values["name"], "support": values["support"], "correct": values["correct"]}
        for name in ("recall", "precision", "f1", "roc_auc", "average_precision"):
            value, ci95 = values[name], values.get(f"{name}_ci95")
            text = "–" if value is None else _format(name, value)
            interval = " to ".join(typeset_percent(v) for v in ci95) if ci95 and name not in DECIMAL else ""
            bar = None
            if name in ("recall", "precision") and value is not None:
                bar = IntervalBar.of(f"{name} of {values['name']}: {text}, {interval}", value, ci95)
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


def shown_prediction(
    run: RunContents, images: Thumbnails, row: PredictionRow, *, heat_map: bool = False, side: int = LARGE
) -> ShownPrediction:
    i = images.find(row.sample)
    return ShownPrediction(
        sample=row.sample,
        image=images.image(i, side),
        heat_map=images.heat_map(i) if heat_map else None,
        predicted=run.name_of(row.predicted),
        true=run.name_of(row.true),
        probability=typeset_percent(row.probability, 1),
        probability_of_true=typeset_percent(row.probability_of_true, 1),
        correct=row.correct,
        unsure=is_unsure(row.probability, run.threshold),
    )


def mistakes(run: RunContents, images: Thumbnails) -> tuple[list[ShownPrediction], list[ShownPrediction]]:
    """The most confident mistakes with heat maps, and the least confident correct predictions."""
    rows = run.predictions[run.split]
    wrong = sorted((row for row in rows if not row.correct), key=lambda row: -row.probability)[:PREDICTIONS]
    right = sorted((row for row in rows if row.correct), key=lambda row: row.probability)[:PREDICTIONS]
    images.decode(i for row in (*wrong, *right) if (i := images.find(row.sample)) is not None)
    with_heat_maps = [shown_prediction(run, images, row, heat_map=True) for row in wrong]
    return with_heat_maps, [shown_prediction(run, images, row) for row in right]


def times(run: RunContents) -> dict[str, Any]:
    """Seconds by part of the run, in order, and the time that was assigned to no part."""
    seconds = dict(run.metrics.get("seconds", {}))
    total = float(seconds.pop("total", 0.0)) or sum(seconds.values()) or 1.0
    other = total - sum(seconds.values())
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
    model, best = run.model, run.metrics.get("best") or {}
    p = model.preprocessing
    source = run.metrics.get("source") or {}
    counts = ((split, int(of.sum())) for split, of in run.counts.items())
    seconds = float((run.metrics.get("seconds") or {}).get("total", 0))
    rows: Sequence[tuple[str, object]] = [
        ("Source", source.get("path") or model.data.get("kind")),
        ("Images", ", ".join(f"{n:,} {WORDS[split]}" for split, n in counts if n)),
        ("Classes", len(run.names)),
        ("Recipe", model.recipe.get("name")),
        ("Network", model.arch["name"]),
        ("Weights", (model.recipe.get("model") or {}).get("weights")),
        ("Preprocessing", f"{p.fit} to {p.resize}, center {p.size}, {'gray' if p.channels == 1 else 'color'}"),
        ("Best epoch", f"phase {best['phase']}, epoch {best['epoch']}, by {best['by']}" if best else None),
        ("Hardware", _hardware(run)),
        ("Finished", f"{run.finished:%Y-%m-%d %H:%M}, after {duration(seconds)}"),
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
