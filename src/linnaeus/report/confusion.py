"""Which class is taken for which."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import to_rgb

from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.sheet import (
    BLUE,
    FAINT,
    INK,
    MUTED,
    ORANGE,
    SMALL,
    TEXT,
    TITLE,
    Sheet,
    percent,
    shorten,
    text_width,
)

NUMBERS_UP_TO = 20  # classes; with more, a cell has no room for its count
NAMES_UP_TO = 120  # classes; with more, a row has no room for its name
LISTED = 20  # pairs beside a matrix without numbers
GAMMA = 0.55  # color is share ** GAMMA: 2 % of a class taken for another must be seen
LABEL = 2.0  # inches at most for a class name


def confusion(
    matrix: np.ndarray,
    names: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> str:
    """Draw a confusion matrix: rows are true classes, columns predicted ones, counts in the cells.

    `matrix` is (classes, classes) of counts. A cell's color is its share of the row: blue where predicted is true,
    orange where not. Up to 20 classes the counts stand in the cells and each row ends with how many were right; with
    more, the pairs most often confused are listed beside. Returns the characters that no font on this machine has.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    classes = len(names)
    assert matrix.shape == (classes, classes), f"{matrix.shape} counts for {classes} names"
    fonts = families_for([title, *names])
    cell = _cell(matrix, fonts)
    size = min(TEXT, cell * 72 * 0.78)  # points: a name is lower than its row
    side = cell * classes
    labels = [shorten(name, fonts, size, LABEL) for name in names] if classes <= NAMES_UP_TO else []
    widest = max((text_width(label, fonts, size) for label in labels), default=0.35)
    left, top = 0.62 + widest, 1.16
    most = matrix.sum(axis=1).max(initial=0)
    beside = 0.8 + text_width(f"{most:,} of {most:,}", fonts, SMALL) if classes <= NUMBERS_UP_TO else 3.6
    # Names under the columns stand at 45 degrees where they have room, upright where not.
    below = (widest if classes > NUMBERS_UP_TO else 0.71 * widest + 0.1) + 0.1
    sheet = Sheet(max(left + side + beside + 0.2, 5.4), top + max(side, 1.2) + below + 0.66, fonts)
    _write_header(sheet, matrix, title)
    _draw_cells(sheet, matrix, left, top, cell)
    _write_names(sheet, labels, size, left, top, cell)
    sheet.write(left + side / 2, top - 0.1, "predicted", size=SMALL, color=MUTED, align="center")
    sheet.write(0.34, top + side / 2, "true", size=SMALL, color=MUTED, align="center", rotation=90)
    if classes <= NUMBERS_UP_TO:
        _write_counts(sheet, matrix, left, top, cell)
    else:
        _write_pairs(sheet, matrix, names, left + side + 0.35, top)
        _write_indices(sheet, classes, left, top, cell)
    _draw_key(sheet, left, sheet.height - 0.3)
    sheet.save(path)
    return fonts.missing


def _cell(matrix: np.ndarray, fonts: Fonts) -> float:
    """Side of a cell, inches: wide enough for its number to be read, where there are numbers."""
    classes = len(matrix)
    if classes > NUMBERS_UP_TO:
        return 8.6 / classes
    return max(0.36, min(0.95, 5.0 / classes), text_width(f"{matrix.max():,}", fonts, 7.0) / 0.85)


def shares(matrix: np.ndarray) -> np.ndarray:
    """Counts -> share of each row, float; a class without images has zeros."""
    rows = matrix.sum(axis=1, keepdims=True)
    return np.divide(matrix, rows, out=np.zeros(matrix.shape), where=rows > 0)


def confused_pairs(matrix: np.ndarray, most: int) -> list[tuple[int, int, int]]:
    """(true, predicted, count) off the diagonal, the largest count first, then the largest share of its class."""
    true, predicted = np.nonzero(matrix * (1 - np.eye(len(matrix), dtype=matrix.dtype)))
    count, share = matrix[true, predicted], shares(matrix)[true, predicted]
    order = np.lexsort((predicted, true, -share, -count))[:most]
    return [(int(true[i]), int(predicted[i]), int(count[i])) for i in order]


def _colors(share: np.ndarray, color: str) -> np.ndarray:
    """Shares in [0, 1] -> RGB from white to `color`."""
    strength = np.clip(share, 0, 1)[..., None] ** GAMMA
    return 1 - strength * (1 - np.array(to_rgb(color)))


def _write_header(sheet: Sheet, matrix: np.ndarray, title: str) -> None:
    total, right = int(matrix.sum()), int(np.trace(matrix))
    heading = shorten(title or "Confusion matrix", sheet.fonts, TITLE, sheet.width - 0.6)
    sheet.write(0.3, 0.44, heading, size=TITLE)
    says = f"{right:,} of {total:,} right, {percent(right / total)}" if total else "no images"
    sheet.write(0.3, 0.72, says, color=MUTED)


def _draw_cells(sheet: Sheet, matrix: np.ndarray, left: float, top: float, cell: float) -> None:
    classes = len(matrix)
    share = shares(matrix)
    image = np.where(np.eye(classes, dtype=bool)[..., None], _colors(share, BLUE), _colors(share, ORANGE))
    axes = sheet.axes(left, top, cell * classes, cell * classes)
    axes.imshow(image, interpolation="nearest", aspect="auto", extent=(0, classes, classes, 0))
    axes.set_axis_off()
    if classes <= NAMES_UP_TO:
        edges = np.arange(classes + 1)
        weight = 1.0 if classes <= NUMBERS_UP_TO else 0.3
        axes.hlines(edges, 0, classes, color=FAINT, linewidth=weight, clip_on=False)
        axes.vlines(edges, 0, classes, color=FAINT, linewidth=weight, clip_on=False)
    else:
        axes.plot([0, classes, classes, 0, 0], [0, 0, classes, classes, 0], color=FAINT, linewidth=1, clip_on=False)


def _write_names(sheet: Sheet, labels: list[str], size: float, left: float, top: float, cell: float) -> None:
    bottom = top + cell * len(labels)
    upright = len(labels) > NUMBERS_UP_TO
    flat = max((text_width(label, sheet.fonts, size) for label in labels), default=0.0) < cell - 0.1
    lift = size / 72 * 0.36  # from the middle of a small letter down to its baseline
    for i, label in enumerate(labels):
        middle = (i + 0.5) * cell
        sheet.write(left - 0.08, top + middle + lift, label, size=size, align="right")
        if flat:
            sheet.write(left + middle, bottom + 0.2, label, size=size, align="center")
        elif upright:
            sheet.write(left + middle + lift, bottom + 0.06, label, size=size, align="right", rotation=90)
        else:
            sheet.write(left + middle + 0.06, bottom + 0.13, label, size=size, align="right", rotation=45)


def _write_counts(sheet: Sheet, matrix: np.ndarray, left: float, top: float, cell: float) -> None:
    """The count in each cell that has one; at the end of each row, how many of the class were right."""
    share, rows = shares(matrix), matrix.sum(axis=1)
    classes = len(matrix)
    lift = TEXT / 72 * 0.36
    size = min(TEXT, TEXT * 0.85 * cell / text_width(f"{matrix.max():,}", sheet.fonts, TEXT))
    for i in range(classes):
        y = top + (i + 0.5) * cell + lift
        for j in np.flatnonzero(matrix[i]):
            text = f"{matrix[i, j]:,}"
            strong = share[i, j] ** GAMMA > (0.6 if i == j else 0.75)
            sheet.write(left + (j + 0.5) * cell, y, text, size=size, align="center", color="white" if strong else INK)
        x = left + cell * classes + 0.16
        if rows[i]:
            sheet.write(x, y, percent(share[i, i], 0))
            sheet.write(x + 0.5, y, f"{matrix[i, i]:,} of {rows[i]:,}", size=SMALL, color=MUTED)
        else:
            sheet.write(x, y, "no images", size=SMALL, color=MUTED)
    sheet.write(left + cell * classes + 0.16, top - 0.1, "right", size=SMALL, color=MUTED)


def _write_pairs(sheet: Sheet, matrix: np.ndarray, names: Sequence[str], left: float, top: float) -> None:
    """The most confused pairs: true over predicted, with count and share."""
    sheet.write(left, top + 0.05, "Most often confused", size=TEXT + 1, bold=True)
    pairs = confused_pairs(matrix, LISTED)
    rows = matrix.sum(axis=1)
    for i, (true, predicted, count) in enumerate(pairs):
        y = top + 0.38 + 0.41 * i
        sheet.write(left, y, shorten(names[true], sheet.fonts, TEXT, 2.2))
        sheet.write(left + 3.25, y, f"{count:,} of {rows[true]:,}", align="right")
        sheet.write(
            left, y + 0.155, shorten(f"→ {names[predicted]}", sheet.fonts, SMALL, 2.6), size=SMALL, color=ORANGE
        )
        sheet.write(left + 3.25, y + 0.155, percent(count / rows[true], 0), size=SMALL, color=MUTED, align="right")
    if not pairs:
        sheet.write(left, top + 0.38, "nothing: every image is right", color=MUTED)


def _write_indices(sheet: Sheet, classes: int, left: float, top: float, cell: float) -> None:
    """Where the names have no room: the class's index, here and there."""
    if classes <= NAMES_UP_TO:
        return
    step = 20 if classes <= 300 else 100
    for i in range(0, classes, step):
        middle = (i + 0.5) * cell
        sheet.write(left - 0.08, top + middle + 0.04, str(i), size=SMALL, color=MUTED, align="right")
        sheet.write(left + middle, top + cell * classes + 0.16, str(i), size=SMALL, color=MUTED, align="center")


def _draw_key(sheet: Sheet, left: float, y: float) -> None:
    """Two strips of color, from none of a class to all of it."""
    left = min(left, sheet.width - 4.95)
    for x, color, word in ((left, BLUE, "right"), (left + 1.5, ORANGE, "wrong")):
        axes = sheet.axes(x, y - 0.1, 0.8, 0.11)
        axes.imshow(_colors(np.linspace(0, 1, 60), color)[None], aspect="auto", interpolation="nearest")
        axes.set_axis_off()
        sheet.write(x + 0.88, y, word, size=SMALL, color=MUTED)
    sheet.write(left + 3.0, y, "0 to 100 % of the true class", size=SMALL, color=MUTED)
