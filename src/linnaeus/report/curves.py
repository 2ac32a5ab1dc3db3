"""Loss and accuracy over the epochs of a run: one chart for the run folder and for the report."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from linnaeus.report.canvas import (
    draw_ring,
    muted,
    new_figure,
    number_ticks,
    save_figure,
    shorten,
    style_axes,
    write_panel_title,
    write_title,
)
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.palette import BLUE, GROUND, MUTED, ORANGE, TEXT
from linnaeus.report.svg import tag, to_svg
from linnaeus.runs.history import Row
from linnaeus.text import typeset_percent

WIDTH, HEIGHT = 10.4, 4.0  # inches, of both panels
PANEL = 3.6  # inches, about the width of a panel between its labels
LOG_FROM = 40.0  # ratio of largest to smallest loss above which the scale is logarithmic: a peak flattens the rest
MARKERS_UP_TO = 40  # epochs; with more, markers merge

Quantity = Literal["loss", "accuracy", "map"]
TITLES = {"loss": "Loss", "accuracy": "Accuracy", "map": "Mean average precision (mAP)"}


@dataclass(frozen=True)
class Series:
    """How the values of a split are drawn."""

    split: str
    label: str
    color: str
    linewidth: float
    linestyle: str


SERIES = (Series("train", "training", ORANGE, 1.4, "--"), Series("valid", "validation", BLUE, 2.0, "-"))


@dataclass(frozen=True)
class Chart:
    """A chart of the report with its caption."""

    title: str
    note: str
    drawing: Markup


def curves(history: Sequence[Row], path: str | os.PathLike[str], *, best: int | None = None, title: str = "") -> str:
    """Draw loss and accuracy, or with several labels mAP, of training and validation over all epochs.

    `best` is the index of the row whose weights were kept. Returns the characters that no font on this machine has.
    """
    fonts = families_for([title])
    figure = new_figure(WIDTH, HEIGHT)
    if title:
        write_title(figure, title, fonts)
    if not history:
        figure.text(0.5, 0.5, "no epoch was finished", color=MUTED, ha="center", **fonts.style)
    else:
        for axes, quantity in zip(figure.subplots(1, 2), ("loss", _score(history)), strict=True):
            note = draw_curve(axes, history, quantity, best, fonts)
            # Names of phases stand above the panel, below the title.
            pad = 22 if len({row.phase for row in history}) > 1 else 10
            write_panel_title(axes, TITLES[quantity], note, fonts, pad)
    save_figure(figure, path)
    return fonts.missing


def curve_charts(history: Sequence[Row], best: int) -> list[Chart]:
    """The charts of accuracy, or with several labels mAP, and loss for the report."""
    charts = []
    quantities: tuple[Quantity, ...] = (_score(history), "loss")
    for quantity in quantities:
        figure, title = new_figure(4.6, 2.8, margin=0.04), TITLES[quantity]
        note = draw_curve(figure.subplots(), history, quantity, best, families_for([]))
        ranges = "; ".join(_range(history, series, quantity) for series in SERIES)
        about = f"{len(history)} epochs: {ranges}. The best epoch is number {best + 1}."
        charts.append(Chart(title, note, to_svg(figure, quantity, f"{title} by epoch", about)))
    return charts


def _score(history: Sequence[Row]) -> Quantity:
    """What the best epoch has most of."""
    return "accuracy" if all(row.valid_map is None for row in history) else "map"


def draw_curve(axes: Axes, history: Sequence[Row], quantity: Quantity, best: int | None, fonts: Fonts) -> str:
    """Draw one quantity of training and validation. Returns a note on the best epoch and the scale."""
    values = {series.split: _values(history, series.split, quantity) for series in SERIES}
    known = np.concatenate([v[np.isfinite(v)] for v in values.values()])
    logarithmic = quantity == "loss" and known.size > 0 and known.min() > 0 and known.max() / known.min() > LOG_FROM
    style_axes(axes, fonts)
    axes.set_xlim(0.5, len(history) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}" if 1 <= v <= len(history) else ""))
    axes.set_xlabel("epoch", **muted(fonts))
    if known.size:
        _scale(axes, quantity, float(known.min()), float(known.max()), logarithmic)
    else:
        axes.set_ylim(0, 1)
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", **muted(fonts))
    _draw_phases(axes, [row.phase for row in history], fonts)
    for series in SERIES:
        _draw_line(axes, series, values[series.split], quantity)
    _label_ends(axes, values, fonts)
    notes = ["log scale"] if logarithmic else []
    if best is not None and math.isfinite(value := values["valid"][best]):
        tag(draw_ring(axes, best + 1, value), "best", "the best epoch, whose weights were kept")
        notes.append(f"best epoch {best + 1}: {_format(value, quantity)} on validation")
    return "  ·  ".join(notes)


def _values(history: Sequence[Row], split: str, quantity: Quantity) -> np.ndarray:
    """(epochs,) float64; NaN where there is no finite number. Accuracies and mAP in percent."""
    values = [getattr(row, f"{split}_{quantity}", None) for row in history]  # no row has the mAP of training
    numbers = np.array([math.nan if value is None else value for value in values], np.float64)
    numbers[~np.isfinite(numbers)] = math.nan
    return numbers if quantity == "loss" else 100 * numbers


def _format(value: float, quantity: Quantity) -> str:
    return f"{value:.3g}" if quantity == "loss" else typeset_percent(value / 100, 2)


def _range(history: Sequence[Row], series: Series, quantity: Quantity) -> str:
    values = _values(history, series.split, quantity)
    values = values[np.isfinite(values)]
    if not len(values):
        return f"no {series.label} {quantity}"
    return f"{series.label} from {_format(values[0], quantity)} to {_format(values[-1], quantity)}"


def axis_range(low: float, high: float, quantity: Quantity) -> tuple[float, float]:
    """Limits a little outside the values. An accuracy gets at least four points, so that one image is no cliff."""
    margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0  # a single epoch or a flat line has no range of its own
    if quantity == "loss":
        return low - margin, high + margin
    margin = max(margin, 2.0 - (high - low) / 2)
    return max(low - margin, 0.0), min(high + margin, 101.5)


def _scale(axes: Axes, quantity: Quantity, low: float, high: float, logarithmic: bool) -> None:
    """Limits a little outside the values, and ticks at round numbers."""
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
    else:
        axes.set_ylim(*axis_range(low, high, quantity))
    number_ticks(axes.yaxis, "" if quantity == "loss" else " %")
    if logarithmic:
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _draw_phases(axes: Axes, phases: list[int], fonts: Fonts) -> None:
    """A band behind every second phase, and its name above; nothing if there is only one phase."""
    stretches = [(phase, len(list(rows))) for phase, rows in groupby(phases)]
    if len(stretches) < 2:
        return
    start = 0.5
    for index, (phase, count) in enumerate(stretches):
        if index % 2:
            axes.axvspan(start, start + count, facecolor=GROUND, edgecolor="none", zorder=0, gid="phase|")
        # Narrow phases get shorter names, down to none.
        room = PANEL * count / len(phases) - 0.08
        labels = (f"phase {phase}", str(phase))
        label = next((label for label in labels if shorten(label, fonts, TEXT, room) == label), "")
        axes.text(start + count / 2, 1.02, label, transform=axes.get_xaxis_transform(), ha="center", **muted(fonts))
        start += count


def _draw_line(axes: Axes, series: Series, values: np.ndarray, quantity: Quantity) -> None:
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):  # the layout takes an empty line for a point in the corner of the figure
        return
    (line,) = axes.plot(
        known + 1,
        values[known],
        color=series.color,
        linewidth=series.linewidth,
        linestyle=series.linestyle,
        solid_capstyle="round",
        clip_on=False,
    )
    tag(line, f"line {series.split}")
    if len(values) > MARKERS_UP_TO and len(known) > 1:
        return
    size = 4.2 if len(known) > 3 else 6
    for i in known.tolist():
        # Each marker is an artist of its own, so that it has its own tooltip.
        (dot,) = axes.plot(i + 1, values[i], "o", color=series.color, markersize=size, markeredgewidth=0, clip_on=False)
        tag(dot, f"dot {series.split}", f"epoch {i + 1}: {series.label} {quantity} {_format(values[i], quantity)}")


def _label_ends(axes: Axes, values: dict[str, np.ndarray], fonts: Fonts) -> None:
    """The name of each line at its right end, the upper name above and the lower below, so that they never meet."""
    ends = []
    for series in SERIES:
        known = values[series.split][np.isfinite(values[series.split])]
        if len(known):
            ends.append((float(known[-1]), series))
    ends.sort(key=lambda end: end[0])
    # Annotations are placed in points, so the distance to the line does not depend on the scale.
    for index, (value, series) in enumerate(ends):
        axes.annotate(
            series.label,
            (1, value),
            (6, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color=series.color,
            size=TEXT,
            va="center" if len(ends) == 1 else ("top", "bottom")[index],
            annotation_clip=False,
            **fonts.style,
        )
