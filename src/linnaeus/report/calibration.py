"""The charts on calibration and abstention in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from linnaeus.report.canvas import muted, new_figure, style_axes
from linnaeus.report.fonts import families_for
from linnaeus.report.palette import BLUE, MUTED, ORANGE, PAGE, PALE_BLUE, TEXT
from linnaeus.report.svg import tag, to_svg
from linnaeus.text import probability_percent, typeset_percent

FONTS = families_for([])  # all texts of these charts are our own
TICKS = (0, 0.2, 0.4, 0.6, 0.8, 1.0)


@dataclass(frozen=True)
class Words:
    """What the axes of a reliability diagram show."""

    share: str
    probability: str
    hit: str
    unit: str


OF_IMAGES = Words("accuracy", "confidence", "correct", "images")
OF_LABELS = Words("share that has the label", "probability of the label", "have it", "pairs")


def reliability(diagram: dict[str, list[dict[str, Any]]], words: Words = OF_IMAGES) -> Markup:
    """Accuracy against confidence, before and after calibration, with the number of images per bin below.

    `diagram` is that of `linnaeus evaluate --json`: rows of non-empty bins for "before" and "after". The area of a
    dot grows with the number of images.
    """
    after = diagram["after"]
    most = max((row["n"] for row in after), default=1)
    figure = new_figure(4.6, 3.9, margin=0.04)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    _percent_axes(axes, words.share)
    axes.set(xlim=(0, 1), ylim=(0, 1), yticks=TICKS)
    axes.spines["bottom"].set_visible(True)
    (ideal,) = axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle="--")
    tag(ideal, "ideal")
    for row in after:
        low, high = row["accuracy_ci95"]
        axes.plot([row["confidence"]] * 2, [low, high], color=BLUE, alpha=0.4, linewidth=2.4, solid_capstyle="round")
    _draw_dots(axes, diagram, most, words)
    _percent_axes(below, f"{words.unit} per bin, at most {most:,}")
    below.yaxis.set_major_locator(NullLocator())
    below.set(ylim=(0, most * 1.05), xticks=TICKS)
    below.set_xlabel(words.probability, **muted(FONTS))
    for row in after:
        bar = below.bar(row["from"], row["n"], row["to"] - row["from"], align="edge", color=PALE_BLUE, edgecolor=PAGE)
        tag(bar[0], "bar", f"{row['n']:,} {words.unit}")
    n = sum(row["n"] for row in after)
    bins = "; ".join(
        f"{words.probability} {probability_percent(r['confidence'], 0, typeset=True)}: "
        f"{typeset_percent(r['accuracy'])} of {r['n']}"
        for r in after
    )
    about = (
        f"{words.share.capitalize()} of {n} {words.unit} by {words.probability}: {bins}."
        if after
        else "There are no images."
    )
    return to_svg(figure, "reliability", "Reliability diagram", about)


def _draw_dots(axes: Axes, diagram: dict[str, list[dict[str, Any]]], most: int, words: Words) -> None:
    """A dot for each bin, before and after; `most` is the largest number in a bin."""
    for kind, color in (("before", ORANGE), ("after", BLUE)):
        for row in diagram[kind]:
            (dot,) = axes.plot(
                row["confidence"],
                row["accuracy"],
                "o",
                color="none" if kind == "before" else color,
                # The area of a dot, not its diameter, is proportional to the number of images.
                markersize=4 + 7 * math.sqrt(row["n"] / most),
                markeredgecolor=color if kind == "before" else PAGE,
                markeredgewidth=1.2 if kind == "before" else 0.8,
                clip_on=False,
            )
            tag(
                dot,
                f"dot {kind}",
                f"{kind}: {words.probability} {probability_percent(row['confidence'], typeset=True)}, "
                f"{row['correct']} of {row['n']} {words.hit}",
            )


def risk_coverage(curve: Sequence[dict[str, Any]], allowed: float, threshold: float) -> Markup:
    """The error rate among answered images against the share answered, the most confident answers first.

    `curve` is that of `linnaeus evaluate --json`; `allowed` is the error rate that the threshold was chosen for,
    `threshold` the one that the model applies: 0 if it answers everything, above 1 if nothing.
    """
    # With nothing answered there is no error rate.
    rows = [row for row in curve if row["answered"]]
    coverage, risk = [row["coverage"] for row in rows], [row["risk"] for row in rows]
    # Rows are sorted by falling threshold: the last one that the model's threshold includes is its operating point.
    applied = [row for row in rows if row["threshold"] >= threshold]
    point = None if threshold > 1 else (applied or rows[:1])[-1] if threshold else rows[-1]
    figure = new_figure(4.6, 3.9, margin=0.04)
    axes = figure.subplots()
    _percent_axes(axes, "error rate among the answered")
    # Room for the upper interval and the limit; on a scale to 100 % both lines would lie on the axis.
    top = min(1.0, max(max(risk) * 1.35, allowed * 1.6, 0.02))
    axes.set(xlim=(0, 1), ylim=(0, top), xticks=TICKS)
    axes.set_xlabel("share answered", **muted(FONTS))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: typeset_percent(v, 0 if top >= 0.05 else 1, exact=True)))
    low, high = ([row["risk_ci95"][side] for row in rows] for side in (0, 1))
    axes.fill_between(coverage, low, high, color=BLUE, alpha=0.14, linewidth=0)
    (line,) = axes.plot(coverage, risk, color=BLUE, linewidth=1.6)
    tag(line, "line")
    tag(axes.axhline(allowed, color=MUTED, linewidth=0.8, linestyle="--"), "limit")
    axes.annotate(
        typeset_percent(allowed, exact=True),
        (1, allowed),
        (4, 0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="center",
        annotation_clip=False,
        **muted(FONTS),
    )
    most = "every image" if coverage[-1] == 1 else f"each of the {typeset_percent(coverage[-1], 1)} not called unknown"
    about = f"If {most} is answered, {typeset_percent(risk[-1], 1)} of the answers are wrong. "
    if point is None:
        about += "No threshold keeps the error rate within the limit, so the model answers no image."
    else:
        _mark_threshold(axes, point)
        answered = typeset_percent(point["coverage"], 1)
        about += f"With its threshold the model answers {answered}, {point['wrong']} of {point['answered']} wrong."
    return to_svg(figure, "risk", "Risk and coverage", about)


def _mark_threshold(axes: Axes, point: dict[str, Any]) -> None:
    """A dot where the model answers, with the share that it answers on the side that has room."""
    (dot,) = axes.plot(point["coverage"], point["risk"], "o", color=BLUE, markersize=7, clip_on=False)
    tag(dot, "dot", "the threshold that the model applies")
    # Near the left edge the label would leave the chart.
    left = point["coverage"] > 0.3
    axes.annotate(
        f"answers {typeset_percent(point['coverage'])}",
        (point["coverage"], point["risk"]),
        (-7 if left else 7, 5),
        textcoords="offset points",
        color=BLUE,
        size=TEXT,
        weight="bold",
        ha="right" if left else "left",
        **FONTS.style,
    )


def _percent_axes(axes: Axes, title: str) -> None:
    """Axes of shares in 0..1, with a title above their left edge."""
    style_axes(axes, FONTS)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda v, _: typeset_percent(v, exact=True)))
    axes.set_title(title, loc="left", pad=6, **muted(FONTS))
