"""A grid of images with the prediction for each."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.colors import to_rgb
from PIL import Image

from linnaeus.report.canvas import MAX_PIXELS, Canvas, shorten, text_width, wrap
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.palette import DPI, GREEN, GROUND, INK, MUTED, PAGE, RED, SMALL, TEXT, TITLE
from linnaeus.text import probability_percent
from linnaeus.theme import PRINT

MARGIN, GAP, BAR = 0.3, 0.16, 0.045  # inches; the bar under an image has the color of its verdict
LINE = 0.165  # inches from one line of text to the next
PIXELATE_FROM = 3.0  # enlarged at least this much, an image keeps its pixels as squares: 28x28 digits stay sharp
NEUTRAL = PRINT["line"]  # of the bar where the true class is not known


@dataclass(frozen=True)
class PredictedImage:
    """An image and its prediction."""

    image: np.ndarray  # (H, W), (H, W, 1) or (H, W, 3) uint8
    predicted: str
    probability: float
    true: str | None = None  # None if it is not known
    note: str | None = None  # a word over the image, such as "unsure"

    @property
    def correct(self) -> bool | None:
        return None if self.true is None else self.true == self.predicted

    @property
    def color(self) -> str:
        return {None: INK, True: GREEN, False: RED}[self.correct]

    @property
    def mark(self) -> str:
        return {None: "", True: "✓", False: "✗"}[self.correct]

    @property
    def mark_width(self) -> float:
        """Inches."""
        return 0.16 if self.mark else 0.0


@dataclass(frozen=True)
class Caption:
    """The lines of text under an image."""

    predicted: list[str]
    true: list[str]

    @classmethod
    def of(cls, item: PredictedImage, fonts: Fonts, side: float) -> Caption:
        """At most two lines for each class name, with room for the mark and the probability."""
        room = side - item.mark_width
        predicted = wrap(item.predicted, fonts, TEXT, room - text_width("100 %", fonts, TEXT) - 0.1, 2)
        return cls(predicted, [] if item.true is None else wrap(f"true: {item.true}", fonts, SMALL, room, 2))

    @property
    def lines(self) -> int:
        return len(self.predicted) + len(self.true)


def image_grid(
    items: Sequence[PredictedImage], path: str | os.PathLike[str], *, columns: int | None = None, title: str = ""
) -> str:
    """Draw images in rows, each with its predicted class, the probability, and the true class if known.

    Correct is green with a tick, wrong is red with a cross. Images beyond what one file can hold (about 1,500) are
    left out, and the header gives their number. Returns the characters that no font on this machine has.
    """
    columns = columns or _columns(len(items))
    side = 2.5 if len(items) <= 6 else 2.0 if len(items) <= 20 else 1.7  # inches
    fonts = families_for([title, *(text for s in items for text in (s.predicted, s.true or "", s.note or ""))])
    # Formats limit the height of an image, so the rows that would exceed it are left out.
    tallest = side + BAR + 0.08 + LINE * 4 + 0.2
    shown = items[: columns * int((MAX_PIXELS / DPI - 2 * MARGIN - 0.5) / tallest)]
    captions = [Caption.of(item, fonts, side) for item in shown]
    tops = [MARGIN + (0.42 if title or any(item.mark for item in items) or len(items) > len(shown) else 0.0)]
    # Each row is as high as its longest caption.
    for first in range(0, len(shown), columns):
        lines = max(caption.lines for caption in captions[first : first + columns])
        tops.append(tops[-1] + side + BAR + 0.08 + LINE * lines + 0.2)
    canvas = Canvas(max(2 * MARGIN + columns * (side + GAP) - GAP, 4.2), tops[-1] + MARGIN - 0.2, fonts)
    _write_header(canvas, shown, title, len(items) - len(shown))
    for i, (item, caption) in enumerate(zip(shown, captions, strict=True)):
        _draw_tile(canvas, item, caption, MARGIN + (i % columns) * (side + GAP), tops[i // columns], side)
    canvas.save(path)
    return fonts.missing


def _columns(n: int) -> int:
    """A number of columns that makes the grid somewhat wider than high and leaves few gaps in the last row."""
    target = min(max(math.ceil(math.sqrt(1.15 * n)), 1), 16)
    return min(range(max(target - 1, 1), target + 2), key=lambda columns: (-n % columns, abs(columns - target)))


def _write_header(canvas: Canvas, items: Sequence[PredictedImage], title: str, left_out: int) -> None:
    """The title, and at the right the number of correct and wrong images, which also explains the marks."""
    y, right = MARGIN + 0.14, canvas.width - MARGIN
    verdicts = [item.correct for item in items if item.correct is not None]
    entries = []
    if verdicts:
        entries += [(f"✗ {verdicts.count(False)} wrong", RED), (f"✓ {verdicts.count(True)} correct", GREEN)]
    if left_out:
        entries.append((f"{left_out} more are left out", MUTED))
    for text, color in entries:
        canvas.write(right, y, text, color=color, align="right")
        right -= text_width(text, canvas.fonts, TEXT) + 0.18
    # A long title goes into two smaller lines beside the counts.
    if text_width(title, canvas.fonts, TITLE) <= right - MARGIN:
        canvas.write(MARGIN, y, title, size=TITLE)
        return
    for i, line in enumerate(wrap(title, canvas.fonts, TEXT + 1, right - MARGIN, 2)):
        canvas.write(MARGIN, y - 0.08 + 0.19 * i, line, size=TEXT + 1)


def _draw_tile(canvas: Canvas, item: PredictedImage, caption: Caption, left: float, top: float, side: float) -> None:
    pixels = fit_square(item.image, round(side * DPI))
    canvas.image(round(left * DPI), round(top * DPI), with_bar(pixels, item.color if item.mark else NEUTRAL))
    y = top + side + BAR + 0.17
    x = left + item.mark_width
    if item.mark:
        canvas.write(left, y, item.mark, color=item.color)
    canvas.write(left + side, y, probability_percent(item.probability, 0), color=MUTED, align="right")
    for line in caption.predicted:
        canvas.write(x, y, line, color=item.color)
        y += LINE
    for line in caption.true:
        canvas.write(x, y, line, size=SMALL, color=MUTED if item.correct else INK)
        y += LINE
    if item.note:
        # A note lies on the image, on a translucent box: below it there may be no room.
        canvas.figure.text(
            (left + 0.1) / canvas.width,
            1 - (top + 0.17) / canvas.height,
            shorten(item.note, canvas.fonts, SMALL, side - 0.25),
            size=SMALL,
            color=INK,
            va="center_baseline",
            bbox={"boxstyle": "round,pad=0.3", "facecolor": PAGE, "edgecolor": "none", "alpha": 0.88},
            **canvas.fonts.style,
        )


def with_bar(pixels: np.ndarray, color: str) -> np.ndarray:
    """(H, W, 3) uint8 with a bar of a color below."""
    rgb = (255 * np.array(to_rgb(color))).round().astype(np.uint8)
    return np.concatenate([pixels, np.broadcast_to(rgb, (round(BAR * DPI), pixels.shape[1], 3))])


def fit_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """(H, W), (H, W, 1) or (H, W, 3) uint8 -> (side, side, 3): as large as fits, centered on a light background."""
    pixels = np.asarray(pixels, dtype=np.uint8)
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    image = Image.fromarray(np.ascontiguousarray(pixels)).convert("RGB")
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    filter_ = Image.Resampling.NEAREST if scale >= PIXELATE_FROM else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), GROUND)
    square.paste(image.resize(size, filter_), ((side - size[0]) // 2, (side - size[1]) // 2))
    return np.asarray(square)
