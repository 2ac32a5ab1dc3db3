"""Fonts that have the glyphs: class names are in any language, matplotlib's own font is not.

DejaVu Sans, which comes with matplotlib, draws Latin, Cyrillic, Greek, mathematical and many other signs. Chinese,
Japanese, Korean and others need a font of the machine, found here. The machine's fonts are read only for what DejaVu
Sans lacks.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from matplotlib import font_manager
from matplotlib.font_manager import FontEntry, FontProperties, fontManager
from matplotlib.ft2font import FT2Font

BASE = "DejaVu Sans"
MISSING = "□"  # drawn in place of a character that no font has
UNREADABLE = "\N{REPLACEMENT CHARACTER}"  # drawn in place of a byte of a file name that is no UTF-8

# A Chinese character is drawn differently in China, Japan and Korea: among fonts that have it, prefer those made for
# the language at hand. A family matches by its beginning.
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
ANY = ("Noto Sans", "Arial Unicode MS", "Segoe UI", "Noto Emoji", "Symbola", "FreeSans", "Unifont")


@dataclass(frozen=True)
class Fonts:
    """What to draw a set of texts with."""

    families: list[str]  # for matplotlib's `family`: each glyph is taken from the first that has it
    missing: str  # the characters that no font on the machine has, in the order of the texts

    def text(self, text: str) -> str:
        """`text` as these fonts can draw it: a box for what is missing, and nothing that has no glyph."""
        lacking = set(self.missing)
        return "".join(MISSING if c in lacking else c for c in drawable(text))


def drawable(text: str) -> str:
    """One line of composed characters: blanks for tabs and line ends, nothing invisible, no lone surrogates."""
    composed = unicodedata.normalize("NFC", text)
    kept = []
    for c in composed:
        category = unicodedata.category(c)
        if c.isspace():
            kept.append(" ")
        elif category == "Cs":  # from os.fsdecode, where a file name is not UTF-8
            kept.append(UNREADABLE)
        elif category not in ("Cc", "Cf") and not _is_variation_selector(c):
            kept.append(c)
    return "".join(kept)


def _is_variation_selector(c: str) -> bool:
    return "\ufe00" <= c <= "\ufe0f" or "\U000e0100" <= c <= "\U000e01ef"


def families_for(texts: Iterable[str]) -> Fonts:
    """The families that together have every character of `texts`, and the characters that none has.

    Costs nothing for what DejaVu Sans has; else the machine's fonts are looked through, once for a set of characters.
    """
    text = dict.fromkeys(drawable("\n".join(texts)))  # each character once, in order
    foreign = frozenset(c for c in text if not c.isascii())
    families, missing = _choose(foreign, len(fontManager.ttflist)) if foreign else ((), frozenset())
    return Fonts([BASE, *families], "".join(c for c in text if c in missing))


def advice(missing: str, most: int = 12) -> str:
    """One line for the user about the characters of `Fonts.missing`; empty where nothing is missing."""
    if not missing:
        return ""
    shown = missing[:most] + ("…" if len(missing) > most else "")
    if any(_is_cjk(c) for c in missing):
        font = "Noto Sans CJK (Debian, Ubuntu: fonts-noto-cjk)"
    elif all("\U0001f000" <= c <= "\U0001ffff" for c in missing):
        font = "Noto Emoji, the one without color"
    else:
        font = "Noto Sans (Debian, Ubuntu: fonts-noto)"
    return f"no font on this machine has {shown}; install e.g. {font}"


def _is_cjk(c: str) -> bool:
    return _is_hangul(c) or _is_kana(c) or unicodedata.name(c, "").startswith("CJK")


def _is_kana(c: str) -> bool:
    return "\u3041" <= c <= "\u30ff" or "\uff66" <= c <= "\uff9f"


def _is_hangul(c: str) -> bool:
    return "\uac00" <= c <= "\ud7a3" or "\u1100" <= c <= "\u11ff" or "\u3131" <= c <= "\u318e"


@lru_cache(maxsize=256)
def _choose(characters: frozenset[str], fonts_known: int) -> tuple[tuple[str, ...], frozenset[str]]:
    """Families besides the base, and what is missing; `fonts_known` makes the cache forget where a font was added."""
    del fonts_known
    base = font_manager.findfont(FontProperties(family=[BASE]))
    left = set(characters - _covered(getattr(base, "path", base), getattr(base, "face_index", 0), characters))
    if not left:
        return (), frozenset()
    chosen = _cover(left, characters, fontManager.ttflist)
    if left:  # matplotlib keeps its list of fonts from its first day on the machine: look for those installed since
        chosen += _cover(left, characters, _new_fonts(frozenset(left)))
    return tuple(chosen), frozenset(left)


def _cover(left: set[str], characters: frozenset[str], fonts: list[FontEntry]) -> list[str]:
    """Families of `fonts` that cover `left`, best first; removes from `left` what they cover."""
    preferred = _preference(characters)

    def rank(family: str) -> int:
        return next((i for i, name in enumerate(preferred) if family.startswith(name)), len(preferred))

    faces: dict[str, FontEntry] = {}
    for entry in fonts:
        if entry.style == "normal" and not entry.name.startswith(("Last Resort", ".")):
            other = faces.get(entry.name)
            if other is None or _distance(entry) < _distance(other):
                faces[entry.name] = entry
    has: dict[str, frozenset[str]] = {}
    wanted = frozenset(left)
    for family in sorted(faces, key=lambda family: (rank(family), family)):
        has[family] = _covered(faces[family].fname, getattr(faces[family], "index", 0), wanted)
        if has[family] == wanted and _is_found(family, wanted):
            left.clear()
            return [family]
    chosen: list[str] = []
    while left and has:
        best = min(has, key=lambda family: (-len(has[family] & left), rank(family), family))
        gained = has.pop(best) & left
        if not gained:
            break
        if _is_found(best, gained):
            chosen.append(best)
            left -= gained
    return chosen


def _preference(characters: frozenset[str]) -> tuple[str, ...]:
    if any(_is_kana(c) for c in characters):
        return (*JAPANESE, *CHINESE, *KOREAN, *ANY)
    if any(_is_hangul(c) for c in characters):
        return (*KOREAN, *CHINESE, *JAPANESE, *ANY)
    return (*CHINESE, *JAPANESE, *KOREAN, *ANY)


def _distance(entry: FontEntry) -> int:
    """How far a face is from the regular one, in weight (100 to 900); narrow and wide ones come last."""
    weight = font_manager.weight_dict.get(str(entry.weight), 400) if isinstance(entry.weight, str) else entry.weight
    return abs(int(weight) - 400) + (0 if entry.stretch == "normal" else 1000)


def _is_found(family: str, characters: frozenset[str]) -> bool:
    """Whether matplotlib, asked for `family`, takes a face that has the characters: it has rules of its own."""
    try:
        found = font_manager.findfont(FontProperties(family=[family]), fallback_to_default=False)
    except ValueError:
        return False
    return _covered(getattr(found, "path", found), getattr(found, "face_index", 0), characters) == characters


@lru_cache(maxsize=4096)
def _covered(path: str, index: int, characters: frozenset[str]) -> frozenset[str]:
    """Those of `characters` that a font file has; none for one that matplotlib cannot draw with (bitmaps, broken)."""
    try:
        font = FT2Font(path, face_index=index) if index else FT2Font(path)  # type: ignore[call-arg,unused-ignore]
    except (OSError, RuntimeError, TypeError, ValueError):
        return frozenset()
    if not font.scalable:
        return frozenset()
    return frozenset(c for c in characters if font.get_char_index(ord(c)))


def _new_fonts(wanted: frozenset[str]) -> list[FontEntry]:
    """Fonts of the system that matplotlib does not know yet and that have some of `wanted`: made known to it."""
    known = {str(Path(entry.fname).resolve()) for entry in fontManager.ttflist}
    before = len(fontManager.ttflist)
    for path in sorted(font_manager.findSystemFonts()):
        if str(Path(path).resolve()) not in known and _covered(path, 0, wanted):
            try:
                fontManager.addfont(path)
            except (OSError, RuntimeError, ValueError, KeyError):  # what its own scan skips as well
                continue
    return fontManager.ttflist[before:]
