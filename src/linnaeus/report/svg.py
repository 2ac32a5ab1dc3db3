"""Charts as SVG text: axes, lines and words, drawn in units that are CSS pixels at their natural size.

Colors come from the page's style sheet by class names, so a chart follows light, dark and print. All text goes through
`Markup.format`, which escapes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 440.0, 270.0
Point = tuple[float, float]


def draw(shape: str, /, **values: object) -> Markup:
    """One element: `draw('<rect x="{x}"/>', x=1.5)`. Numbers are cut to two decimals, text is escaped."""
    return Markup(shape).format(**{k: short(v) if isinstance(v, float) else v for k, v in values.items()})


def short(value: float) -> str:
    """At most two decimals, without trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if math.isfinite(value) else "0"


def join(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def image(width: float, height: float, body: Markup, *, title: str, about: str, style: str = "chart") -> Markup:
    """A whole image with its alternative text: `title` names it, `about` says what is to be seen."""
    return draw(
        '<svg class="{style}" viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="{told}">'
        "{body}</svg>",
        style=style, w=float(width), h=float(height), told=f"{title}. {about}" if about else title, body=body,
    )  # fmt: skip


def text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> Markup:
    return draw(
        '<text x="{x}" y="{y}" text-anchor="{anchor}" class="{style}">{words}</text>',
        x=float(x), y=float(y), anchor=anchor, style=style, words=words,
    )  # fmt: skip


def line(a: Point, b: Point, style: str) -> Markup:
    return draw(
        '<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" class="{style}"/>',
        x1=float(a[0]), y1=float(a[1]), x2=float(b[0]), y2=float(b[1]), style=style,
    )  # fmt: skip


def path(points: Sequence[Point], style: str, *, closed: bool = False) -> Markup:
    corners = "L".join(f"{short(x)} {short(y)}" for x, y in points)
    return draw('<path d="M{corners}{end}" class="{style}"/>', corners=corners, end="Z" if closed else "", style=style)


def circle(at: Point, radius: float, style: str, title: str = "") -> Markup:
    told = draw("<title>{t}</title>", t=title) if title else Markup("")
    return draw(
        '<circle cx="{x}" cy="{y}" r="{r}" class="{style}">{told}</circle>',
        x=float(at[0]), y=float(at[1]), r=float(radius), style=style, told=told,
    )  # fmt: skip


def rect(x: float, y: float, width: float, height: float, style: str) -> Markup:
    return draw(
        '<rect x="{x}" y="{y}" width="{w}" height="{h}" class="{style}"/>',
        x=float(x), y=float(y), w=float(max(0.0, width)), h=float(max(0.0, height)), style=style,
    )  # fmt: skip


@dataclass(frozen=True)
class Axes:
    """An area of a chart, and where values lie in it."""

    x: tuple[float, float]
    """Values at the left and right edge."""
    y: tuple[float, float]
    """Values at the lower and upper edge."""
    left: float = 46.0
    top: float = 14.0
    right: float = WIDTH - 24.0
    bottom: float = HEIGHT - 38.0

    def at(self, x: float, y: float) -> Point:
        """Where a pair of values lies; what is outside is drawn at the edge."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1.0)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1.0)
        across, up = min(max(across, 0.0), 1.0), min(max(up, 0.0), 1.0)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def points(self, xs: Sequence[float], ys: Sequence[float]) -> list[Point]:
        return [self.at(x, y) for x, y in zip(xs, ys, strict=True)]

    def frame(
        self,
        x_ticks: Sequence[float],
        y_ticks: Sequence[float],
        x_label: Callable[[float], str],
        y_label: Callable[[float], str],
        x_title: str = "",
    ) -> Markup:
        """Lines across at `y_ticks`, words below and at the left."""
        parts = [line(self.at(self.x[0], y), self.at(self.x[1], y), "grid") for y in y_ticks]
        parts += [text(self.left - 8, self.at(0, y)[1] + 4, y_label(y), "tick", "end") for y in y_ticks]
        parts += [text(self.at(x, 0)[0], self.bottom + 17, x_label(x), "tick", "middle") for x in x_ticks]
        parts.append(line((self.left, self.bottom), (self.right, self.bottom), "axis"))
        if x_title:
            parts.append(text((self.left + self.right) / 2, self.bottom + 34, x_title, "axis-title", "middle"))
        return join(parts)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values from `low` to `high`, at most `most` or so."""
    span = high - low
    if not span > 0 or not math.isfinite(span):
        return [low]
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(m for m in (1, 2, 5, 10) if m * step * most >= span * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def whole_ticks(low: int, high: int, most: int = 8) -> list[float]:
    """Round whole numbers from `low` to `high`, both among them."""
    inner = [v for v in ticks(low, high, most) if v == int(v)]
    near = (high - low) / 14
    kept = [v for v in inner if v - low > near and high - v > near]
    return [float(low), *kept, float(high)] if high > low else [float(low)]


def percent(value: float, digits: int = 0) -> str:
    """A share in 0..1 as people write it: `97.5 %`, which no line break divides."""
    return f"{100 * value:.{digits}f}\u202f%"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near those wanted, `gap` apart or more, between `low` and `high`: for words at the ends of lines."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    over = max(0.0, (placed[-1] if placed else low) - high)
    found = [0.0] * len(wanted)
    for i, y in zip(order, placed, strict=True):
        found[i] = y - over
    return found
