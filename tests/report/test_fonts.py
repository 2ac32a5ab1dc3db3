"""Fonts for any text, and the characters that no font has, with and without fonts on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
from fontTools.fontBuilder import FontBuilder  # type: ignore[import-untyped]
from fontTools.pens.ttGlyphPen import TTGlyphPen  # type: ignore[import-untyped]
from matplotlib import font_manager
from matplotlib.font_manager import fontManager

from linnaeus.report import fonts
from linnaeus.report.fonts import BASE, MISSING, UNREADABLE, advice, drawable, families_for


def build_font(path: Path, family: str, characters: str) -> Path:
    """A TrueType font with the given characters only; every glyph is a square."""
    pen = TTGlyphPen(None)
    for i, point in enumerate([(100, 0), (100, 700), (800, 700), (800, 0)]):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    square = pen.glyph()
    names = [".notdef", *(f"u{ord(c):04X}" for c in characters)]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): f"u{ord(c):04X}" for c in characters})
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (900, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWinAscent=800, usWinDescent=200)
    builder.setupPost()
    builder.save(path)
    return path


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A machine with only matplotlib's own fonts; the list returned holds the fonts of its system, none at first."""
    own = str(Path(matplotlib.get_data_path()))
    system: list[str] = []
    monkeypatch.setattr(fontManager, "ttflist", [e for e in fontManager.ttflist if e.fname.startswith(own)])
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(system))
    _forget()
    yield system
    _forget()


def _forget() -> None:
    fonts._choose.cache_clear()
    fontManager._findfont_cached.cache_clear()  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", ["rose", "évêque, Ærø, Łódź", "шиповник", "ρόδο", "−3 × 10² ✓ ✗ … → ·"])
def test_matplotlibs_own_font_is_enough_for_many_scripts(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "_add_families", lambda _: pytest.fail("the machine's fonts were looked through"))
    found = families_for([text])
    assert (found.families, found.missing) == ([BASE], "")
    assert found.text(text) == text


def test_missing_characters_are_named_in_order_and_drawn_as_boxes(bare_machine: list[str]) -> None:
    found = families_for(["rose", "月季 rose", "季节"])
    assert found.missing == "月季节"
    assert found.text("月季 rose") == f"{MISSING}{MISSING} rose"
    assert families_for([MISSING, UNREADABLE]).missing == ""  # otherwise the box itself would be missing
    assert advice(found.missing).startswith("no font on this machine has 月季节; install for example Noto Sans CJK")


def test_a_font_installed_after_matplotlib_listed_them_is_found(bare_machine: list[str], tmp_path: Path) -> None:
    assert families_for(["月"]).missing == "月"
    bare_machine.append(str(build_font(tmp_path / "late.ttf", "Late Song", "月季")))
    bare_machine.append(str(tmp_path / "broken.ttf"))
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    found = families_for(["月季花"])
    assert (found.families, found.missing) == ([BASE, "Late Song"], "花")
    assert families_for(["月"]).missing == ""  # the earlier result is not reused


def test_fonts_of_the_language_of_the_text_are_preferred(bare_machine: list[str], tmp_path: Path) -> None:
    for family, characters in (
        ("Aaa One", "月"),
        ("Bbb Both", "月季"),
        ("Noto Sans CJK JP", "月季の"),
        ("Noto Sans CJK SC", "月季の"),
    ):
        fontManager.addfont(build_font(tmp_path / f"{family}.ttf", family, characters))
    assert families_for(["月季"]).families == [BASE, "Noto Sans CJK SC"]
    assert families_for(["月季の"]).families == [BASE, "Noto Sans CJK JP"]


def test_a_font_is_not_chosen_by_its_name_alone(bare_machine: list[str], tmp_path: Path) -> None:
    fontManager.addfont(build_font(tmp_path / "a.ttf", "Noto Sans CJK SC", "月"))
    fontManager.addfont(build_font(tmp_path / "b.ttf", "Zzz", "季"))
    fontManager.addfont(build_font(tmp_path / "gone.ttf", "Gone", "花"))
    (tmp_path / "gone.ttf").unlink()
    found = families_for(["月季花"])
    assert (found.families, found.missing) == ([BASE, "Noto Sans CJK SC", "Zzz"], "花")


def test_a_family_whose_face_matplotlib_does_not_take_is_passed_over(
    bare_machine: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for family, characters in (("Aaa", "月季"), ("Bbb", "月"), ("Ccc", "季")):
        fontManager.addfont(build_font(tmp_path / f"{family}.ttf", family, characters))
    find = font_manager.findfont
    monkeypatch.setattr(
        font_manager, "findfont", lambda p, **how: find(BASE) if p.get_family() == ["Aaa"] else find(p, **how)
    )
    found = families_for(["月季"])
    assert (found.families, found.missing) == ([BASE, "Bbb", "Ccc"], "")


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("e\u0301", "é"),  # decomposed, as macOS writes file names
        ("a\tb\nc", "a b c"),
        ("❤\ufe0f\u200d", "❤"),
        ("rose\udcff.jpg", f"rose{UNREADABLE}.jpg"),
        ("\ufeffrose\x00\x07", "rose"),
    ],
)
def test_characters_without_a_glyph_are_removed(text: str, drawn: str) -> None:
    assert drawable(text) == drawn
    families_for([text]).missing.encode()  # can be printed: no lone surrogate


@pytest.mark.parametrize(
    ("missing", "font"),
    [("バ", "Noto Sans CJK"), ("장", "Noto Sans CJK"), ("🌹", "Noto Emoji"), ("हि", "Noto Sans (")],
)
def test_advice_names_a_suitable_font(missing: str, font: str) -> None:
    assert font in advice(missing)
    assert advice("") == ""
    assert "…" in advice("月" * 13)
