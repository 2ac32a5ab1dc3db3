"""Class names: how they are compared, ordered and displayed."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from linnaeus.data import tree
from linnaeus.errors import UserError, visible
from linnaeus.text import first_few

DIGITS = re.compile(r"([0-9]+)")
TEXT_LIMIT = 256 * 1024 * 1024  # bytes; a list of ten million images is about this long
NAMES_TEXT = "classes.txt"


def class_name(text: str) -> str:
    """The identity of a class: Unicode NFC, without surrounding blanks.

    macOS returns folder names decomposed, Linux as they were written; both must be the same class. Bytes that are not
    UTF-8 and control characters become visible escapes, so that a name can always be printed, hashed and stored.
    """
    return visible(unicodedata.normalize("NFC", text).strip())


def spelling_variants(written: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """(split, class as written) -> those of classes that are written in more than one way, sorted."""
    forms: dict[str, set[str]] = {}
    written = {(split, visible(text)) for split, text in written}
    for _, text in written:
        forms.setdefault(class_name(text), set()).add(text)
    return tuple(sorted((split, text) for split, text in written if len(forms[class_name(text)]) > 1))


def printable(text: str) -> str:
    r"""`text` with the bytes of a file name that are not UTF-8 (Python's lone surrogates) written as `\udcxx`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def natural_key(text: str) -> list[Any]:
    """Sort key: runs of digits by value ('2' before '10'), the rest by code point."""
    parts: list[Any] = DIGITS.split(text)  # text, digits, text, …: comparisons always meet the same type
    for i in range(1, len(parts), 2):  # by length, then by digits: orders numbers of any length by value
        number = parts[i].lstrip("0")
        parts[i] = (len(number), number)
    return parts


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct `names` in natural order."""
    return tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))


def listed(names: Sequence[str], most: int = 5) -> str:
    """`names` for a one-line message: quoted; the names after the first `most` are only counted."""
    return first_few([repr(name) for name in names], most)


def read_text(path: Path) -> str:
    """A text file: UTF-8 with or without byte order mark, or UTF-16 or UTF-32 with one (as spreadsheets save it).

    Bytes that are not UTF-8 become lone surrogates, because file names may contain them. Raises UserError if the
    file cannot be read, or has NUL bytes.
    """
    try:
        size = tree.stat(path).st_size
        if size > TEXT_LIMIT:
            raise UserError(f"{path}: {size} bytes is too long for a text file; is it the right file?")
        raw = tree.read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if raw[:4] in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):  # before UTF-16, whose mark begins in the same way
        return raw.decode("utf-32", "replace")
    if raw[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return raw.decode("utf-16", "replace")
    if b"\0" in raw:
        raise UserError(
            f"{path}: has NUL bytes, as UTF-16 and UTF-32 have; such a file needs a byte order mark: save it as UTF-8"
        )
    return raw.decode("utf-8-sig", "surrogateescape")


def read_classes(path: Path) -> dict[int, str]:
    """`classes.txt` -> index to name: one name per line, counted from 0; or `index name` on every line."""
    lines = [class_name(line) for line in read_text(path).split("\n")]
    # A file may end with a newline or several, which name no class.
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line:
            raise UserError(f"{path}:{number}: an empty line would shift the classes below it; remove it")
    pairs = [re.fullmatch(r"([0-9]{1,9})\s+(\S.*)", line) for line in lines]
    if all(pairs):
        names = {int(pair[1]): pair[2] for pair in pairs if pair}
        # With an index twice, one name would be lost: such lines are taken as plain names.
        if len(names) == len(lines):
            return names
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line in seen:
            raise UserError(f"{path}:{number}: class {line!r} is on line {seen[line]} too; remove one")
        seen[line] = number
    return dict(enumerate(lines))
