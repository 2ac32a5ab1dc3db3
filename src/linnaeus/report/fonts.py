"""Fonts for class names in any language, by matplotlib's list of fallback fonts.

DejaVu Sans, which comes with matplotlib, covers Latin, Cyrillic, Greek and mathematical signs. Chinese, Japanese,
Korean and other scripts need a font of this machine; its fonts are searched only for characters that DejaVu Sans lacks.

matplotlib reports a missing glyph by a Python warning while it draws, after the layout is done, and warnings can only
be caught for the whole process. So the character maps of the fonts are read before drawing.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from matplotlib import font_manager
from matplotlib.font_manager import FontEntry, FontProperties, fontManager
from matplotlib.ft2font import FT2Font

BASE = "DejaVu Sans"
MISSING = "□"  # replaces a character that no font has
NO_BREAK = "\u00a0\u202f"  # spaces that are kept
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # replaces a byte of a file name that is not UTF-8

# Chinese characters look different in China, Japan and Korea, so the fonts of the text's language come first. A family
# matches by the beginning of its name.
CHINESE = (
    *("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei"),
    *("WenQuanYi", "SimHei", "Noto Sans CJK", "Noto Sans TC", "Heiti", "Droid Sans Fallback"),
)
JAPANESE = (
    *("Noto Sans CJK JP", "Noto Sans JP", "Source Han Sans JP", "Hiragino Sans", "Yu Gothic", "Meiryo"),
    *("IPAexGothic", "IPAGothic", "TakaoGothic", "VL Gothic", "MS Gothic"),
)
KOREAN = (
    *("Noto Sans CJK KR", "Noto Sans KR", "Source Han Sans KR", "Apple SD Gothic Neo", "Malgun Gothic"),
    *("NanumGothic", "UnDotum", "Baekmuk"),
)
OTHER = ("Noto Sans", "Arial Unicode MS", "Segoe UI", "Noto Emoji", "Symbola", "FreeSans", "Unifont")


@dataclass(frozen=True)
class Fonts:
    """The fonts for a set of texts."""

    families: list[str]  # matplotlib takes each glyph from the first family that has it
    missing: str  # characters that no font on this machine has, in the order of the texts

    @property
    def style(self) -> dict[str, Any]:
        """Properties of a matplotlib text: these families, and a dollar sign in a class name starts no formula."""
        return {"family": self.families, "parse_math": False, "usetex": False}

    def text(self, text: str) -> str:
        """`text` as these fonts can draw it, with a box for each missing character."""
        lacking = set(self.missing)
        return "".join(MISSING if c in lacking else c for c in drawable(text))


def drawable(text: str) -> str:
    """One line of composed characters: blanks for tabs and line ends, nothing invisible, no lone surrogates."""
    kept = []
    for c in unicodedata.normalize("NFC", text):
        category = unicodedata.category(c)
        if c in NO_BREAK:
            kept.append(c)
        elif c.isspace():
            kept.append(" ")
        elif category == "Cs":  # from os.fsdecode, if a file name is not UTF-8
            kept.append(UNREADABLE)
        elif category not in ("Cc", "Cf") and not _is_variation_selector(c):
            kept.append(c)
    return "".join(kept)


def _is_variation_selector(c: str) -> bool:
    return "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"


def families_for(texts: Iterable[str]) -> Fonts:
    """Families that together cover `texts`, and the characters that no font on this machine has."""
    characters = dict.fromkeys(drawable("\n".join(texts)))  # each character once, in order
    foreign = frozenset(c for c in characters if not c.isascii())
    families, missing = _choose(foreign, len(fontManager.ttflist)) if foreign else ([], frozenset())
    return Fonts([BASE, *families], "".join(c for c in characters if c in missing))


@lru_cache(maxsize=256)
def _choose(characters: frozenset[str], fonts_known: int) -> tuple[list[str], frozenset[str]]:
    """Families besides the base, and what is missing; `fonts_known` invalidates the cache when a font is added."""
    left = set(characters - _covered(BASE, characters))
    families = list(_add_families(left)) if left else []
    if left and _add_new_fonts():
        families += _add_families(left)
    return families, frozenset(left)


def advice(missing: str, most: int = 12) -> str:
    """One line for the user about the characters of `Fonts.missing`; empty if nothing is missing."""
    if not missing:
        return ""
    shown = missing[:most] + ("…" if len(missing) > most else "")
    if any(_is_hangul(c) or _is_kana(c) or unicodedata.name(c, "").startswith("CJK") for c in missing):
        font = "Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)"
    elif all("\U0001f000" <= c <= "\U0001ffff" for c in missing):
        font = "Noto Emoji, the version without color"
    else:
        font = "Noto Sans (Debian, Ubuntu: fonts-noto)"
    return f"no font on this machine has {shown}; install for example {font}"


def _is_kana(c: str) -> bool:
    return "\u3041" <= c <= "\u30ff" or "\uff66" <= c <= "\uff9f"


def _is_hangul(c: str) -> bool:
    return "\uac00" <= c <= "\ud7a3" or "\u1100" <= c <= "\u11ff" or "\u3131" <= c <= "\u318e"


def _add_families(left: set[str]) -> Iterator[str]:
    """Families that cover some of `left`, preferred ones first; removes from `left` what they cover."""
    # Chinese, Japanese and Korean share code points but not shapes, so kana or hangul decide the order.
    if any(_is_kana(c) for c in left):
        preferred = (*JAPANESE, *CHINESE, *KOREAN, *OTHER)
    elif any(_is_hangul(c) for c in left):
        preferred = (*KOREAN, *CHINESE, *JAPANESE, *OTHER)
    else:
        preferred = (*CHINESE, *JAPANESE, *KOREAN, *OTHER)

    def rank(family: str) -> int:
        return next((i for i, name in enumerate(preferred) if family.startswith(name)), len(preferred))

    faces: dict[str, list[FontEntry]] = {}
    for entry in fontManager.ttflist:
        # The Last Resort font has a placeholder for every character; names with a dot are fonts of the system itself.
        if entry.style == "normal" and not entry.name.startswith(("Last Resort", ".")):
            faces.setdefault(entry.name, []).append(entry)
    for family in sorted(faces, key=lambda family: (rank(family), family)):
        if not left:
            return
        # Reading the whole character map is slow: first whether the face has any of them.
        if any(_character_map(entry.fname, getattr(entry, "index", 0), left) for entry in faces[family]):
            covered = _covered(family, left)
            if covered:
                left -= covered
                yield family


def _covered(family: str, characters: Iterable[str]) -> set[str]:
    """The characters that matplotlib can draw when it is asked for a family: it selects the face by its own rules."""
    try:
        path = font_manager.findfont(FontProperties(family=[family]), fallback_to_default=False)
    except ValueError:
        return set()
    return _character_map(getattr(path, "path", path), getattr(path, "face_index", 0), characters)


def _character_map(path: str, index: int, characters: Iterable[str]) -> set[str]:
    """Those of `characters` that a face of a font file has; none if matplotlib cannot draw with it."""
    try:
        font = FT2Font(path, face_index=index) if index else FT2Font(path)  # type: ignore[call-arg,unused-ignore]
    except (OSError, RuntimeError, TypeError, ValueError):  # a damaged file
        return set()
    return {c for c in characters if font.get_char_index(ord(c))} if font.scalable else set()


def _add_new_fonts() -> bool:
    """Add fonts that were installed after matplotlib listed the machine's fonts. Returns whether there are any."""
    known = {str(Path(entry.fname).resolve()) for entry in fontManager.ttflist}
    before = len(fontManager.ttflist)
    for path in sorted(font_manager.findSystemFonts()):
        if str(Path(path).resolve()) not in known:
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError, KeyError):  # matplotlib's own scan skips these as well
                continue
    return len(fontManager.ttflist) > before
