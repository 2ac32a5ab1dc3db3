"""The learning-rate range test: loss over the rate, and what was chosen."""

from __future__ import annotations

import os

import numpy as np
from matplotlib.ticker import LogLocator

from linnaeus.report.fonts import families_for
from linnaeus.report.sheet import BLUE, FAINT, INK, MUTED, ORANGE, SMALL, TEXT, TITLE, Sheet

WIDTH, HEIGHT = 6.4, 4.0  # inches


def ranges(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, chosen: float, why: str, path: str | os.PathLike[str]
) -> None:
    """Draw the loss of each step of a range test, (steps,) each, and its smoothed course, over the rate.

    `why` says how the `chosen` rate came about.
    """
    sheet = Sheet(WIDTH, HEIGHT, families_for([]))
    left, top, width, height = 0.75, 1.0, WIDTH - 1.2, HEIGHT - 1.6
    sheet.write(0.45, 0.42, "Learning-rate range test", size=TITLE)
    lowest = int(smoothed.argmin())
    sheet.write(0.45, 0.74, f"{chosen:.2g} is used: {why}", size=TEXT, color=MUTED)
    axes = sheet.axes(left, top, width, height)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=8))
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.plot(rates, losses, color=MUTED, linewidth=0, marker="o", markersize=2.5)
    axes.plot(rates, smoothed, color=BLUE, linewidth=1.8)
    axes.plot(rates[lowest], smoothed[lowest], color=BLUE, marker="o", markersize=6)
    axes.axvline(chosen, color=ORANGE, linewidth=1.5)
    # What broke away would flatten the part that matters.
    low, high = float(smoothed.min()), float(max(smoothed[: lowest + 1].max(), losses[0]))
    room = max(high - low, 0.05 * abs(high), 1e-3)
    axes.set_ylim(min(low, float(losses.min())) - 0.08 * room, high + 0.25 * room)
    axes.tick_params(labelsize=SMALL, colors=INK)
    sheet.write(0.45, top - 0.08, "loss", size=SMALL, color=MUTED)
    sheet.write(left + width / 2, HEIGHT - 0.15, "learning rate", size=SMALL, color=MUTED, align="center")
    sheet.save(path)
