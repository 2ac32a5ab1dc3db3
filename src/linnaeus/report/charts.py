"""The charts of the report: curves by phase, intervals, reliability, risk and coverage."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from markupsafe import Markup

from linnaeus.report.svg import (
    HEIGHT,
    WIDTH,
    Axes,
    circle,
    image,
    join,
    line,
    path,
    percent,
    rect,
    short,
    spread,
    text,
    ticks,
    whole_ticks,
)
from linnaeus.runs.history import Row

ROOM = 44.0  # at the right of curves, for their names
DOTS_UP_TO = 40  # epochs that are drawn as dots too
BELOW = 50.0  # units of the reliability diagram for its counts


def curves(history: Sequence[Row], best: int) -> list[tuple[str, Markup]]:
    """(title, chart) of accuracy, loss and learning rate over all epochs, phase beside phase; `best` is ringed."""
    accuracy = _curve(
        history, best, "Accuracy", percent, (0.0, 1.0),
        [("train", [e.train_accuracy for e in history]), ("valid", [e.valid_accuracy for e in history])],
    )  # fmt: skip
    losses = [e.train_loss for e in history] + [e.valid_loss for e in history]
    finite = [v for v in losses if math.isfinite(v)]
    loss = _curve(
        history, best, "Loss", short, (0.0, max(finite, default=1.0) * 1.04 or 1.0),
        [("train", [e.train_loss for e in history]), ("valid", [e.valid_loss for e in history])],
    )  # fmt: skip
    return [("Accuracy", accuracy), ("Loss", loss)]


def _curve(
    history: Sequence[Row],
    best: int,
    title: str,
    label: Callable[[float], str],
    limits: tuple[float, float],
    series: Sequence[tuple[str, Sequence[float | None]]],
) -> Markup:
    n = len(history)
    known = [v for _, values in series for v in values if v is not None and math.isfinite(v)]
    if title == "Accuracy" and known and min(known) > 0.4:  # the upper part, enlarged
        limits = (math.floor(min(known) * 10 - 0.25) / 10, 1.0)
    axes = Axes((0.5, n + 0.5) if n <= DOTS_UP_TO else (1, n), limits, right=WIDTH - ROOM, top=26.0)
    parts = [_phases(history, axes)]
    x = [v for v in whole_ticks(1, n) if v <= n]
    parts.append(axes.frame(x, ticks(*limits), lambda v: f"{v:.0f}", label, "epoch"))
    ends: list[tuple[str, float]] = []
    for name, values in series:
        shown = [(i + 1, v) for i, v in enumerate(values) if v is not None and math.isfinite(v)]
        if not shown:
            continue
        points = [axes.at(i, v) for i, v in shown]
        parts.append(path(points, f"line {name}"))
        if n <= DOTS_UP_TO:
            parts += [
                circle(at, 2.4, f"dot {name}", f"epoch {i}: {name} {title.lower()} {v:.4g}")
                for at, (i, v) in zip(points, shown, strict=True)
            ]
        ends.append((name, points[-1][1]))
    last = dict(series)["valid"][best]
    if last is not None:
        parts.append(circle(axes.at(best + 1, last), 6, "ring", "the best epoch, which was kept"))
    for (name, _), y in zip(ends, spread([y for _, y in ends], 14, axes.top, axes.bottom), strict=True):
        parts.append(text(axes.right + 6, y + 4, name, f"name {name}"))
    told = "; ".join(
        f"{name} from {values[0]:.4g} to {values[-1]:.4g}"
        for name, values in ((name, [v for v in vs if v is not None]) for name, vs in series)
        if values
    )
    about = f"{title} by epoch, {n} epochs: {told}. The best epoch is number {best + 1}."
    return image(WIDTH, HEIGHT, join(parts), title=f"{title} by epoch", about=about)


def _phases(history: Sequence[Row], axes: Axes) -> Markup:
    """A band behind every second phase, and the phases' numbers above, where there are several."""
    phases = list(dict.fromkeys(e.phase for e in history))
    if len(phases) < 2:
        return Markup("")
    parts = []
    for k, phase in enumerate(phases):
        own = [i + 1 for i, e in enumerate(history) if e.phase == phase]
        x0, x1 = axes.at(own[0] - 0.5, 0)[0], axes.at(own[-1] + 0.5, 0)[0]
        if k % 2:
            parts.append(rect(x0, axes.top - 16, x1 - x0, axes.bottom - axes.top + 16, "band"))
        word = f"phase {phase}" if x1 - x0 > 52 else str(phase)
        parts.append(text((x0 + x1) / 2, axes.top - 5, word, "tick", "middle"))
    return join(parts)


def interval(value: float, ci: Sequence[float] | None, low: float, high: float, told: str) -> Markup:
    """A value and its 95 % interval as a dot on a bar, `low` to `high`: to stand in a table's row."""
    axes = Axes((low, high), (0, 1), left=5, right=155, top=2, bottom=18)
    y = 10.0
    parts = [line((axes.left, y), (axes.right, y), "grid")]
    if ci is not None:
        parts.append(line((axes.at(ci[0], 0)[0], y), (axes.at(ci[1], 0)[0], y), "whisker"))
    parts.append(circle((axes.at(value, 0)[0], y), 4, "dot valid"))
    return image(160, 20, join(parts), title=told, about="", style="inline")


def reliability(diagram: dict[str, list[dict[str, Any]]]) -> Markup:
    """How often answers are right that are given with a certainty; before and after the temperature.

    `diagram` is that of `linnaeus evaluate --json`: for "before" and "after", rows of bins that hold images. A dot's
    area grows with its images.
    """
    axes = Axes((0, 1), (0, 1), top=26.0, bottom=HEIGHT + 12)
    grid = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    parts = [axes.frame([], grid, percent, percent)]
    parts.append(line(axes.at(0, 0), axes.at(1, 1), "ideal"))
    after = diagram["after"]
    most = max((row["n"] for row in after), default=1)
    for row in after:
        low, high = row["accuracy_ci95"]
        parts.append(line(axes.at(row["confidence"], low), axes.at(row["confidence"], high), "whisker"))
    for kind in ("before", "after"):
        for row in diagram[kind]:
            told = f"{kind}: said {percent(row['confidence'], 1)}, right {row['correct']} of {row['n']}"
            radius = 2.5 + 4.5 * math.sqrt(row["n"] / most)
            parts.append(circle(axes.at(row["confidence"], row["accuracy"]), radius, f"dot {kind}", told))
    floor = axes.bottom + 22 + BELOW
    for row in after:
        x0, x1 = axes.at(row["from"], 0)[0], axes.at(row["to"], 0)[0]
        high = max(1.0, BELOW * row["n"] / most)
        parts.append(rect(x0 + 0.75, floor - high, x1 - x0 - 1.5, high, "bar"))
        if row["n"] == most:
            parts.append(text(x1 - 1, floor - high - 5, f"{most:,}", "tick", "end"))
    parts += [text(axes.at(v, 0)[0], floor + 17, percent(v), "tick", "middle") for v in grid]
    parts.append(line((axes.left, floor), (axes.right, floor), "axis"))
    parts.append(text((axes.left + axes.right) / 2, floor + 34, "certainty of the answer", "axis-title", "middle"))
    parts.append(text(0, 12, "share that is right", "axis-title"))
    parts.append(text(axes.left, axes.bottom + 17, "images", "axis-title"))
    n = sum(row["n"] for row in after)
    told = "; ".join(f"{percent(r['confidence'])} certain, {percent(r['accuracy'])} right ({r['n']})" for r in after)
    return image(WIDTH, floor + 40, join(parts), title="Reliability diagram", about=f"Of {n} images by bin: {told}.")


def risk_coverage(curve: Sequence[dict[str, Any]], allowed: float, threshold: float) -> Markup:
    """The share wrong among the answered, against the share answered, the surest first.

    `curve` is that of `linnaeus evaluate --json`. `allowed` is the error that the threshold keeps to, `threshold` the
    one that the model applies; 0 where it answers everything.
    """
    rows = [row for row in curve if row["answered"]]
    x, y = [row["coverage"] for row in rows], [row["risk"] for row in rows]
    top = min(1.0, max(max(y) * 1.35, allowed * 1.6, 0.02))
    axes = Axes((0, 1), (0, top), top=26.0, bottom=HEIGHT + 12)
    low = axes.points(x, [row["risk_ci95"][0] for row in rows])
    high = axes.points(x, [row["risk_ci95"][1] for row in rows])
    step = ticks(0, top, 5)
    digits = 0 if len(step) > 1 and step[1] >= 0.01 else 1
    parts = [path([*low, *reversed(high)], "interval", closed=True)]
    parts.append(
        axes.frame([0, 0.2, 0.4, 0.6, 0.8, 1.0], step, percent, lambda v: percent(v, digits), "share answered")
    )
    parts.append(line(axes.at(0, allowed), axes.at(1, allowed), "limit"))
    parts.append(text(axes.right + 3, axes.at(1, allowed)[1] + 4, percent(allowed), "tick"))
    parts.append(path(axes.points(x, y), "line valid"))
    applied = [row for row in rows if row["threshold"] >= threshold] or rows[:1]
    mark = applied[-1] if threshold else rows[-1]
    at = axes.at(mark["coverage"], mark["risk"])
    parts.append(circle(at, 5, "dot valid", "the threshold that the model applies"))
    anchor, shift = ("end", -9.0) if mark["coverage"] > 0.3 else ("start", 9.0)
    parts.append(text(at[0] + shift, at[1] - 9, f"answers {percent(mark['coverage'])}", "name valid", anchor))
    parts.append(text(0, 12, "share wrong among the answered", "axis-title"))
    about = (
        f"Answering everything, {percent(y[-1], 1)} are wrong. With the model's threshold it answers "
        f"{percent(mark['coverage'], 1)}, {mark['wrong']} of {mark['answered']} wrong."
    )
    return image(WIDTH, axes.bottom + 40, join(parts), title="Risk and coverage", about=about)
