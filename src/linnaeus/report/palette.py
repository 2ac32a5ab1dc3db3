"""Colors, text sizes and resolution of every figure."""

from __future__ import annotations

from linnaeus.theme import PRINT

DPI = 150
INK, MUTED, FAINT, GROUND, PAGE = (PRINT[name] for name in ("text", "muted", "faint", "raised", "background"))
BLUE, ORANGE, PALE_BLUE, RED = (PRINT[name] for name in ("accent", "alert", "accent-light", "error"))
GREEN = "#1a7f4b"  # a correct answer beside RED, only in figures
# Text on colored cells. These hardly differ from PAGE and INK, but svg.py maps them to other variables.
ON_STRONG, ON_MEDIUM = "#fffffe", "#111821"
TITLE, TEXT, SMALL = 13.0, 9.0, 8.0  # points
