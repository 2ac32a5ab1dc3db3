"""Loss and accuracy over the epochs of a run."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from linnaeus.report.fonts import families_for
from linnaeus.report.sheet import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    percent,
    shorten,
    text_width,
)

WIDTH, HEIGHT = 10.4, 4.2  # inches
LOG_FROM = 40.0  # largest loss over smallest from which the scale is logarithmic: else an early peak flattens the rest
MARKERS_UP_TO = 30  # epochs; with more, the points are a blur


def curves(
    history: Sequence[Mapping[str, object]],
    path: str | os.PathLike[str],
    *,
    best: int | None = None,
    title: str = "",
) -> str:
    """Draw loss and accuracy, training and validation, over the running epoch of all phases.

    `history` has a row an epoch, as `history.csv` has them; a value may be missing (None, "", NaN). `best` is the row
    whose weights were kept, counted from 0. Returns the characters that no font on this machine has.
    """
    phases = [_phase_name(row.get("phase")) for row in history]
    fonts = families_for([title, *phases])
    sheet = Sheet(WIDTH, HEIGHT, fonts)
    top = 1.2 if title else 0.75
    if title:
        sheet.write(0.45, 0.42, shorten(title, fonts, TITLE, WIDTH - 0.9), size=TITLE)
    if not history:
        sheet.write(WIDTH / 2, HEIGHT / 2, "no epoch was finished", color=MUTED, align="center")
        sheet.save(path)
        return fonts.missing
    loss = {kind: _column(history, f"{kind}_loss") for kind in ("train", "valid")}
    accuracy = {kind: 100 * _column(history, f"{kind}_accuracy") for kind in ("train", "valid")}
    for left, name, series in ((0.72, "Loss", loss), (5.84, "Accuracy", accuracy)):
        width, height = 3.5, HEIGHT - top - 0.58
        axes = sheet.axes(left, top, width, height)
        logarithmic = name == "Loss" and _spread(series) > LOG_FROM
        sheet.write(left - 0.27, top - 0.34, name, size=TEXT + 1.5, bold=True)
        says = _says(name, series["valid"], best, logarithmic)
        x = left - 0.13 + text_width(name, fonts, TEXT + 1.5, bold=True)
        sheet.write(x, top - 0.34, says, size=TEXT, color=MUTED)
        _scale(axes, name, series, len(history), logarithmic)
        _draw_phases(sheet, axes, phases, left, top, width)
        _draw_series(sheet, axes, series, best, left + width, top, height)
        sheet.write(left + width / 2, HEIGHT - 0.17, "epoch", size=SMALL, color=MUTED, align="center")
    sheet.save(path)
    return fonts.missing


def _column(history: Sequence[Mapping[str, object]], key: str) -> np.ndarray:
    """One column as floats, (epochs,); NaN where there is no finite number."""
    values = [row.get(key) for row in history]
    numbers = np.array([math.nan if v is None or v == "" else float(str(v)) for v in values], dtype=np.float64)
    numbers[~np.isfinite(numbers)] = math.nan
    return numbers


def _phase_name(phase: object) -> str:
    text = "" if phase is None else str(phase)
    return f"phase {text}" if text.isdigit() else text


def _spread(series: Mapping[str, np.ndarray]) -> float:
    values = np.concatenate(list(series.values()))
    values = values[np.isfinite(values)]
    return float(values.max() / values.min()) if values.size and values.min() > 0 else 1.0


def _says(name: str, valid: np.ndarray, best: int | None, logarithmic: bool) -> str:
    """What stands beside the panel's name."""
    words = ["log scale"] if logarithmic else []
    if best is not None and math.isfinite(valid[best]):
        value = percent(valid[best] / 100, 2) if name == "Accuracy" else f"{valid[best]:.3g}"
        words.append(f"best epoch {best + 1}: {value} in validation")
    return "  ·  ".join(words)


def _scale(axes: Axes, name: str, series: Mapping[str, np.ndarray], epochs: int, logarithmic: bool) -> None:
    values = np.concatenate(list(series.values()))
    values = values[np.isfinite(values)]
    axes.set_xlim(0.5, epochs + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:.0f}" if 1 <= v <= epochs else ""))
    axes.grid(axis="y", color=FAINT, linewidth=0.8, linestyle="-")
    axes.set_axisbelow(True)
    low, high = (
        (float(values.min()), float(values.max())) if values.size else (0.0, 100.0 if name == "Accuracy" else 1.0)
    )
    unit = " %" if name == "Accuracy" else ""
    plain = FuncFormatter(lambda v, _: f"{round(v, 6):g}{unit}".replace("-", "−"))
    if logarithmic:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.3, high * 1.3)
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if high / low < 1000 else (1.0,)))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(axis="y", which="both", length=0)
    else:
        margin = 0.08 * (high - low) or 0.1 * abs(high) or 1.0  # one epoch, or a flat line, has no height of its own
        low, high = low - margin, high + margin
        axes.set_ylim((max(low, 0.0), min(high, 101.5)) if name == "Accuracy" else (low, high))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(plain)
    if not values.size:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", color=MUTED, fontsize=TEXT)


def _draw_phases(sheet: Sheet, axes: Axes, phases: list[str], left: float, top: float, width: float) -> None:
    """A line where a phase begins, and its name above; nothing where there is one phase only."""
    stretches = [(name, len(list(rows))) for name, rows in groupby(phases)]
    if len(stretches) < 2:
        return
    start = 0
    for name, count in stretches:
        if start:
            axes.axvline(start + 0.5, color=MUTED, linewidth=0.9, linestyle=(0, (2, 2)))
        room = width * count / len(phases) - 0.08
        label = shorten(name, sheet.fonts, SMALL, room)
        if len(label) < min(len(name), 4):  # no room for words: the number alone, or nothing
            label = shorten(name.rsplit(" ", 1)[-1], sheet.fonts, SMALL, room).strip("…")
        sheet.write(left + width * start / len(phases) + 0.05, top - 0.07, label, size=SMALL, color=MUTED)
        start += count


def _draw_series(
    sheet: Sheet,
    axes: Axes,
    series: Mapping[str, np.ndarray],
    best: int | None,
    right: float,
    top: float,
    height: float,
) -> None:
    """Both lines, the best epoch on the validation's, and each line's name at its right end."""
    ends = []
    for kind, name, color, weight in (("train", "training", ORANGE, 1.4), ("valid", "validation", BLUE, 2.0)):
        known = np.flatnonzero(np.isfinite(series[kind]))
        if not known.size:
            continue
        marker = "o" if len(series[kind]) <= MARKERS_UP_TO or known.size == 1 else ""
        values = series[kind][known]
        axes.plot(
            known + 1,
            values,
            color=color,
            linewidth=weight,
            linestyle="-",
            marker=marker,
            markersize=3.6 if known.size > 3 else 6,
            markeredgewidth=0,
            solid_capstyle="round",
            clip_on=False,
        )
        end = axes.transAxes.inverted().transform(axes.transData.transform((known[-1] + 1, values[-1])))[1]
        ends.append([top + height * (1 - end), name, color])
    if best is not None and math.isfinite(series["valid"][best]):
        axes.axvline(best + 1, color=BLUE, linewidth=0.8, alpha=0.35)
        axes.plot(
            [best + 1],
            [series["valid"][best]],
            marker="o",
            markersize=8.5,
            markerfacecolor="white",
            markeredgecolor=BLUE,
            markeredgewidth=2,
            clip_on=False,
            zorder=5,
        )
    ends.sort(key=lambda end: end[0])
    apart = 0.16  # inches between baselines, so that two labels never touch
    if len(ends) == 2 and ends[1][0] - ends[0][0] < apart:
        middle = (ends[0][0] + ends[1][0]) / 2
        ends[0][0], ends[1][0] = middle - apart / 2, middle + apart / 2
    for y, name, color in ends:
        sheet.write(right + 0.06, y, name, size=TEXT, color=color, vertical="center_baseline")
    axes.axhline(axes.get_ylim()[0], color=INK, linewidth=0.9, clip_on=False)
