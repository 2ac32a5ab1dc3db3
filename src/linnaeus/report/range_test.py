"""The chart of a learning-rate range test."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.ticker import LogLocator

from linnaeus.report.canvas import muted, new_figure, save_figure, style_axes, write_title
from linnaeus.report.fonts import families_for
from linnaeus.report.palette import BLUE, MUTED, ORANGE


def ranges(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, chosen: float, why: str, path: str | os.PathLike[str]
) -> None:
    """Draw the loss of each step of a range test, (steps,), and its smoothed course over the learning rate.

    `why` explains the choice of the rate `chosen`.
    """
    fonts = families_for([])
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    style_axes(axes, fonts)
    write_title(figure, "Learning-rate range test", fonts)
    axes.set_title(f"{chosen:.2g} is used: {why}", loc="left", pad=12, **muted(fonts))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.set_xlabel("learning rate", **muted(fonts))
    axes.set_ylabel("loss", **muted(fonts))
    lowest = int(smoothed.argmin())
    axes.plot(rates, losses, color=MUTED, linewidth=0, marker="o", markersize=2.5)
    axes.plot(rates, smoothed, color=BLUE, linewidth=1.8)
    axes.plot(rates[lowest], smoothed[lowest], color=BLUE, marker="o", markersize=6)
    axes.axvline(chosen, color=ORANGE, linewidth=1.5)
    # A loss that diverges after the lowest point would flatten the part that matters.
    low, high = float(smoothed.min()), float(max(smoothed[: lowest + 1].max(), losses[0]))
    room = max(high - low, 0.05 * abs(high), 1e-3)
    axes.set_ylim(min(low, float(losses.min())) - 0.08 * room, high + 0.25 * room)
    save_figure(figure, path)
