"""Held-out accuracy and loss of a solved head over its penalty: a solved head has no epochs to draw."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from linnaeus.report.canvas import (
    draw_ring,
    log_ticks,
    muted,
    new_figure,
    number_ticks,
    save_figure,
    style_axes,
    write_panel_title,
)
from linnaeus.report.curves import HEIGHT, WIDTH, Chart, Quantity, axis_range
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.palette import BLUE
from linnaeus.report.svg import tag, to_svg
from linnaeus.runs.penalties import Trial
from linnaeus.text import typeset_percent

TITLES = {"accuracy": "Accuracy by penalty", "loss": "Loss by penalty"}


def penalty_curves(trials: Sequence[Trial], path: str | os.PathLike[str]) -> None:
    """Draw both quantities of a search into a file."""
    fonts = families_for([])
    figure = new_figure(WIDTH, HEIGHT)
    known = _quantities(trials)
    for axes, quantity in zip(np.atleast_1d(figure.subplots(1, len(known))), known, strict=True):
        note = _draw(axes, trials, quantity, fonts)
        write_panel_title(axes, TITLES[quantity], note, fonts)
    save_figure(figure, path)


def penalty_charts(trials: Sequence[Trial], phase: int) -> list[Chart]:
    """The same for the report."""
    charts = []
    for quantity in _quantities(trials):
        figure = new_figure(4.6, 2.8, margin=0.04)
        note = _draw(figure.subplots(), trials, quantity, families_for([]))
        about = f"{len(trials)} penalties from {trials[0].penalty:g} to {trials[-1].penalty:g}; {note}."
        charts.append(Chart(TITLES[quantity], note, to_svg(figure, f"{quantity}{phase}", TITLES[quantity], about)))
    return charts


def _quantities(trials: Sequence[Trial]) -> list[Quantity]:
    return ["accuracy", "loss"] if all(trial.accuracy is not None for trial in trials) else ["loss"]


def _draw(axes: Axes, trials: Sequence[Trial], quantity: Quantity, fonts: Fonts) -> str:
    """Draw one quantity, and a ring at the penalty with the lowest loss, which was chosen. Returns a note on it."""
    x = np.array([trial.penalty for trial in trials])
    values = np.array([getattr(trial, quantity) for trial in trials], np.float64)
    chosen = int(np.argmin([trial.loss for trial in trials]))
    texts = [typeset_percent(v, 1) if quantity == "accuracy" else f"{v:.3g}" for v in values]
    shown = 100 * values if quantity == "accuracy" else values
    style_axes(axes, fonts)
    axes.set_xscale("log")
    # Half a step on both sides keeps the outer dots off the edge.
    axes.set_xlim(x[0] / 2, x[-1] * 2)
    log_ticks(axes.xaxis, 8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("penalty (weak to strong)", **muted(fonts))
    number_ticks(axes.yaxis, " %" if quantity == "accuracy" else "")
    axes.set_ylim(*axis_range(shown.min(), shown.max(), quantity))
    (line,) = axes.plot(x, shown, color=BLUE, linewidth=2.0, solid_capstyle="round", clip_on=False)
    tag(line, "line valid")
    for at, value, text in zip(x, shown, texts, strict=True):
        (dot,) = axes.plot(at, value, "o", color=BLUE, markersize=4.2, markeredgewidth=0, clip_on=False)
        tag(dot, "dot valid", f"penalty {at:g}: {quantity} {text} on held-out images")
    tag(draw_ring(axes, x[chosen], shown[chosen]), "best", "the penalty that was chosen, by the lowest loss")
    return f"penalty {x[chosen]:g}: {texts[chosen]} held out"
