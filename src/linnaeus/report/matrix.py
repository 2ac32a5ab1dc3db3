"""The confusion matrix of the page: few classes with counts, many so that what is confused stands together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from linnaeus.report.svg import draw, image, join, line, text
from linnaeus.text import shorten, width

COUNTED_UP_TO = 20  # classes: with more, cells hold no numbers and the classes are put into another order
DRAWN_UP_TO = 120  # classes: of more, those that are confused most
GAMMA, FAINTEST = 0.55, 0.14  # strength rises with share ** GAMMA, so that one image taken for another is seen
MIDDLE, STRONG = 0.55, 0.82  # from which a number is written in the ground's color: in dark, and in light as well
NAME = 22  # columns of a name beside the matrix
LETTER = 6.4  # units of a column at 11.5 units of height


@dataclass(frozen=True)
class Matrix:
    """The drawing, and which classes it shows."""

    drawing: Markup
    classes: int
    left_out: int
    clustered: bool
    width: float
    """At its natural size, CSS pixels."""


def draw_matrix(counts: np.ndarray, names: Sequence[str]) -> Matrix:
    """Draw (classes, classes) counts, rows true, columns predicted. A cell's strength is its share of the row."""
    k = len(names)
    clustered = k > COUNTED_UP_TO
    shown = np.arange(k)
    if k > DRAWN_UP_TO:
        wrong = counts - np.diag(np.diag(counts))
        shown = np.sort(np.argsort(-(wrong.sum(0) + wrong.sum(1)), kind="stable")[:DRAWN_UP_TO])
    if clustered:
        shown = shown[cluster(counts[np.ix_(shown, shown)])]
    part = counts[np.ix_(shown, shown)]
    drawing, wide = _draw(part, counts.sum(1)[shown], [names[i] for i in shown.tolist()], numbers=not clustered)
    return Matrix(drawing, len(shown), k - len(shown), clustered, wide)


def cluster(counts: np.ndarray) -> np.ndarray:
    """An order (k,) of k classes in which those that are confused with each other stand together.

    The two groups with the largest mean confusion between their classes are joined, again and again (average linkage,
    Sokal and Michener 1958); the end of one group that is closest to the other is turned towards it. Classes that are
    confused with none come last, in their own order.
    """
    k = len(counts)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    alike = share + share.T
    np.fill_diagonal(alike, 0)
    between, sizes = alike.copy(), np.ones(k)
    groups: dict[int, list[int]] = {i: [i] for i in range(k)}
    while len(groups) > 1:
        a, b = divmod(int(between.argmax()), k)
        if between[a, b] <= 0:
            break
        groups[a] = _joined(groups[a], groups.pop(b), alike)
        mean = (sizes[a] * between[a] + sizes[b] * between[b]) / (sizes[a] + sizes[b])
        between[a] = between[:, a] = mean
        between[b] = between[:, b] = between[a, a] = 0
        sizes[a] += sizes[b]
    order = sorted(groups.values(), key=lambda group: (len(group) == 1, -_confusion(group, alike), group[0]))
    return np.array([i for group in order for i in group], np.int64)


def _confusion(group: list[int], alike: np.ndarray) -> float:
    return float(alike[np.ix_(group, group)].sum())


def _joined(a: list[int], b: list[int], alike: np.ndarray) -> list[int]:
    """Two groups side by side, each turned so that the classes that meet are most alike."""
    ways = [(x, y) for x in (a, a[::-1]) for y in (b, b[::-1])]
    first, second = max(ways, key=lambda way: float(alike[way[0][-1], way[1][0]]))
    return first + second


def _draw(counts: np.ndarray, support: np.ndarray, names: Sequence[str], *, numbers: bool) -> tuple[Markup, float]:
    """The drawing and its width."""
    k = len(names)
    cell = min(44.0, max(26.0, 420.0 / k)) if numbers else 12.0
    size = 11.5 if numbers else 9.0
    labels = [shorten(name, NAME) for name in names]
    longest = max(map(width, labels), default=1) * LETTER * size / 11.5
    flat = longest <= cell - 4
    left, top = longest + 30.0, (34.0 if flat else longest + 30.0)
    side = cell * k
    parts = [draw('<rect x="{x}" y="{y}" width="{s}" height="{s}" class="ground"/>', x=left, y=top, s=side)]
    parts += _cells(counts, support, names, left, top, cell, numbers)
    edges = np.arange(k + 1) * cell
    parts += [line((left, top + e), (left + side, top + e), "mesh") for e in edges]
    parts += [line((left + e, top), (left + e, top + side), "mesh") for e in edges]
    for i, label in enumerate(labels):
        middle = (i + 0.5) * cell
        parts.append(_label(left - 6, top + middle + size * 0.35, label, size, "end"))
        x, y = left + middle, top - 6
        if flat:
            parts.append(_label(x, y, label, size, "middle"))
        else:
            parts.append(_label(x + size * 0.35, y, label, size, "start", turned=True))
    parts.append(text(left, 12, "predicted →", "axis-title"))
    parts.append(
        draw(
            '<text transform="translate(12 {y}) rotate(-90)" text-anchor="end" class="axis-title">← true</text>', y=top
        )
    )
    right, total = int(np.trace(counts)), int(support.sum())
    about = f"{k} classes, rows true and columns predicted. {right} of {total} images lie on the diagonal."
    wide = left + side + 8
    return image(wide, top + side + 8, join(parts), title="Confusion matrix", about=about, style="matrix"), wide


def _label(x: float, y: float, words: str, size: float, anchor: str, *, turned: bool = False) -> Markup:
    place = 'transform="translate({x} {y}) rotate(-90)"' if turned else 'x="{x}" y="{y}"'
    return draw(
        "<text " + place + ' text-anchor="{a}" style="font-size:{s}px">{w}</text>',
        x=float(x), y=float(y), a=anchor, s=float(size), w=words,
    )  # fmt: skip


def _cells(
    counts: np.ndarray, support: np.ndarray, names: Sequence[str], left: float, top: float, cell: float, numbers: bool
) -> list[Markup]:
    """The cells that hold images."""
    parts = []
    for i, j in zip(*(where.tolist() for where in np.nonzero(counts)), strict=True):
        n, of = int(counts[i, j]), int(support[i])
        strength = FAINTEST + (1 - FAINTEST) * (n / of) ** GAMMA
        told = f"{names[i]} taken for {names[j]}: {n} of {of}" if i != j else f"{names[i]}: {n} of {of} right"
        x, y = left + j * cell, top + i * cell
        on = " on" if strength > STRONG else " mid" if strength > MIDDLE else ""
        number = Markup("")
        if numbers:
            number = draw(
                '<text x="{x}" y="{y}" text-anchor="middle" class="count{on}">{n}</text>',
                x=x + cell / 2, y=y + cell / 2 + 4, n=f"{n:,}", on=on,
            )  # fmt: skip
        parts.append(
            draw(
                '<g class="{kind}"><title>{told}</title><rect x="{x}" y="{y}" width="{c}" height="{c}" '
                'fill-opacity="{s}"/>{number}</g>',
                kind="right" if i == j else "wrong",
                told=told,
                x=x,
                y=y,
                c=cell,
                s=strength,
                number=number,
            )
        )
    return parts
