"""The plot of a sweep: its trials in order, the importance of each key, and the trials over each key of the space."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from linnaeus.report.canvas import (
    log_ticks,
    muted,
    new_figure,
    number_ticks,
    save_figure,
    shorten,
    style_axes,
    write_title,
)
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.palette import BLUE, INK, MUTED, ORANGE, PAGE, SMALL, TEXT
from linnaeus.text import typeset_percent

WIDTH, ROW = 10.4, 2.6  # inches
COLUMNS = 3
PANEL = 2.7  # inches, about the width of a panel
LABELS = 6  # more choices than this have no room for all their names
IMPORTANCES = 6  # keys shown


@dataclass(frozen=True)
class Slice:
    """The values that the trials drew for one key of the space."""

    key: str
    values: Sequence[float]  # (trials,); for choices the position among `labels`
    ends: tuple[float, float]
    log: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class SweepImage:
    """The trials of a sweep that have a value, complete or pruned."""

    title: str
    says: str  # the subtitle
    measure: str  # accuracy, balanced accuracy, or loss
    numbers: Sequence[int]
    values: Sequence[float]
    pruned: Sequence[bool]
    best: int  # index of the best trial
    importances: dict[str, float] = field(default_factory=dict)
    slices: Sequence[Slice] = ()

    @property
    def shown(self) -> np.ndarray:
        """(trials,) float64 values of the measure; accuracies in percent."""
        return np.asarray(self.values, np.float64) * (1 if self.measure == "loss" else 100)

    @property
    def limits(self) -> tuple[float, float]:
        """The range of the measure on all panels: from the best trial to four times the distance of the median.

        A few trials that failed to learn would flatten all others.
        """
        sign = -1 if self.measure == "loss" else 1
        values = sign * self.shown[~np.asarray(self.pruned)]
        best = float(values.max())
        worst = max(float(values.min()), best - 4 * (best - float(np.median(values))))
        low, high = sorted((sign * worst, sign * best))
        room = max(high - low, 0.02 if self.measure == "loss" else 2.0)
        # No accuracy is above 100 %; markers there are not clipped.
        most = math.inf if self.measure == "loss" else 100.0
        return low - 0.12 * room, min(high + 0.12 * room, most)


def sweep_plot(sweep: SweepImage, path: str | os.PathLike[str]) -> str:
    """Draw a sweep. Returns the characters that no font on this machine has."""
    texts = [sweep.title, *(s.key for s in sweep.slices), *(label for s in sweep.slices for label in s.labels)]
    fonts = families_for(texts)
    rows = 1 + -(-len(sweep.slices) // COLUMNS)
    figure = new_figure(WIDTH, rows * ROW + 0.6)
    write_title(figure, sweep.title, fonts, sweep.says)
    grid = figure.add_gridspec(rows, COLUMNS)
    _draw_history(figure.add_subplot(grid[0, : COLUMNS - 1]), sweep, fonts)
    _draw_importances(figure.add_subplot(grid[0, COLUMNS - 1]), sweep, fonts)
    for index, part in enumerate(sweep.slices):
        axes = figure.add_subplot(grid[1 + index // COLUMNS, index % COLUMNS])
        _prepare(axes, part.key, sweep, fonts)
        axes.tick_params(axis="y", labelleft=index % COLUMNS == 0)
        _scale(axes, part, fonts)
        _draw_trials(axes, np.asarray(part.values), sweep)
    save_figure(figure, path)
    return fonts.missing


def _prepare(axes: Axes, title: str, sweep: SweepImage, fonts: Fonts) -> None:
    """The title, and the measure as the vertical axis."""
    style_axes(axes, fonts)
    title = shorten(title, fonts, TEXT, PANEL)
    axes.set_title(title, loc="left", pad=8, size=TEXT, color=INK, weight="bold", **fonts.style)
    axes.set_ylim(*sweep.limits)
    number_ticks(axes.yaxis, "" if sweep.measure == "loss" else " %")


def _draw_history(axes: Axes, sweep: SweepImage, fonts: Fonts) -> None:
    """The trials in order, and a line for the best value so far."""
    _prepare(axes, f"Validation {sweep.measure} by trial", sweep, fonts)
    numbers, complete = np.asarray(sweep.numbers), ~np.asarray(sweep.pruned)
    best_of = np.minimum if sweep.measure == "loss" else np.maximum
    so_far = np.r_[best_of.accumulate(sweep.shown[complete]), sweep.shown[sweep.best]]
    axes.step(np.r_[numbers[complete], numbers.max() + 0.6], so_far, where="post", color=MUTED, linewidth=1.0)
    axes.set_xlim(-0.6, max(numbers.max(), 1) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    _draw_trials(axes, numbers, sweep)
    if not complete.all():
        key = "hollow: last value of a pruned trial   ·   triangle: off the scale   ·   line: best so far"
        axes.set_xlabel(key, loc="left", **muted(fonts, SMALL))


def _draw_trials(axes: Axes, x: np.ndarray, sweep: SweepImage) -> None:
    """Complete trials are filled, pruned ones hollow, the best has a ring; values off the scale are at the edge."""
    low, high = axes.get_ylim()
    pruned, y = np.asarray(sweep.pruned), sweep.shown.clip(low, high)
    outside = y != sweep.shown
    # The triangle points away from the scale, to where the value lies.
    triangle = "v" if sweep.measure != "loss" else "^"
    # One call per kind of marker: markers of one call share their shape.
    for is_pruned in (True, False):
        for is_outside in (False, True):
            chosen = (pruned == is_pruned) & (outside == is_outside)
            if not chosen.any():  # the layout takes an empty line for a point in the corner of the figure
                continue
            axes.plot(
                x[chosen],
                y[chosen],
                linewidth=0,
                marker=triangle if is_outside else "o",
                markersize=4.5,
                markerfacecolor=PAGE if is_pruned else BLUE,
                markeredgecolor=MUTED if is_pruned else BLUE,
                markeredgewidth=0.9,
                alpha=0.8,
                clip_on=False,
                zorder=3,
            )
    axes.plot(
        x[sweep.best],
        y[sweep.best],
        marker="o",
        markersize=10,
        markerfacecolor="none",
        markeredgecolor=ORANGE,
        markeredgewidth=1.8,
        clip_on=False,
        zorder=5,
    )


def _scale(axes: Axes, part: Slice, fonts: Fonts) -> None:
    """The horizontal axis of a key: choices, a logarithmic or a linear range."""
    low, high = part.ends
    if part.labels:
        axes.set_xlim(-0.5, len(part.labels) - 0.5)
        # Labels are left out evenly where all of them would overlap.
        step = -(-len(part.labels) // LABELS)
        shown = range(0, len(part.labels), step)
        room = PANEL / len(shown) - 0.06
        axes.set_xticks(shown, [shorten(part.labels[i], fonts, SMALL, room) for i in shown], **fonts.style)
        axes.tick_params(axis="x", labelsize=SMALL)
    elif part.log:
        axes.set_xscale("log")
        ratio = high / low
        # 4 % of the range on both sides, by ratio on a logarithmic axis.
        axes.set_xlim(low / ratio**0.04, high * ratio**0.04)
        log_ticks(axes.xaxis, 6, (1.0,) if ratio > 30 else (1.0, 2.0, 5.0))
    else:
        room = 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)
        number_ticks(axes.xaxis)


def _draw_importances(axes: Axes, sweep: SweepImage, fonts: Fonts) -> None:
    """Bars, the longest first; or a note that the trials show none."""
    axes.set_axis_off()
    axes.set_title("Importance of the keys", loc="left", pad=8, size=TEXT, color=INK, weight="bold", **fonts.style)
    if not sweep.importances:
        axes.text(0, 0.9, "none beyond chance, or too few trials", **muted(fonts))
        return
    shown = sorted(sweep.importances.items(), key=lambda item: -item[1])[:IMPORTANCES]
    most = max(shown[0][1], 1e-9)
    axes.set(xlim=(0, 1.15 * most), ylim=(IMPORTANCES, 0))  # room for the percentages at the right
    for row, (key, share) in enumerate(shown):
        axes.text(0, row + 0.3, shorten(key, fonts, SMALL, PANEL), size=SMALL, color=INK, **fonts.style)
        axes.barh(row + 0.6, share, height=0.25, color=BLUE)
        axes.text(share, row + 0.6, f" {typeset_percent(share)}", va="center", **muted(fonts, SMALL))
