"""The image of a sweep: its trials in order, what mattered, and a slice through the space for each key."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.sheet import BLUE, FAINT, INK, MUTED, ORANGE, SMALL, TEXT, TITLE, Sheet, shorten

WIDTH, ROW = 10.4, 2.62  # inches
HEAD = 1.0
FIRST = 0.45  # more room for the first row, whose panel has a line below
ACROSS = 3
PANEL_WIDTH, PANEL_HEIGHT = 2.55, 1.85
STEP = 3.4  # from one panel's left edge to the next's
LEFT = 0.72
LABELS = 6  # choices that have room for their names below


@dataclass(frozen=True)
class Slice:
    """One key of the space: what each shown trial drew of it."""

    key: str
    values: Sequence[float]
    """(trials,); for choices the position among `labels`."""
    ends: tuple[float, float]
    log: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class SweepImage:
    """What is drawn of a sweep: the trials that have a value, complete or pruned."""

    title: str
    says: str
    measure: str
    """accuracy, balanced accuracy, or loss"""
    numbers: Sequence[int]
    values: Sequence[float]
    pruned: Sequence[bool]
    best: int
    """The best trial's place among these."""
    importances: dict[str, float] = field(default_factory=dict)
    slices: Sequence[Slice] = ()


def sweep_plot(sweep: SweepImage, path: str | os.PathLike[str]) -> str:
    """Draw a sweep. Returns the characters that no font on this machine has."""
    texts = [sweep.title, *(s.key for s in sweep.slices), *(label for s in sweep.slices for label in s.labels)]
    fonts = families_for(texts)
    rows = 1 + -(-len(sweep.slices) // ACROSS)
    sheet = Sheet(WIDTH, HEAD + rows * ROW + FIRST - 0.12, fonts)
    sheet.write(0.45, 0.42, shorten(sweep.title, fonts, TITLE, WIDTH - 0.9), size=TITLE)
    sheet.write(0.45, 0.68, sweep.says, size=TEXT, color=MUTED)
    limits = _limits(sweep)
    _history(sheet, sweep, limits)
    _importances(sheet, sweep, LEFT + 2 * STEP - 0.25)
    for k, each in enumerate(sweep.slices):
        left, top = LEFT + (k % ACROSS) * STEP, HEAD + FIRST + (1 + k // ACROSS) * ROW
        axes = _panel(sheet, left, top, PANEL_WIDTH, each.key, sweep, limits, first=k % ACROSS == 0)
        _across(axes, each, fonts)
        _dots(axes, np.asarray(each.values), sweep)
    sheet.save(path)
    return fonts.missing


def _limits(sweep: SweepImage) -> tuple[float, float]:
    """The range of the measure that all panels share: from the best down to four times as far as the usual trial.

    A trial that went wrong altogether would flatten all others.
    """
    values = _shown(sweep)
    kept = values[~np.asarray(sweep.pruned)]
    sign = -1 if sweep.measure == "loss" else 1
    best = float((sign * kept).max())
    worst = max(float((sign * kept).min()), best - 4 * (best - float(np.median(sign * kept))))
    low, high = sorted((sign * worst, sign * best))
    room = max(high - low, 0.02 if sweep.measure == "loss" else 2.0)
    return low - 0.12 * room, high + 0.12 * room


def _shown(sweep: SweepImage) -> np.ndarray:
    """(trials,) the measure; accuracies in percent."""
    return np.asarray(sweep.values, np.float64) * (1 if sweep.measure == "loss" else 100)


def _panel(
    sheet: Sheet, left: float, top: float, width: float, name: str, sweep: SweepImage, limits: tuple[float, float],
    *, first: bool,
) -> Axes:  # fmt: skip
    axes = sheet.axes(left, top, width, PANEL_HEIGHT)
    sheet.write(left, top - 0.2, shorten(name, sheet.fonts, TEXT, width), size=TEXT, bold=True)
    axes.set_ylim(*limits)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    unit = "" if sweep.measure == "loss" else " %"
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(v, 6):g}{unit}".replace("-", "−")))
    if not first:
        axes.tick_params(axis="y", labelleft=False)
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.axhline(limits[0], color=INK, linewidth=0.9, clip_on=False)
    return axes


def _history(sheet: Sheet, sweep: SweepImage, limits: tuple[float, float]) -> None:
    """The trials in their order, and the best so far."""
    width = STEP + PANEL_WIDTH - 0.55
    axes = _panel(sheet, LEFT, HEAD + 0.28, width, f"Validation {sweep.measure}, by trial", sweep, limits, first=True)
    numbers = np.asarray(sweep.numbers)
    values, complete = _shown(sweep), ~np.asarray(sweep.pruned)
    pick = np.minimum if sweep.measure == "loss" else np.maximum
    so_far = np.r_[pick.accumulate(values[complete]), values[sweep.best]]
    axes.step(np.r_[numbers[complete], numbers.max() + 0.6], so_far, where="post", color=MUTED, linewidth=1.0)
    axes.set_xlim(-0.6, max(numbers.max(), 1) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    _dots(axes, numbers, sweep)
    if not complete.all():
        text = "hollow: pruned, where it stood then   ·   triangle: beyond the scale   ·   line: the best so far"
        sheet.write(LEFT, HEAD + 0.28 + PANEL_HEIGHT + 0.45, text, size=SMALL, color=MUTED)


def _dots(axes: Axes, x: np.ndarray, sweep: SweepImage) -> None:
    """Complete trials filled, pruned ones hollow, the best in a ring; what lies outside stands at the edge."""
    low, high = axes.get_ylim()
    values, pruned = _shown(sweep), np.asarray(sweep.pruned)
    y = values.clip(low, high)
    outside = y != values
    beyond = "v" if sweep.measure != "loss" else "^"
    for chosen, marker, face in (
        (pruned & ~outside, "o", "white"),
        (pruned & outside, beyond, "white"),
        (~pruned & ~outside, "o", BLUE),
        (~pruned & outside, beyond, BLUE),
    ):
        edge = BLUE if face == BLUE else MUTED
        axes.plot(
            x[chosen], y[chosen], linewidth=0, marker=marker, markersize=4.5, markerfacecolor=face,
            markeredgecolor=edge, markeredgewidth=0.9, alpha=0.8, clip_on=False, zorder=3,
        )  # fmt: skip
    axes.plot(
        [x[sweep.best]], [y[sweep.best]], marker="o", markersize=10, markerfacecolor="none", markeredgecolor=ORANGE,
        markeredgewidth=1.8, clip_on=False, zorder=5,
    )  # fmt: skip


def _across(axes: Axes, each: Slice, fonts: Fonts) -> None:
    """The scale of a slice's key."""
    low, high = each.ends
    if each.labels:
        axes.set_xlim(-0.5, len(each.labels) - 0.5)
        if len(each.labels) <= LABELS:
            room = PANEL_WIDTH / len(each.labels) - 0.06
            axes.set_xticks(range(len(each.labels)), [shorten(t, fonts, SMALL, room) for t in each.labels])
            for text in axes.get_xticklabels():
                text.set_parse_math(False)
        else:
            names = dict(enumerate(shorten(t, fonts, SMALL, PANEL_WIDTH / LABELS) for t in each.labels))
            axes.xaxis.set_major_locator(MaxNLocator(LABELS, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: names.get(round(v), "")))
    elif each.log:
        axes.set_xscale("log")
        ratio = high / low
        axes.set_xlim(low / ratio**0.04, high * ratio**0.04)
        axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0,) if ratio > 30 else (1.0, 2.0, 5.0), numticks=6))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="x", which="both", length=0)
    else:
        room = 0.04 * (high - low)
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(v, 9):g}".replace("-", "−")))


def _importances(sheet: Sheet, sweep: SweepImage, left: float) -> None:
    """Bars, the longest first; or why there are none."""
    top, width = HEAD + 0.28, WIDTH - left - 0.85
    sheet.write(left, top - 0.2, "What made trials good", size=TEXT, bold=True)
    if not sweep.importances:
        sheet.write(left, top + 0.2, "too few complete trials to tell", size=TEXT, color=MUTED)
        return
    shown = sorted(sweep.importances.items(), key=lambda item: -item[1])[:6]
    most = max(shown[0][1], 1e-9)
    axes = sheet.axes(left, top, width, PANEL_HEIGHT)
    axes.set_xlim(0, most)
    axes.set_ylim(PANEL_HEIGHT, 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for k, (key, share) in enumerate(shown):
        y = 0.1 + k * PANEL_HEIGHT / 6
        sheet.write(left, top + y, shorten(key, sheet.fonts, SMALL, width), size=SMALL, color=INK)
        axes.barh(y + 0.09, share, height=0.08, color=BLUE)
        end = left + width * share / most
        sheet.write(end + 0.06, top + y + 0.09, f"{share:.0%}", size=SMALL, color=MUTED, vertical="center_baseline")
