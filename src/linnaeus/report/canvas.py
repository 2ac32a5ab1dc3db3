"""What every figure is drawn with: axes, a canvas measured in inches, text that fits, and saving.

Nothing here uses pyplot or changes matplotlib's settings, so figures can be drawn in any process and thread.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from linnaeus.errors import UserError
from linnaeus.files import atomic
from linnaeus.report.fonts import Fonts
from linnaeus.report.palette import BLUE, DPI, FAINT, INK, MUTED, PAGE, TEXT, TITLE

FORMATS = ("png", "jpg", "jpeg", "webp", "svg", "pdf")
MAX_PIXELS = 2**15  # per side; Agg refuses 2**16


def new_figure(width: float, height: float, margin: float = 0.15) -> Figure:
    """A figure of `width` x `height` inches whose axes are arranged by matplotlib so that no text is cut off."""
    layout = ConstrainedLayoutEngine(w_pad=margin, h_pad=margin, wspace=0.05, hspace=0.05)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAGE, edgecolor="none", layout=layout)
    FigureCanvasAgg(figure)
    return figure


def muted(fonts: Fonts, size: float = TEXT) -> dict[str, Any]:
    """Properties of a text beside what is drawn: a label of an axis, a note."""
    return {"size": size, "color": MUTED, **fonts.style}


def write_title(figure: Figure, title: str, fonts: Fonts, subtitle: str = "") -> None:
    """A title above all axes, shortened to the width of the figure, and a line below it."""
    width, height = figure.get_figwidth(), figure.get_figheight()
    text = shorten(title, fonts, TITLE, width - 0.6)
    figure.suptitle(text, x=0.2 / width, ha="left", size=TITLE, color=INK, **fonts.style)
    if subtitle:
        figure.text(0.2 / width, 1 - 0.5 / height, fonts.text(subtitle), **muted(fonts))


def write_panel_title(axes: Axes, title: str, note: str, fonts: Fonts, pad: float = 10) -> None:
    """The title of one panel of a figure, and a note at its right end; `pad` points above the panel."""
    axes.set_title(title, loc="left", pad=pad, size=TEXT + 1.5, color=INK, weight="bold", **fonts.style)
    axes.set_title(note, loc="right", pad=pad, **muted(fonts))


def style_axes(axes: Axes, fonts: Fonts) -> None:
    """Only a line at the bottom and faint horizontal grid lines; tick labels without ticks."""
    for side, spine in axes.spines.items():
        spine.set(visible=side == "bottom", color=MUTED, linewidth=0.9)
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.grid(axis="y", color=FAINT, linewidth=0.8, linestyle="-")
    axes.tick_params(which="both", length=0, labelsize=TEXT, labelcolor=MUTED, labelfontfamily=fonts.families, pad=5)


def number_ticks(axis: Axis, unit: str = "") -> None:
    """About five ticks at round numbers, each with its unit."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{round(v, 9):g}{unit}".replace("-", "−")))


def log_ticks(axis: Axis, count: int, marks: Sequence[float] = (1.0,)) -> None:
    """At most `count` labelled ticks at the `marks` times powers of ten, on a logarithmic axis."""
    axis.set_major_locator(LogLocator(10, subs=marks, numticks=count))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_formatter(NullFormatter())


def draw_ring(axes: Axes, x: float, y: float) -> Artist:
    """A ring around the point of a line that was chosen."""
    style: dict[str, Any] = {"markersize": 8.5, "markerfacecolor": PAGE, "markeredgecolor": BLUE, "markeredgewidth": 2}
    return axes.plot(x, y, "o", clip_on=False, zorder=5, **style)[0]


class Canvas:
    """A figure of `width` x `height` inches; positions are inches from its upper left corner."""

    def __init__(self, width: float, height: float, fonts: Fonts):
        self.width, self.height, self.fonts = width, height, fonts
        self.figure = Figure(figsize=(width, height), dpi=DPI, facecolor=PAGE, edgecolor="none")
        FigureCanvasAgg(self.figure)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without frame and ticks that cover the given area."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self.figure.add_axes(box, label=f"{left:.4f} {top:.4f}")
        axes.set_axis_off()
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
        rotation: float = 0,
    ) -> None:
        """Write one line of text with its baseline at (x, y)."""
        self.figure.text(
            x / self.width,
            1 - y / self.height,
            self.fonts.text(text),
            size=size,
            color=color,
            ha=align,
            va="baseline",
            rotation=rotation,
            rotation_mode="anchor",
            **self.fonts.style,
        )

    def image(self, left: int, top: int, pixels: np.ndarray) -> None:
        """Show (H, W, 3) uint8 pixels at their own resolution; `left` and `top` are pixels of the canvas."""
        height = round(self.height * DPI)
        self.figure.figimage(pixels, left, height - top - pixels.shape[0], origin="upper")

    def save(self, path: str | os.PathLike[str]) -> None:
        save_figure(self.figure, path)


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure completely or not at all. The suffix of `path` is the format, PNG if there is none."""
    path = Path(path)
    kind = path.suffix.lower().lstrip(".") or "png"
    if kind not in FORMATS:
        raise UserError(f"{path}: a plot cannot be written as .{kind}; use one of {', '.join(FORMATS)}")
    options: dict[str, Any] = {"dpi": DPI, "facecolor": PAGE, "edgecolor": "none", "bbox_inches": None}
    with atomic(path) as temporary:
        if kind != "png":
            figure.savefig(temporary, format=kind, **options)
            return
        pixels = io.BytesIO()
        figure.savefig(pixels, format="rgba", **options)
        image = Image.frombuffer("RGBA", figure.canvas.get_width_height(), pixels.getvalue())
        # Opaque everywhere. Zlib that looks for runs only takes a third of the time for photographs, at the same size.
        written_by = PngInfo()
        written_by.add_text("Software", "Linnaeus, Matplotlib")  # by which a plot may be replaced
        image.convert("RGB").save(temporary, "PNG", dpi=(DPI, DPI), compress_type=zlib.Z_RLE, pnginfo=written_by)


def text_width(text: str, fonts: Fonts, size: float) -> float:
    """Width of one line of text, inches."""
    return _text_width(fonts.text(text), tuple(fonts.families), size)


@lru_cache(maxsize=8192)  # the same few names stand under many images
def _text_width(text: str, families: tuple[str, ...], size: float) -> float:
    properties = FontProperties(family=list(families), size=size)
    return text_to_path.get_text_width_height_descent(text, properties, False)[0] / 72


def shorten(text: str, fonts: Fonts, size: float, width: float) -> str:
    """`text`, or its beginning with an ellipsis, within `width` inches."""
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
    """`text` in at most `lines` lines of `width` inches, broken at spaces if possible; the last is shortened."""
    rest = fonts.text(text).strip()
    wrapped: list[str] = []
    while len(wrapped) < lines - 1 and text_width(rest, fonts, size) > width:
        end = len(shorten(rest, fonts, size, width)) - 1  # without the ellipsis
        at = max(rest.rfind(" ", 0, end + 1), *(rest.rfind(c, 0, end) + 1 for c in "_-/"))
        # Chinese breaks inside words; elsewhere that is still better than a nearly empty line.
        end = at if at > end // 3 else max(end, 1)
        wrapped.append(rest[:end].rstrip())
        rest = rest[end:].lstrip()
    return [*wrapped, shorten(rest, fonts, size, width)]
