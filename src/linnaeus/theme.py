"""Colors and fonts of all visible output: pages, report, figures and documentation.

A page includes `style_sheet()` and names colors as `var(--NAME)`. Figures are drawn in the colors of `PRINT`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LIGHT = {
    "background": "#fdfcfa",
    "raised": "#f4f2ee",  # panels and notes
    "text": "#1b2530",
    "muted": "#5b6670",
    "faint": "#e2dfd9",  # lines in tables and figures
    "line": "#c9c4bb",  # borders of controls
    # Accent and alert (wrong, unsure) are distinguishable with any kind of color vision (after Okabe and Ito 2008).
    "accent": "#0a6ebd",
    "accent-medium": "#5b9fd3",
    "accent-light": "#9cc5e6",
    "on-accent": "#ffffff",
    "on-accent-medium": "#1b2530",
    "alert": "#b84f06",
    "error": "#b3261e",
    "warning": "#8a5a00",
    "part3": "#d9a441",  # further parts of a whole
    "part4": "#8a94a0",
    "tint": "#e3eff8",
    "shadow": "#1b253014",
}
DARK = {
    "background": "#14181d",
    "raised": "#1d232a",
    "text": "#e4e7ea",
    "muted": "#9ba6b1",
    "faint": "#2d353e",
    "line": "#46515c",
    "accent": "#6bb2f2",
    "accent-medium": "#4687bf",
    "accent-light": "#2b5579",
    "on-accent": "#0f1419",
    "on-accent-medium": "#0f1419",
    "alert": "#f0934e",
    "error": "#ff8a80",
    "warning": "#ffc46b",
    "part3": "#c79a45",
    "part4": "#5d6772",
    "tint": "#1f3446",
    "shadow": "#0000004d",
}
PRINT = LIGHT | {
    "background": "#ffffff",
    "raised": "#f5f4f1",
    "text": "#111820",
    "muted": "#4d5760",
    "faint": "#dddad4",
    "on-accent-medium": "#111820",
}
FONTS = {
    "serif": '"Iowan Old Style", "Palatino Linotype", Palatino, "Book Antiqua", Georgia, "Songti SC", '
    '"Noto Serif CJK SC", serif',
    "sans": 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "PingFang SC", "Microsoft YaHei", '
    '"Noto Sans CJK SC", sans-serif',
    "mono": 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
}


def style_sheet() -> str:
    """CSS: the colors of each scheme and the fonts as custom properties, and the rules that all pages share."""
    return (
        custom_properties(":root", LIGHT | FONTS)
        + f"@media (prefers-color-scheme: dark) {{\n{custom_properties(':root', DARK)}}}\n"
        + f"@media print {{\n{custom_properties(':root', PRINT)}}}\n"
        + Path(__file__).with_name("theme.css").read_text(encoding="utf-8")
    )


def custom_properties(selector: str, values: Mapping[str, str]) -> str:
    """A CSS rule that defines `--NAME` for each of `values`."""
    return f"{selector} {{ {' '.join(f'--{name}: {value};' for name, value in values.items())} }}\n"
