"""Contrast of colors, as WCAG 2.2 defines it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def ratio(*colors: Sequence[float]) -> float:
    """Contrast ratio of two colors; red, green and blue in 0..255."""
    luminances = []
    for color in colors:
        channels = [value / 255 for value in color]
        r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        luminances.append(0.2126 * r + 0.7152 * g + 0.0722 * b)
    return (max(luminances) + 0.05) / (min(luminances) + 0.05)


def contrast(page: Any, selector: str, on: str = "body") -> float:
    """Contrast ratio between the text of the first such element and the background of another."""
    colors = page.evaluate(
        "([s, on]) => [getComputedStyle(document.querySelector(s)).color, "
        "getComputedStyle(document.querySelector(on)).backgroundColor]",
        [selector, on],
    )
    return ratio(*([float(value) for value in re.findall(r"[\d.]+", color)[:3]] for color in colors))
