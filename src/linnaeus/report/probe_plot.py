"""The plot of a probe: accuracy with its interval against the time for an image, and the Pareto front."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from linnaeus.report.canvas import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    PAGE,
    SMALL,
    TEXT,
    new_figure,
    save_figure,
    shorten,
    style_axes,
    write_title,
)
from linnaeus.report.fonts import Fonts, families_for

WIDTH, HEIGHT = 8.6, 5.0  # inches
LABEL = 2.4  # inches that a name may take
KEY = "filled, dashed line: no other backbone is both more accurate and faster (Pareto front)"


@dataclass(frozen=True)
class ProbedBackbone:
    """A point of the plot."""

    name: str
    accuracy: float
    interval: tuple[float, float]
    milliseconds: float
    """Time of the network for an image."""
    on_front: bool
    """Whether no other backbone is both more accurate and faster."""


def probe_plot(backbones: Sequence[ProbedBackbone], title: str, says: str, path: str | os.PathLike[str]) -> str:
    """Draw backbones. Returns the characters that no font on this machine has."""
    fonts = families_for([title, *(b.name for b in backbones)])
    figure = new_figure(WIDTH, HEIGHT)
    write_title(figure, title, fonts)
    figure.text(0.2 / WIDTH, 1 - 0.5 / HEIGHT, fonts.text(says), size=TEXT, color=MUTED, **fonts.style)
    axes = figure.add_subplot()
    style_axes(axes, fonts)
    axes.set_title(KEY, loc="left", pad=18, size=SMALL, color=MUTED, **fonts.style)
    _scale(axes, backbones, fonts)
    # The line of the front is a staircase: between two backbones only the faster one is available.
    front = sorted((b for b in backbones if b.on_front), key=lambda b: b.milliseconds)
    axes.step(
        [b.milliseconds for b in front],
        [100 * b.accuracy for b in front],
        where="post",
        color=ORANGE,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        zorder=2,
    )
    for backbone in backbones:
        _draw(axes, backbone)
    for backbone, y in zip(backbones, _label_heights(axes, backbones), strict=True):
        _label(axes, backbone, y, fonts)
    save_figure(figure, path)
    return fonts.missing


def _scale(axes: Axes, backbones: Sequence[ProbedBackbone], fonts: Fonts) -> None:
    times = [b.milliseconds for b in backbones]
    axes.set_xscale("log")
    # At the right of the slowest there is room for its name.
    axes.set_xlim(min(times) / 1.5, max(times) * max(2.0, (max(times) / min(times)) ** 0.6))
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("milliseconds per image, the network alone", size=TEXT, color=MUTED, loc="left", **fonts.style)
    low, high = min(b.interval[0] for b in backbones), max(b.interval[1] for b in backbones)
    room = max(high - low, 0.01)
    axes.set_ylim(100 * (low - 0.08 * room), 100 * (high + 0.08 * room))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(v, 6):g} %"))


def _draw(axes: Axes, backbone: ProbedBackbone) -> None:
    color = ORANGE if backbone.on_front else BLUE
    low, high = (100 * bound for bound in backbone.interval)
    x, y = backbone.milliseconds, 100 * backbone.accuracy
    axes.plot([x, x], [low, high], color=color, linewidth=1.4, alpha=0.7, solid_capstyle="butt", zorder=3)
    axes.plot(
        x, y, marker="o", markersize=6, markerfacecolor=color if backbone.on_front else PAGE,
        markeredgecolor=color, markeredgewidth=1.4, zorder=4,
    )  # fmt: skip


def _label_heights(axes: Axes, backbones: Sequence[ProbedBackbone]) -> list[float]:
    """Heights (%) of the names, moved apart so that none covers another one."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.045
    heights = np.array([100 * b.accuracy for b in backbones]) + gap / 4
    order = np.argsort(heights)
    for k in range(1, len(order)):
        heights[order[k]] = max(heights[order[k]], heights[order[k - 1]] + gap)
    return heights.tolist()


def _label(axes: Axes, backbone: ProbedBackbone, y: float, fonts: Fonts) -> None:
    name = shorten(backbone.name, fonts, SMALL, LABEL)
    axes.annotate(
        name,
        (backbone.milliseconds, 100 * backbone.accuracy),
        xytext=(backbone.milliseconds * 1.03, y),
        size=SMALL,
        color=INK if backbone.on_front else MUTED,
        va="bottom",  # above the line of the front
        path_effects=[withStroke(linewidth=2.5, foreground=PAGE)],
        **fonts.style,
    )
