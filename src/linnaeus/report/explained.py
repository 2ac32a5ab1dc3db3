"""One image explained on one sheet: what the network saw, where it sees the class, and what looks like it."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

from linnaeus.explain.neighbors import Neighbor
from linnaeus.explain.saliency import Explanation
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.grid import BAR, GAP, LINE, MARGIN, chance, fit_square
from linnaeus.report.heat import overlay, ramp
from linnaeus.report.sheet import (
    BLUE,
    DPI,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    RED,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    shorten,
    text_width,
    wrap,
)

SAW = "what the network saw"
METHODS = {"occlusion": "occlusion: where covering hurts most", "integrated-gradients": "integrated gradients"}
NOTHING = "nothing speaks for it"
SCALE = (1.1, 0.1)  # inches: the scale of the heat
TILE = 1.3  # inches: about as wide as the images that look alike


def draw_explanation(
    explanation: Explanation,
    path: str | os.PathLike[str],
    *,
    true: int | None = None,
    neighbors: Sequence[Neighbor] = (),
    trained: bool = True,
) -> str:
    """Draw an explanation: the image, a panel a map, and where there are `neighbors`, those.

    `true` is the class that the image has, where known; `trained` says whether the neighbors are training images.
    Returns the characters that no font on this machine has.
    """
    prediction = explanation.prediction
    maps = list(explanation.maps.items())
    columns = _columns(len(maps) + 1)
    side = {2: 2.9, 3: 2.2}.get(columns, 1.8)
    width = columns * (side + GAP) - GAP
    texts = [prediction.name, explanation.name, prediction.path, *explanation.maps, *(n.name for n in neighbors)]
    fonts = families_for([*texts, prediction.names[true] if true is not None else "", "✓✗"])
    heading = _heading(explanation, true, fonts, width)
    top = MARGIN + 0.2 + 0.19 * (len(heading) - 1) + 0.16
    rows = math.ceil((len(maps) + 1) / columns)
    below = top + rows * (side + 0.3)
    across = max(2, min(len(neighbors), round(width / TILE)))
    tile = (width - (across - 1) * GAP) / across
    labels = [wrap(n.name, fonts, SMALL, tile - text_width("0.00", fonts, SMALL) - 0.08, 2) for n in neighbors]
    heights = [tile + BAR + 0.1 + LINE * max(map(len, labels[i : i + across])) for i in range(0, len(labels), across)]
    end = below + 0.34 + (0.5 + sum(heights) + 0.1 * (len(heights) - 1) if neighbors else 0.0)
    sheet = Sheet(width + 2 * MARGIN, end + MARGIN - 0.12, fonts)
    for i, (text, size, color) in enumerate(heading):
        sheet.write(MARGIN, MARGIN + 0.2 + 0.19 * i, text, size=size, color=color)
    sheet.write(MARGIN + width, MARGIN + 0.2, chance(prediction.probability), size=TITLE, align="right")
    _draw_panels(sheet, explanation, maps, columns, side, top)
    _draw_scale(sheet, explanation, below + 0.12, width)
    if neighbors:
        _draw_neighbors(sheet, explanation, neighbors, labels, heights, below + 0.72, across, tile, trained)
    sheet.save(path)
    return fonts.missing


def _columns(panels: int) -> int:
    """Two panels side by side, three or six in rows of three, others in rows of up to four."""
    return panels if panels <= 3 else 3 if panels in (5, 6, 9) else 4


def _heading(explanation: Explanation, true: int | None, fonts: Fonts, width: float) -> list[tuple[str, float, str]]:
    """(text, size, color) of each line: the predicted class, what else is to be said of it, the file."""
    prediction = explanation.prediction
    room = width - text_width(">99 %", fonts, TITLE) - 0.15
    lines = [(shorten(prediction.name, fonts, TITLE, room), TITLE, INK)]
    if prediction.unsure:
        lines.append(("unsure: less likely than the model was calibrated to answer from", TEXT, ORANGE))
    if explanation.target != prediction.index:
        text = f"explained: {explanation.name}, {chance(explanation.probability)}"
        lines.append((shorten(text, fonts, TEXT, width), TEXT, BLUE))
    if true is not None:
        right = true == prediction.index
        text = "✓ right" if right else f"✗ true: {prediction.names[true]}"
        lines.append((shorten(text, fonts, TEXT, width), TEXT, GREEN if right else RED))
    lines.append((_end_of(prediction.path, fonts, width), SMALL, MUTED))
    return lines


def _end_of(path: str, fonts: Fonts, width: float) -> str:
    """As much of a path's end as fits: the file's name says more than the folders."""
    parts = path.split("/")
    for first in range(len(parts)):
        text = "/".join(parts[first:]) if first == 0 else "…/" + "/".join(parts[first:])
        if text_width(text, fonts, SMALL) <= 0.97 * width:  # hinting makes many narrow letters wider than they are
            return text
    return shorten(parts[-1], fonts, SMALL, 0.97 * width)


def _draw_panels(
    sheet: Sheet,
    explanation: Explanation,
    maps: Sequence[tuple[str, np.ndarray]],
    columns: int,
    side: float,
    top: float,
) -> None:
    image = explanation.prediction.image
    assert image is not None
    pixels = round(side * DPI)
    panels = [(fit_square(image, pixels), SAW)]
    for name, heat in maps:
        caption = METHODS.get(name, f"Grad-CAM at {name}")
        panels.append((overlay(image, heat, pixels), caption if heat.any() else f"{caption}: {NOTHING}"))
    for i, (panel, caption) in enumerate(panels):
        left, upper = MARGIN + (i % columns) * (side + GAP), top + (i // columns) * (side + 0.3)
        sheet.image(round(left * DPI), round(upper * DPI), panel)
        sheet.write(left, upper + side + 0.16, shorten(caption, sheet.fonts, SMALL, side), size=SMALL, color=MUTED)


def _draw_scale(sheet: Sheet, explanation: Explanation, y: float, width: float) -> None:
    """What the colors mean."""
    length, height = SCALE
    right = MARGIN + width
    sheet.write(right, y + 0.085, "most", size=SMALL, color=MUTED, align="right")
    left = right - text_width("most", sheet.fonts, SMALL) - 0.08 - length
    sheet.image(round(left * DPI), round(y * DPI), ramp(round(length * DPI), round(height * DPI)))
    sheet.write(left - 0.08, y + 0.085, "nothing", size=SMALL, color=MUTED, align="right")
    room = left - MARGIN - text_width("nothing", sheet.fonts, SMALL) - 0.25
    text = shorten(f"how much each place speaks for {explanation.name}", sheet.fonts, SMALL, room)
    sheet.write(MARGIN, y + 0.085, text, size=SMALL)


def _draw_neighbors(
    sheet: Sheet,
    explanation: Explanation,
    neighbors: Sequence[Neighbor],
    labels: Sequence[Sequence[str]],
    heights: Sequence[float],
    top: float,
    across: int,
    tile: float,
    trained: bool,
) -> None:
    """Tiles with their class, blue under those of the predicted class and orange under the others."""
    prediction = explanation.prediction
    same = [n.label == prediction.classes[prediction.index] for n in neighbors]
    what = "training images" if trained else "images"
    sheet.write(MARGIN, top - 0.14, f"most like it among the {what}, by cosine", size=TEXT)
    said = f"{sum(same)} of {len(same)} are of the predicted class"
    sheet.write(sheet.width - MARGIN, top - 0.14, said, size=SMALL, color=MUTED, align="right")
    pixels = round(tile * DPI)
    for i, (neighbor, lines) in enumerate(zip(neighbors, labels, strict=True)):
        left = MARGIN + (i % across) * (tile + GAP)
        upper = top + sum(heights[: i // across]) + 0.1 * (i // across)
        color = np.array(to_rgb(BLUE if same[i] else ORANGE))
        bar = np.broadcast_to((255 * color).round().astype(np.uint8), (round(BAR * DPI), pixels, 3))
        image = np.concatenate([fit_square(neighbor.image, pixels), bar])
        sheet.image(round(left * DPI), round(upper * DPI), image)
        y = upper + tile + BAR + 0.16
        sheet.write(left + tile, y, f"{neighbor.similarity:.2f}", size=SMALL, color=MUTED, align="right")
        for line in lines:
            sheet.write(left, y, line, size=SMALL)
            y += LINE
