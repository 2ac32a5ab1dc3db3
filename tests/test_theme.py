"""All pages and figures take their colors and fonts from `linnaeus.theme`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from wcag import ratio

import linnaeus
from linnaeus import theme
from linnaeus.label.page import render_page
from linnaeus.serve.pages import read_static

PACKAGE = Path(linnaeus.__file__).parent
STYLES = [file for suffix in ("css", "html", "j2") for file in sorted(PACKAGE.rglob(f"*.{suffix}"))]
DOCS = PACKAGE.parents[1] / "docs" / "extra.css"
COLOR = re.compile(r"(?<!&)#(?:[0-9a-fA-F]{3}){1,2}\b")
OVER_IMAGES = {"#fff", "#000"}
"""Controls over an image do not follow the scheme."""
READABLE = 4.5  # contrast of text (WCAG 2.2, 1.4.3)


def test_only_the_theme_defines_colors() -> None:
    assert len(STYLES) > 5
    styles = {f.name: set(COLOR.findall(f.read_text(encoding="utf-8"))) - OVER_IMAGES for f in [*STYLES, DOCS]}
    assert {name: colors for name, colors in styles.items() if colors} == {}
    figures = {f.name: set(COLOR.findall(f.read_text(encoding="utf-8"))) for f in (PACKAGE / "report").glob("*.py")}
    assert {name for name, colors in figures.items() if colors} == {"palette.py"}
    assert len(figures["palette.py"]) == 3, "green, and the two shades that svg.py maps to variables"


def test_every_variable_is_defined() -> None:
    """`--n`, `--w` and `--share` are set by the templates or by the drawing, `--zoom` by a rule."""
    names = set(theme.LIGHT | theme.FONTS) | {"n", "w", "share", "zoom"}
    for file in [*STYLES, DOCS]:
        assert set(re.findall(r"var\(--([\w-]+)", file.read_text(encoding="utf-8"))) - names == set(), file


def test_the_schemes_have_the_same_names() -> None:
    assert set(theme.LIGHT) == set(theme.DARK) == set(theme.PRINT)


@pytest.mark.parametrize("scheme", [theme.LIGHT, theme.DARK, theme.PRINT], ids=["light", "dark", "print"])
def test_text_is_readable(scheme: dict[str, str]) -> None:
    rgb = {name: tuple(bytes.fromhex(color[1:])) for name, color in scheme.items() if COLOR.fullmatch(color)}
    for ground in ("background", "raised"):
        for text in ("text", "muted", "accent", "alert", "error", "warning"):
            assert ratio(rgb[text], rgb[ground]) >= READABLE, f"{text} on {ground}"
    assert ratio(rgb["on-accent"], rgb["accent"]) >= READABLE
    assert ratio(rgb["on-accent-medium"], rgb["accent-medium"]) >= READABLE


def test_the_pages_include_the_theme() -> None:
    """The other pages: tests/report/test_page.py, tests/check/test_command.py, tests/web/test_web_export.py."""
    assert read_static("page.css")[0].decode().startswith(theme.style_sheet())
    assert theme.style_sheet() in render_page("en")[0]
