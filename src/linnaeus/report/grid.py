"""Images with what was predicted for them."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.sheet import (
    DPI,
    GREEN,
    GROUND,
    INK,
    MAX_PIXELS,
    MUTED,
    RED,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    shorten,
    text_width,
    wrap,
)

MARGIN, GAP, BAR = 0.3, 0.16, 0.045  # inches; the bar under an image has its verdict's color
LINE = 0.165  # inches from one line of text to the next
PIXELATE_FROM = 3.0  # enlarged more than so, an image keeps its pixels as squares: 28x28 digits are not blurred


@dataclass(frozen=True)
class Shown:
    """An image and what is said under it."""

    image: np.ndarray  # (H, W), (H, W, 1) or (H, W, 3) uint8
    predicted: str
    probability: float
    true: str | None = None  # None: nobody knows
    note: str | None = None  # a word laid over the image, such as "unsure"

    @property
    def right(self) -> bool | None:
        return None if self.true is None else self.true == self.predicted

    @property
    def color(self) -> str:
        return {None: INK, True: GREEN, False: RED}[self.right]

    @property
    def mark(self) -> str:
        return {None: "", True: "✓", False: "✗"}[self.right]


def image_grid(
    shown: Sequence[Shown],
    path: str | os.PathLike[str],
    *,
    columns: int | None = None,
    title: str = "",
) -> str:
    """Draw images in rows, each with its predicted name, that name's probability, and the true name where known.

    Right is green with a tick, wrong is red with a cross. Beyond what one image file can hold (some 1,500 images) the
    rest is left out, and the sheet says so. Returns the characters that no font on this machine has.
    """
    columns = columns or _columns(len(shown))
    side = 2.5 if len(shown) <= 6 else 2.0 if len(shown) <= 20 else 1.7  # inches
    fonts = families_for([title, *(text for s in shown for text in (s.predicted, s.true or "", s.note or ""))])
    tallest = side + BAR + 0.08 + LINE * 4 + 0.2
    fitting = columns * int((MAX_PIXELS / DPI - 2 * MARGIN - 0.5) / tallest)
    names = [_names(s, fonts, side) for s in shown[:fitting]]
    tops = [MARGIN + (0.42 if title or any(s.mark for s in shown) or len(shown) > fitting else 0.0)]
    for first in range(0, len(shown[:fitting]), columns):
        lines = max(len(predicted) + len(true) for predicted, true in names[first : first + columns])
        tops.append(tops[-1] + side + BAR + 0.08 + LINE * lines + 0.2)
    sheet = Sheet(max(2 * MARGIN + columns * (side + GAP) - GAP, 4.2), tops[-1] + MARGIN - 0.2, fonts)
    _write_header(sheet, shown[:fitting], title, max(len(shown) - fitting, 0))
    for i, (s, lines_of_name) in enumerate(zip(shown, names, strict=False)):
        _draw_tile(sheet, s, lines_of_name, MARGIN + (i % columns) * (side + GAP), tops[i // columns], side)
    sheet.save(path)
    return fonts.missing


def _columns(n: int) -> int:
    """Somewhat wider than high, and with as few empty places in the last row as may be."""
    wish = min(max(math.ceil(math.sqrt(1.15 * n)), 1), 16)
    return min(range(max(wish - 1, 1), wish + 2), key=lambda columns: (-n % columns, abs(columns - wish)))


def _names(s: Shown, fonts: Fonts, side: float) -> tuple[list[str], list[str]]:
    """Lines of the predicted name, leaving room for the mark and the probability, and of the true name: two at most."""
    room = side - _mark_width(s)
    predicted = wrap(s.predicted, fonts, TEXT, room - text_width("100 %", fonts, TEXT) - 0.1, 2)
    return predicted, [] if s.true is None else wrap(f"true: {s.true}", fonts, SMALL, room, 2)


def _mark_width(s: Shown) -> float:
    return 0.16 if s.mark else 0.0


def _write_header(sheet: Sheet, shown: Sequence[Shown], title: str, left_out: int) -> None:
    """The title, and at the right how many are right: it doubles as the key to the marks."""
    y, right = MARGIN + 0.14, sheet.width - MARGIN
    counts = [(s.right, s.mark, s.color) for s in shown if s.right is not None]
    entries = []
    for verdict, mark, word, color in ((False, "✗", "wrong", RED), (True, "✓", "right", GREEN)):
        n = sum(c[0] is verdict for c in counts)
        if counts:
            entries.append((f"{mark} {n} {word}", color))
    if left_out:
        entries.append((f"{left_out} more are left out", MUTED))
    for text, color in entries:
        sheet.write(right, y, text, color=color, align="right")
        right -= text_width(text, sheet.fonts, TEXT) + 0.18
    if text_width(title, sheet.fonts, TITLE) <= right - MARGIN:
        sheet.write(MARGIN, y, title, size=TITLE)
        return
    for i, line in enumerate(wrap(title, sheet.fonts, TEXT + 1, right - MARGIN, 2)):
        sheet.write(MARGIN, y - 0.08 + 0.19 * i, line, size=TEXT + 1)


def _draw_tile(
    sheet: Sheet, s: Shown, names: tuple[list[str], list[str]], left: float, top: float, side: float
) -> None:
    pixels = fit_square(s.image, round(side * DPI))
    color = np.array(to_rgb(s.color if s.mark else "#b8c0c8"))
    bar = np.broadcast_to((255 * color).round().astype(np.uint8), (round(BAR * DPI), pixels.shape[1], 3))
    sheet.image(round(left * DPI), round(top * DPI), np.concatenate([pixels, bar]))
    y = top + side + BAR + 0.17
    x = left + _mark_width(s)
    if s.mark:
        sheet.write(left, y, s.mark, color=s.color)
    sheet.write(left + side, y, chance(s.probability), color=MUTED, align="right")
    predicted, true = names
    for line in predicted:
        sheet.write(x, y, line, color=s.color)
        y += LINE
    for line in true:
        sheet.write(x, y, line, size=SMALL, color=MUTED if s.right else INK)
        y += LINE
    if s.note:
        sheet.figure.text(
            (left + 0.1) / sheet.width,
            1 - (top + 0.17) / sheet.height,
            shorten(s.note, sheet.fonts, SMALL, side - 0.25),
            fontsize=SMALL,
            family=sheet.fonts.families,
            color=INK,
            va="center_baseline",
            bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": "none", "alpha": 0.88},
            parse_math=False,
            usetex=False,
        )


def chance(probability: float) -> str:
    """Whole percents, and never a 0 or a 100 that is not one."""
    if not math.isfinite(probability):
        return "–"
    if 0 < probability < 0.005:
        return "<1 %"
    if 0.995 <= probability < 1:
        return ">99 %"
    return f"{100 * probability:.0f} %"


def fit_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """(H, W[, 1 or 3]) uint8 -> (side, side, 3): as large as fits, centered on a light ground."""
    pixels = np.asarray(pixels, dtype=np.uint8)
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    way = Image.Resampling.NEAREST if scale >= PIXELATE_FROM else Image.Resampling.LANCZOS
    ground = Image.new("RGB", (side, side), GROUND)
    ground.paste(image.resize(size, way), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(ground)
