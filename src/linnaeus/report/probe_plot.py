"""The plot of a probe: accuracy with its interval against the time for an image, and the Pareto front.

The points are numbered by accuracy and named in a list beside them: names at the points cover each other from about six
backbones on.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from linnaeus.report.canvas import log_ticks, muted, new_figure, save_figure, shorten, style_axes, write_title
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.palette import BLUE, INK, MUTED, ORANGE, PAGE, SMALL
from linnaeus.text import percent

WIDTH, HEIGHT = 10.0, 5.0  # inches
LIST, LABEL, ROW = 3.8, 2.5, 0.2  # inches: width of the list and of a name in it, height of a line
ABOVE = 1.6  # inches above and below the list
KEY = "filled, dashed line: no other backbone is both more accurate and faster (Pareto front)"


@dataclass(frozen=True)
class ProbedBackbone:
    """A point of the plot."""

    name: str
    accuracy: float
    interval: tuple[float, float]
    milliseconds: float  # time of the network for an image
    on_front: bool  # whether no other backbone is both more accurate and faster


def probe_plot(backbones: Sequence[ProbedBackbone], title: str, says: str, path: str | os.PathLike[str]) -> str:
    """Draw backbones. Returns the characters that no font on this machine has."""
    fonts = families_for([title, *(b.name for b in backbones)])
    ranked = sorted(backbones, key=lambda b: -b.accuracy)
    height = max(HEIGHT, ABOVE + ROW * len(ranked))
    figure = new_figure(WIDTH, height)
    write_title(figure, title, fonts, says)
    grid = figure.add_gridspec(1, 2, width_ratios=(WIDTH - LIST, LIST))
    axes = figure.add_subplot(grid[0])
    style_axes(axes, fonts)
    axes.set_title(KEY, loc="left", pad=18, **muted(fonts, SMALL))
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
    # The most accurate last, so that it covers the others.
    for number in range(len(ranked), 0, -1):
        _draw(axes, ranked[number - 1], number, fonts)
    _list(figure.add_subplot(grid[1]), ranked, fonts)
    save_figure(figure, path)
    return fonts.missing


def _scale(axes: Axes, backbones: Sequence[ProbedBackbone], fonts: Fonts) -> None:
    times = [b.milliseconds for b in backbones]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.5, max(times) * 1.5)
    log_ticks(axes.xaxis, 12, (1.0, 2.0, 5.0))
    axes.set_xlabel("milliseconds per image, the network alone", loc="left", **muted(fonts))
    low, high = min(b.interval[0] for b in backbones), max(b.interval[1] for b in backbones)
    room = max(high - low, 0.01)
    axes.set_ylim(100 * (low - 0.08 * room), 100 * (high + 0.08 * room))
    axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(v, 6):g} %"))


def _draw(axes: Axes, backbone: ProbedBackbone, number: int, fonts: Fonts) -> None:
    """The interval, and a disk with the number: filled for a backbone of the front."""
    color = _color(backbone)
    low, high = (100 * bound for bound in backbone.interval)
    x, y = backbone.milliseconds, 100 * backbone.accuracy
    axes.plot([x, x], [low, high], color=color, linewidth=1.4, alpha=0.7, solid_capstyle="butt", zorder=3)
    # One order for a disk and its number: another disk covers both or neither.
    order = 5 - number / 1000
    axes.plot(
        x, y, marker="o", markersize=12, markerfacecolor=color if backbone.on_front else PAGE,
        markeredgecolor=color, markeredgewidth=1.2, zorder=order,
    )  # fmt: skip
    axes.annotate(
        str(number), (x, y), size=SMALL - 1, color=PAGE if backbone.on_front else color, ha="center",
        va="center_baseline", zorder=order, **fonts.style,
    )  # fmt: skip


def _color(backbone: ProbedBackbone) -> str:
    return ORANGE if backbone.on_front else BLUE


def _list(axes: Axes, ranked: Sequence[ProbedBackbone], fonts: Fonts) -> None:
    """The names in the order of their numbers, with the accuracies, from the top of otherwise empty axes."""
    axes.set_axis_off()
    for k, backbone in enumerate(ranked):
        shade = INK if backbone.on_front else MUTED
        name = shorten(backbone.name, fonts, SMALL, LABEL)
        # At the left edge the number (up to 14 points) and the name (from 22 on), at the right edge the accuracy.
        for edge, points, text, side, color in (
            (0, 14, str(k + 1), "right", _color(backbone)),
            (0, 22, name, "left", shade),
            (1, 0, percent(backbone.accuracy), "right", shade),
        ):
            axes.annotate(
                text,
                (edge, 1),
                xycoords="axes fraction",
                xytext=(points, -72 * ROW * k),
                textcoords="offset points",
                size=SMALL,
                color=color,
                ha=side,
                va="top",
                in_layout=False,
                **fonts.style,
            )
