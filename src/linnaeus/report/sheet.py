"""What every plot is drawn on: a sheet measured in inches, its colors, text that fits, and a file written whole.

Nothing here touches pyplot or matplotlib's settings: plots may be drawn from several threads, in anyone's process.
"""

from __future__ import annotations

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from linnaeus.errors import UserError
from linnaeus.files import atomic
from linnaeus.report.fonts import Fonts

DPI = 150
INK, MUTED, FAINT, GROUND = "#1b2530", "#66727f", "#dfe3e8", "#f2f4f6"
# Told apart by readers with any kind of color vision (after Okabe and Ito 2008), and in gray by their lightness.
BLUE, ORANGE = "#0a6ebd", "#d9660a"
GREEN, RED = "#1a7f4b", "#c62f3b"
TITLE, TEXT, SMALL = 13.0, 9.0, 8.0  # points
FORMATS = ("png", "jpg", "jpeg", "webp", "svg", "pdf")
MAX_PIXELS = 2**15  # a side; Agg refuses 2**16


class Sheet:
    """A figure of `width` x `height` inches; positions are inches from its upper left corner."""

    def __init__(self, width: float, height: float, fonts: Fonts):
        self.width, self.height, self.fonts = width, height, fonts
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white", edgecolor="none")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without a frame, their area given in inches."""
        bottom = self.height - top - height
        box = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, facecolor="none", label=f"{left:.4f} {top:.4f}")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.tick_params(length=0, labelsize=SMALL, labelcolor=MUTED, labelfontfamily=self.fonts.families, pad=5)
        axes.grid(False)
        return axes

    def write(
        self,
        x: float,
        y: float,
        text: str,
        *,
        size: float = TEXT,
        color: str = INK,
        align: str = "left",
        vertical: str = "baseline",
        bold: bool = False,
        rotation: float = 0,
    ) -> None:
        """Text at (x, y), taken literally: a dollar sign in a class name starts no formula."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            self.fonts.text(text),
            fontsize=size,
            color=color,
            ha=align,
            va=vertical,
            family=self.fonts.families,
            weight="bold" if bold else "normal",
            rotation=rotation,
            rotation_mode="anchor",
            parse_math=False,
            usetex=False,
        )

    def image(self, left: int, top: int, pixels: np.ndarray) -> None:
        """(H, W, 3) uint8 pixels, drawn one to one; `left` and `top` in pixels of the sheet."""
        height = round(self.height * DPI)
        self.figure.figimage(pixels, left, height - top - pixels.shape[0], origin="upper")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the sheet whole or not at all; its format is the path's suffix, PNG where there is none."""
        path = Path(path)
        kind = path.suffix.lower().lstrip(".") or "png"
        if kind not in FORMATS:
            raise UserError(f"{path}: a plot cannot be written as .{kind}; use one of {', '.join(FORMATS)}")
        keep: dict[str, Any] = {"dpi": DPI, "facecolor": "white", "edgecolor": "none", "bbox_inches": None}
        if kind == "png":  # the default level 6 takes twice the time for a few percent of the size
            keep["pil_kwargs"] = {"compress_level": 4}
        with atomic(path) as temporary:
            self.figure.savefig(temporary, format=kind, **keep)


def text_width(text: str, fonts: Fonts, size: float, bold: bool = False) -> float:
    """Width of one line of text, inches."""
    return _text_width(fonts.text(text), tuple(fonts.families), size, bold)


@lru_cache(maxsize=8192)  # the same few names stand under many images
def _text_width(text: str, families: tuple[str, ...], size: float, bold: bool) -> float:
    properties = FontProperties(family=list(families), size=size, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(text, properties, False)[0] / 72


def shorten(text: str, fonts: Fonts, size: float, width: float) -> str:
    """`text`, or as much of its beginning as fits `width` inches, with an ellipsis."""
    text = fonts.text(text).strip()
    if text_width(text, fonts, size) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if text_width(text[:middle].rstrip() + "…", fonts, size) <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…"


def wrap(text: str, fonts: Fonts, size: float, width: float, lines: int) -> list[str]:
    """`text` in at most `lines` lines of `width` inches, broken at blanks if there are any; the last is shortened."""
    rest = fonts.text(text).strip()
    wrapped: list[str] = []
    while len(wrapped) < lines - 1 and text_width(rest, fonts, size) > width:
        end = len(shorten(rest, fonts, size, width)) - 1  # the ellipsis is no part of it
        at = max(rest.rfind(" ", 0, end + 1), *(rest.rfind(c, 0, end) + 1 for c in "_-/"))
        # A break inside a word is right in Chinese, and better than a nearly empty line elsewhere.
        end = at if at > end // 3 else max(end, 1)
        wrapped.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*wrapped, shorten(rest, fonts, size, width)]


def percent(share: float, digits: int = 1) -> str:
    """0.934 -> '93.4 %'. Not a number gives a dash."""
    return f"{100 * share:.{digits}f} %" if math.isfinite(share) else "–"
