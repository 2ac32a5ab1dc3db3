"""The confusion matrix: one drawing for the run folder and for the report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.patches import Rectangle

from linnaeus.metrics.classification import most_confused
from linnaeus.report.canvas import Canvas, shorten, text_width
from linnaeus.report.fonts import Fonts, families_for
from linnaeus.report.palette import BLUE, GROUND, INK, MUTED, ON_MEDIUM, ON_STRONG, ORANGE, PAGE, SMALL, TEXT, TITLE
from linnaeus.report.svg import page_fonts, tag, to_svg
from linnaeus.text import typeset_percent

NUMBERS_UP_TO = 20  # classes; with more, cells have no room for counts
NAMES_UP_TO = 120  # classes; with more, rows have no room for names
PAIRS = 20  # listed beside a matrix without numbers
GAMMA, FAINTEST = 0.55, 0.14  # strength rises with share ** GAMMA, so that a single confused image is visible
MEDIUM, STRONG = 0.55, 0.82  # strengths from which a count needs a lighter color: in dark mode, and in any mode
LABEL = 2.0  # inches at most for a class name


@dataclass(frozen=True)
class Matrix:
    """A matrix ready to be placed: counts, labels and sizes in inches."""

    counts: np.ndarray  # (classes, classes) int64: rows true, columns predicted
    support: np.ndarray  # (classes,) int64: images of each class, also those taken for a class that is not shown
    names: list[str]
    labels: list[str]  # the names as they fit; empty if there are too many classes
    cell: float
    size: float  # points, of a label
    label_width: float

    @classmethod
    def of(cls, counts: np.ndarray, support: np.ndarray, names: Sequence[str], cell: float, fonts: Fonts) -> Matrix:
        size = min(TEXT, cell * 72 * 0.78)
        labels = [shorten(name, fonts, size, LABEL) for name in names] if len(names) <= NAMES_UP_TO else []
        width = max((text_width(label, fonts, size) for label in labels), default=0.3)
        return cls(counts, support, list(names), labels, cell, size, width)

    @property
    def side(self) -> float:
        return self.cell * len(self.names)

    @property
    def flat(self) -> bool:
        """Whether the names of the columns fit side by side; otherwise they are turned."""
        return self.label_width < self.cell - 0.06

    @property
    def left(self) -> float:
        """Room for the names of the rows."""
        return self.label_width + 0.35

    @property
    def above(self) -> float:
        """Room for the names of the columns."""
        return 0.42 if self.flat or not self.labels else self.label_width + 0.35


@dataclass(frozen=True)
class MatrixChart:
    """The matrix of the report, and which classes it shows."""

    drawing: Markup
    classes: int
    left_out: int
    clustered: bool
    width: float  # natural width, CSS pixels


def confusion(counts: np.ndarray, names: Sequence[str], path: str | os.PathLike[str], *, title: str = "") -> str:
    """Draw a confusion matrix with (classes, classes) counts: rows are true classes, columns predicted ones.

    The color of a cell shows its share of the row: blue on the diagonal, orange elsewhere. Up to 20 classes, cells
    show counts and each row ends with its recall; with more, the most confused pairs are listed. Returns the
    characters that no font on this machine has.
    """
    counts = np.asarray(counts, np.int64)
    assert counts.shape == (len(names), len(names)), f"{counts.shape} counts for {len(names)} names"
    fonts = families_for([title, *names])
    support = counts.sum(axis=1)
    matrix = Matrix.of(counts, support, names, _cell(counts, fonts), fonts)
    numbers = len(names) <= NUMBERS_UP_TO
    most = support.max(initial=0)
    # Room at the right: recalls beside a small matrix, a list of confused pairs beside a large one.
    beside = 0.8 + text_width(f"{most:,} of {most:,}", fonts, SMALL) if numbers else 3.6
    left, top = 0.25 + matrix.left, 0.9 + matrix.above
    canvas = Canvas(max(left + matrix.side + beside + 0.2, 5.4), top + max(matrix.side, 1.2) + 0.62, fonts)
    total, right = int(counts.sum()), int(np.trace(counts))
    canvas.write(0.3, 0.44, shorten(title or "Confusion matrix", fonts, TITLE, canvas.width - 0.6), size=TITLE)
    summary = f"{right:,} of {total:,} correct, {typeset_percent(right / total, 1)}" if total else "no images"
    canvas.write(0.3, 0.72, summary, color=MUTED)
    draw_matrix(canvas, matrix, left, top)
    if numbers:
        _write_recalls(canvas, matrix, left, top)
    else:
        _write_pairs(canvas, matrix, left + matrix.side + 0.35, top)
    _draw_key(canvas, left, canvas.height - 0.3)
    canvas.save(path)
    return fonts.missing


def confusion_chart(counts: np.ndarray, names: Sequence[str]) -> MatrixChart:
    """The matrix for the report. Of many classes, those confused most, in an order that puts confused ones together."""
    k = len(names)
    clustered = k > NUMBERS_UP_TO
    shown = np.arange(k)
    if k > NAMES_UP_TO:
        # Without the diagonal, so that a large class does not count as confused.
        wrong = counts - np.diag(np.diag(counts))
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:NAMES_UP_TO])
    if clustered:
        shown = shown[cluster(counts[np.ix_(shown, shown)])]
    part, support = counts[np.ix_(shown, shown)], counts.sum(1)[shown]
    # Cells of a clustered matrix carry no numbers and can be small.
    cell = 0.125 if clustered else min(0.46, max(0.28, 4.4 / k))
    with page_fonts(names) as fonts:
        matrix = Matrix.of(part, support, [names[i] for i in shown.tolist()], cell, fonts)
        canvas = Canvas(matrix.left + matrix.side + 0.08, matrix.above + matrix.side + 0.08, fonts)
        draw_matrix(canvas, matrix, matrix.left, matrix.above)
        right, total = int(np.trace(part)), int(support.sum())
        about = f"{len(shown)} classes, rows true and columns predicted. {right} of {total} images are on the diagonal."
        drawing = to_svg(canvas.figure, "confusion", "Confusion matrix", about, "matrix")
    return MatrixChart(drawing, len(shown), k - len(shown), clustered, canvas.width * 96)


def _cell(counts: np.ndarray, fonts: Fonts) -> float:
    """Side of a cell in inches: wide enough for its count, if counts are shown."""
    classes = len(counts)
    if classes > NUMBERS_UP_TO:
        return 8.6 / classes
    return max(0.36, min(0.95, 5.0 / classes), text_width(f"{counts.max():,}", fonts, 7.0) / 0.85)


def shares(counts: np.ndarray, support: np.ndarray) -> np.ndarray:
    """Counts -> share of each row, float64; the row of a class without images is zero."""
    return counts / np.maximum(support, 1)[:, None]


def draw_matrix(canvas: Canvas, matrix: Matrix, left: float, top: float) -> None:
    """Draw cells, counts and names; the upper left cell is at (left, top)."""
    classes, side = len(matrix.names), matrix.side
    axes = canvas.axes(left, top, side, side)
    axes.set(xlim=(0, classes), ylim=(classes, 0))
    share = shares(matrix.counts, matrix.support)
    # A single mistake must be visible in a class of thousands: the scale is compressed and has a lower end.
    strength = np.where(matrix.counts > 0, FAINTEST + (1 - FAINTEST) * share**GAMMA, 0.0)
    tag(axes.add_patch(Rectangle((0, 0), classes, classes, facecolor=GROUND, linewidth=0, clip_on=False)), "ground")
    if matrix.labels:
        _draw_cells(axes, matrix, strength)
        edges = np.arange(classes + 1)
        weight = 1.0 if classes <= NUMBERS_UP_TO else 0.3
        for lines in (axes.hlines(edges, 0, classes), axes.vlines(edges, 0, classes)):
            lines.set(color=PAGE, linewidth=weight, clip_on=False)
    else:
        # A thousand classes have a million cells: an image instead of as many rectangles.
        axes.imshow(_colors(strength), interpolation="nearest", aspect="auto", extent=(0, classes, classes, 0))
    if classes <= NUMBERS_UP_TO:
        _draw_counts(axes, matrix, strength, canvas.fonts)
    _write_names(canvas, matrix, left, top)
    canvas.write(left, top - matrix.above + 0.12, "predicted →", size=SMALL, color=MUTED)
    canvas.write(left - matrix.left + 0.12, top, "← true", size=SMALL, color=MUTED, align="right", rotation=90)


def _colors(strength: np.ndarray) -> np.ndarray:
    """(classes, classes) strengths -> RGBA."""
    diagonal = np.eye(len(strength), dtype=bool)[..., None]
    return np.concatenate([np.where(diagonal, to_rgb(BLUE), to_rgb(ORANGE)), strength[..., None]], axis=2)


def _draw_cells(axes: Axes, matrix: Matrix, strength: np.ndarray) -> None:
    """The cells that hold images, each an artist of its own, so that it has a tooltip."""
    names = matrix.names
    for i, j in np.argwhere(matrix.counts).tolist():
        color = (*to_rgb(BLUE if i == j else ORANGE), strength[i, j])
        cell = Rectangle((j, i), 1, 1, facecolor=color, linewidth=0, clip_on=False)
        count = f"{matrix.counts[i, j]} of {matrix.support[i]}"
        tooltip = f"{names[i]}: {count} correct" if i == j else f"{names[i]} taken for {names[j]}: {count}"
        tag(axes.add_patch(cell), "cell right" if i == j else "cell wrong", tooltip)


def _draw_counts(axes: Axes, matrix: Matrix, strength: np.ndarray, fonts: Fonts) -> None:
    """The count of each cell that holds images, in a color that can be read on it."""
    # Sized by the largest count, so that all numbers of a matrix have one size.
    size = min(TEXT, TEXT * 0.85 * matrix.cell / text_width(f"{matrix.counts.max():,}", fonts, TEXT))
    for i, j in np.argwhere(matrix.counts).tolist():
        color = ON_STRONG if strength[i, j] > STRONG else ON_MEDIUM if strength[i, j] > MEDIUM else INK
        text = axes.text(
            j + 0.5,
            i + 0.5,
            f"{matrix.counts[i, j]:,}",
            size=size,
            color=color,
            ha="center",
            va="center_baseline",
            **fonts.style,
        )
        tag(text, "count")


def _write_names(canvas: Canvas, matrix: Matrix, left: float, top: float) -> None:
    """Names of rows at the left and of columns above; where there is no room, every 20th or 100th index."""
    labels = dict(enumerate(matrix.labels))
    if not labels:
        classes = len(matrix.names)
        labels = {i: str(i) for i in range(0, classes, 20 if classes <= 300 else 100)}
    size = matrix.size if matrix.labels else SMALL
    lift = size / 72 * 0.36  # from the middle of a small letter down to its baseline
    for i, label in labels.items():
        middle = (i + 0.5) * matrix.cell
        canvas.write(left - 0.08, top + middle + lift, label, size=size, align="right")
        if matrix.flat or not matrix.labels:
            canvas.write(left + middle, top - 0.08, label, size=size, align="center")
        else:
            canvas.write(left + middle + lift, top - 0.08, label, size=size, rotation=90)


def _write_recalls(canvas: Canvas, matrix: Matrix, left: float, top: float) -> None:
    """At the end of each row, how many images of the class are correct."""
    x = left + matrix.side + 0.16
    canvas.write(x, top - 0.1, "correct", size=SMALL, color=MUTED)
    for i, of in enumerate(matrix.support.tolist()):
        y = top + (i + 0.5) * matrix.cell + TEXT / 72 * 0.36
        if of:
            right = int(matrix.counts[i, i])
            canvas.write(x, y, typeset_percent(right / of))
            canvas.write(x + 0.5, y, f"{right:,} of {of:,}", size=SMALL, color=MUTED)
        else:
            canvas.write(x, y, "no images", size=SMALL, color=MUTED)


def _write_pairs(canvas: Canvas, matrix: Matrix, left: float, top: float) -> None:
    """The most confused pairs: true above predicted, with count and share."""
    canvas.write(left, top + 0.05, "Most often confused", size=TEXT + 1)
    names, fonts = matrix.names, canvas.fonts
    pairs = most_confused(matrix.counts, PAIRS)
    for i, (true, predicted, count) in enumerate(pairs):
        y, of = top + 0.38 + 0.41 * i, int(matrix.support[true])
        canvas.write(left, y, shorten(names[true], fonts, TEXT, 2.2))
        canvas.write(left + 3.25, y, f"{count:,} of {of:,}", align="right")
        arrow = shorten(f"→ {names[predicted]}", fonts, SMALL, 2.6)
        canvas.write(left, y + 0.155, arrow, size=SMALL, color=ORANGE)
        canvas.write(left + 3.25, y + 0.155, typeset_percent(count / of), size=SMALL, color=MUTED, align="right")
    if not pairs:
        canvas.write(left, top + 0.38, "none: every image is correct", color=MUTED)


def _draw_key(canvas: Canvas, left: float, y: float) -> None:
    """Two strips of color, from none of a class to all of it."""
    left = min(left, canvas.width - 4.95)
    strength = FAINTEST + (1 - FAINTEST) * np.linspace(0, 1, 60) ** GAMMA
    for x, color, word in ((left, BLUE, "correct"), (left + 1.5, ORANGE, "wrong")):
        axes = canvas.axes(x, y - 0.1, 0.8, 0.11)
        strip = np.concatenate([np.broadcast_to(to_rgb(color), (60, 3)), strength[:, None]], axis=1)
        axes.imshow(strip[None], aspect="auto", interpolation="nearest")
        canvas.write(x + 0.88, y, word, size=SMALL, color=MUTED)
    canvas.write(left + 3.0, y, "0 to 100 % of the true class", size=SMALL, color=MUTED)


def cluster(counts: np.ndarray) -> np.ndarray:
    """An order (k,) of k classes that puts classes that are confused with each other side by side.

    Average linkage (Sokal and Michener 1958) with the optimal order of leaves (Bar-Joseph et al. 2001). Classes that
    are never confused come last, in their own order.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    similarity = share + share.T
    np.fill_diagonal(similarity, 0)
    confused = np.flatnonzero(similarity.any(1))
    if len(confused) < 2:
        return np.arange(len(counts))
    near = similarity[np.ix_(confused, confused)]
    distance = near.max() - near
    np.fill_diagonal(distance, 0)
    order = leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))
    return np.concatenate([confused[order], np.setdiff1d(np.arange(len(counts)), confused)]).astype(np.int64)
