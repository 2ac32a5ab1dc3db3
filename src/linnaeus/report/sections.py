"""What stands in each section of the report: plain values and drawings for the template, bounded in number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from linnaeus.check.findings import KINDS, SEVERITIES
from linnaeus.console import counted, duration
from linnaeus.data.table import SPLITS
from linnaeus.report.album import LARGE, Album, Shown
from linnaeus.report.charts import interval
from linnaeus.report.svg import percent
from linnaeus.runs.predictions import PredictionRow
from linnaeus.runs.reader import RunContents

SAMPLES, EACH = 320, 6  # images of classes on the page, and of one class
PAIRS, EXAMPLES = 10, 3  # pairs of confused classes, and images of each
BESIDE = 6  # pairs, where they stand beside a small matrix
JUDGED = 12  # mistakes, and right answers, that are shown
FINDINGS, FINDING_IMAGES = 6, 60  # findings shown of a kind; images of all of them
BAD = 20  # unreadable images that are named
METRICS = {
    "accuracy": "Accuracy",
    "top5": "Top-5 accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "macro_precision": "Macro precision",
    "macro_f1": "Macro F1",
    "macro_roc_auc": "Macro ROC AUC",
    "macro_average_precision": "Macro average precision",
    "loss": "Log loss",
    "brier": "Brier score",
    "ece": "Calibration error (ECE)",
}
UNBOUNDED = ("loss", "brier", "ece")
"""Figures that are better the smaller they are: no place on a scale up to 1."""
PARTS = {
    "prepare": "Reading and decoding",
    "evaluate": "Final evaluation",
    "pictures": "Plots",
    "check": "Check",
    "report": "This page",
}
WORDS = {"train": "training", "valid": "validation", "test": "test"}


@dataclass(frozen=True)
class Judged:
    """An image, what the model said of it, and what is true."""

    sample: str
    image: Shown | None
    heat: Shown | None
    predicted: str
    true: str
    probability: str
    probability_of_true: str
    right: bool
    unsure: bool


def metrics(run: RunContents) -> dict[str, Any]:
    """A row a figure, with value and interval for every split that was judged."""
    splits = [split for split in ("test", "valid") if split in run.metrics]
    found = {split: run.metrics[split] for split in splits}
    shares = [name for name in METRICS if name not in UNBOUNDED]
    bounds = [(m.get(f"{name}_ci95") or [m.get(name)])[0] for m in found.values() for name in shares]
    low = max(0.0, np.floor(10 * min((b for b in bounds if b is not None), default=0.0)) / 10)
    rows = []
    for name, label in METRICS.items():
        cells = [_metric(found[split], name, label, low) for split in splits]
        if any(cell is not None for cell in cells):
            rows.append({"label": label, "cells": cells})
    return {"rows": rows, "splits": [(split, WORDS[split], found[split]["n"]) for split in splits], "low": percent(low)}


def _metric(found: dict[str, Any], name: str, label: str, low: float) -> dict[str, Any] | None:
    value, ci = found.get(name), found.get(f"{name}_ci95")
    if value is None:
        return None
    share = name not in ("loss", "brier", "macro_roc_auc", "macro_average_precision")

    def said(v: float) -> str:
        return percent(v, 1) if share else f"{v:.3f}"

    between = f"{said(ci[0])} to {said(ci[1])}" if ci else ""
    drawing = None if name in UNBOUNDED else interval(value, ci, low, 1.0, f"{label} {said(value)}, {between}")
    return {"value": said(value), "interval": between, "drawing": drawing}


def classes(run: RunContents, album: Album) -> dict[str, Any]:
    """Counts of each class by split, and samples of it."""
    each = min(EACH, SAMPLES // len(run.names))
    counts = run.counts
    most = max((int(sum(of[i] for of in counts.values())) for i in range(len(run.names))), default=1) or 1
    chosen: list[list[int]] = [[] for _ in run.names]
    if album.table is not None and each:
        train = np.flatnonzero(run.splits == "train")
        for i in np.random.default_rng(0).permutation(train).tolist():
            if run.labels[i] >= 0 and len(chosen[run.labels[i]]) < each:
                chosen[run.labels[i]].append(i)
        album.decode(i for some in chosen for i in some)
    rows = []
    for c, name in enumerate(run.names):
        numbers = [(split, int(of[c])) for split, of in counts.items()]
        shown = [image for i in chosen[c] if (image := album.image(i)) is not None]
        bars = [(split, round(100 * n / most, 2)) for split, n in numbers]
        rows.append({"name": name, "class": run.model.classes[c], "counts": numbers, "bars": bars, "images": shown})
    totals = [(split, WORDS[split], int(of.sum())) for split, of in counts.items()]
    return {"rows": rows, "totals": totals, "each": each if album.table is not None else 0}


def findings(run: RunContents, album: Album) -> dict[str, Any]:
    """What the check found, by severity and kind, the worst first; and what could not be read."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for finding in run.check.findings if run.check else ():
        groups.setdefault((finding["severity"], finding["kind"]), []).append(finding)

    def worst(key: tuple[str, str]) -> int:
        return SEVERITIES.index(key[0]) if key[0] in SEVERITIES else len(SEVERITIES)

    shown = []
    left = FINDING_IMAGES
    called = dict(zip(run.model.classes, run.names, strict=True))
    for severity, kind in sorted(groups, key=worst):
        some = []
        for finding in groups[severity, kind][:FINDINGS]:
            found = [(name, album.image(album.find(name))) for name in finding["paths"][:2] if left > 0]
            images = [(name, image) for name, image in found if image is not None]
            left -= len(images)
            about = "" if finding["paths"] else ", ".join(called.get(c, c) for c in finding["classes"])
            what = ": ".join(part for part in (about, finding["detail"]) if part)
            some.append({"images": images, "paths": finding["paths"][:4], "detail": what})
        n = len(groups[severity, kind])
        title = KINDS.get(kind, kind.replace("-", " "))
        title = title[:1].upper() + title[1:]
        shown.append({"severity": severity, "title": title, "n": n, "some": some, "more": n - len(some)})
    return {
        "checked": run.check is not None,
        "groups": shown,
        "notes": run.check.notes if run.check else [],
        "bad": run.bad_images[:BAD],
        "bad_n": len(run.bad_images),
    }


def class_table(run: RunContents) -> list[dict[str, Any]]:
    """A row a class of the evaluation, the worst F1 first; empty where the run has no evaluation.json."""
    rows = []
    for found in run.evaluation.get(run.split, {}).get("classes", []):
        row: dict[str, Any] = {"name": found["name"], "support": found["support"], "correct": found["correct"]}
        for name in ("recall", "precision", "f1", "roc_auc", "average_precision"):
            value, ci = found[name], found.get(f"{name}_ci95")
            digits = 1 if name in ("recall", "precision", "f1") else 3
            said = "–" if value is None else (percent(value, digits) if digits == 1 else f"{value:.3f}")
            between = f"{percent(ci[0])} to {percent(ci[1])}" if ci and digits == 1 else ""
            drawing = None
            if name in ("recall", "precision") and value is not None:
                drawing = interval(value, ci, 0.0, 1.0, f"{name} of {found['name']}: {said}, {between}")
            number = -1.0 if value is None else round(value, 6)
            row[name] = {"said": said, "value": number, "interval": between, "drawing": drawing}
        rows.append(row)
    return sorted(rows, key=lambda row: (row["support"] == 0, row["f1"]["value"], -row["support"]))


def confused(run: RunContents, album: Album, most: int = PAIRS) -> list[dict[str, Any]]:
    """The pairs most often confused, with images of the mistake and of the class that it was taken for."""
    matrix = run.confusion
    wrong = matrix - np.diag(np.diag(matrix))
    order = np.argsort(-wrong, axis=None, kind="stable")[:most].tolist()
    pairs = [divmod(i, len(matrix)) for i in order if wrong.flat[i]]
    rows = []
    for true, predicted in pairs:
        labels = run.model.classes[true], run.model.classes[predicted]
        own = [row for row in run.predictions[run.split] if (row.true, row.predicted) == labels]
        own.sort(key=lambda a: -a.probability)
        examples = [judged(run, album, a, side=LARGE // 2) for a in own[:EXAMPLES]]
        typical: list[Shown] = []
        if album.table is not None:
            like = np.flatnonzero((run.labels == predicted) & (run.splits == "train"))
            like = np.random.default_rng(0).permutation(like)[:EXAMPLES].tolist()
            album.decode(like)
            typical = [image for i in like if (image := album.image(i)) is not None]
        rows.append(
            {
                "true": run.names[true],
                "predicted": run.names[predicted],
                "n": int(wrong[true, predicted]),
                "of": int(matrix[true].sum()),
                "examples": examples,
                "typical": typical,
            }
        )
    return rows


def judged(run: RunContents, album: Album, answer: PredictionRow, *, heat: bool = False, side: int = LARGE) -> Judged:
    """An answer with its image."""
    i = album.find(answer.sample)
    return Judged(
        sample=answer.sample,
        image=album.image(i, side),
        heat=album.heat_map(i) if heat else None,
        predicted=run.name_of(answer.predicted),
        true=run.name_of(answer.true),
        probability=percent(answer.probability, 1),
        probability_of_true=percent(answer.probability_of_true, 1),
        right=answer.correct,
        unsure=answer.probability < run.threshold,
    )


def mistakes(run: RunContents, album: Album) -> tuple[list[Judged], list[Judged]]:
    """The most confident mistakes, with heat maps; and the least confident right answers."""
    answers = run.predictions[run.split]
    wrong = sorted((a for a in answers if not a.correct), key=lambda a: -a.probability)[:JUDGED]
    right = sorted((a for a in answers if a.correct), key=lambda a: a.probability)[:JUDGED]
    album.decode(i for a in (*wrong, *right) if (i := album.find(a.sample)) is not None)
    return [judged(run, album, a, heat=True) for a in wrong], [judged(run, album, a) for a in right]


def times(run: RunContents) -> dict[str, Any]:
    """Seconds by part of the run, in the order in which they passed, and what no part was charged with."""
    seconds = dict(run.metrics.get("seconds", {}))
    total = float(seconds.pop("total", 0.0)) or sum(seconds.values()) or 1.0
    other = total - sum(seconds.values())
    if other > 0.01 * total:
        seconds["other"] = other
    rows = [
        {
            "name": PARTS.get(name, name.capitalize()),
            "said": duration(value),
            "share": percent(value / total),
            "grow": round(1000 * value / total, 2),
        }
        for name, value in seconds.items()
    ]
    return {"rows": rows, "total": duration(total)}


def facts(run: RunContents) -> list[tuple[str, str]]:
    """What was trained on what, in a few words."""
    model, hardware, best = run.model, run.metrics.get("hardware") or {}, run.metrics.get("best") or {}
    p = model.preprocessing
    source = run.metrics.get("source") or {}
    named: Sequence[tuple[str, object]] = [
        ("Source", source.get("path") or model.data.get("kind")),
        ("Images", ", ".join(f"{n:,} {WORDS[s]}" for s in SPLITS if (n := _count(run, s)))),
        ("Classes", len(run.names)),
        ("Recipe", model.recipe.get("name")),
        ("Network", model.arch["name"]),
        ("Weights", (model.recipe.get("model") or {}).get("weights")),
        ("Seen as", f"{p.fit} to {p.resize}, center {p.size}, {'gray' if p.channels == 1 else 'color'}"),
        ("Best epoch", f"phase {best['phase']}, epoch {best['epoch']}, by {best['by']}" if best else None),
        ("Hardware", hardware.get("gpu") or hardware.get("processor")),
        ("Took", duration(float((run.metrics.get("seconds") or {}).get("total", 0)))),
        ("Finished", run.finished.strftime("%Y-%m-%d %H:%M")),
    ]
    return [(label, str(value)) for label, value in named if value not in (None, "")]


def phases(run: RunContents) -> list[str]:
    """What each phase of the recipe trained, and how."""
    found = []
    for phase in run.model.recipe.get("phase", []):
        what = "everything" if phase.get("train") == ["all"] else ", ".join(map(str, phase.get("train", [])))
        if phase.get("head") == "auto":
            found.append(f"{what}: the best linear head on the frozen network, solved")
        else:
            optimizer, lr = phase.get("optimizer"), phase.get("lr")
            rate = f"{lr:g}" if isinstance(lr, float) else lr
            found.append(
                f"{what}: {_epochs(phase.get('epochs'))} in batches of {phase.get('batch')}, {optimizer} at {rate}"
            )
    return found


def _epochs(n: object) -> str:
    return counted(int(str(n)), "epoch")


def _count(run: RunContents, split: str) -> int:
    return int(run.counts[split].sum()) if split in run.counts else 0
