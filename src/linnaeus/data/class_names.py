"""Class names: how they are compared, ordered and displayed."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from linnaeus.errors import UserError, visible

DIGITS = re.compile(r"([0-9]+)")
TEXT_LIMIT = 256 * 1024 * 1024  # bytes; a list of ten million images is about this long
NAMES_JSON = "cat_to_name.json"
NAMES_TEXT = "classes.txt"


def class_name(text: str) -> str:
    """The identity of a class: Unicode NFC, without blanks around it.

    macOS hands out folder names decomposed and Linux as they were written; both must be the same class. Bytes that are
    no UTF-8, and characters that a terminal would obey, become visible escapes, so that a name can always be printed,
    hashed and stored.
    """
    return visible(unicodedata.normalize("NFC", text).strip())


def spelled_apart(written: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """(split, class as written) -> those of classes that are written in more than one way, sorted."""
    ways: dict[str, set[str]] = {}
    written = {(split, visible(text)) for split, text in written}
    for _, text in written:
        ways.setdefault(class_name(text), set()).add(text)
    return tuple(sorted((split, text) for split, text in written if len(ways[class_name(text)]) > 1))


def printable(text: str) -> str:
    r"""`text` with the bytes of a file name that are no UTF-8 (Python's lone surrogates) written as `\udcxx`."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def natural_key(text: str) -> list[Any]:
    """Sort key: runs of digits by value ('2' before '10'), the rest by code point."""
    parts: list[Any] = DIGITS.split(text)  # text, digits, text, digits ... text: like meets like in comparisons
    for i in range(1, len(parts), 2):  # by length, then by digits: the value, for numbers of any length
        number = parts[i].lstrip("0")
        parts[i] = (len(number), number)
    return parts


def natural_order(names: Iterable[str]) -> tuple[str, ...]:
    """Distinct `names` in natural order."""
    return tuple(sorted(set(names), key=lambda name: (natural_key(name), name)))


def listed(names: Sequence[str], most: int = 5) -> str:
    """`names` for a one-line message: quoted, and counted beyond the first few."""
    text = ", ".join(repr(name) for name in names[:most])
    return text if len(names) <= most else f"{text} and {len(names) - most} more"


def read_text(path: Path) -> str:
    """A text file: UTF-8 with or without byte order mark, or UTF-16 with one (as spreadsheets save it).

    Bytes that are no UTF-8 stay as lone surrogates, because file names may hold them.
    """
    try:
        if path.stat().st_size > TEXT_LIMIT:
            raise UserError(f"{path}: {path.stat().st_size} bytes is too long for a text file; is it the right file?")
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", "replace")
    return raw.decode("utf-8-sig", "surrogateescape")


def read_classes(path: Path) -> dict[int, str]:
    """`classes.txt` -> index to name. One name a line, counted from 0; or `index name` on every line."""
    lines = [class_name(line) for line in read_text(path).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not line:
            raise UserError(f"{path}:{number}: an empty line would shift the classes below it; remove it")
    pairs = [re.fullmatch(r"([0-9]{1,9})\s+(\S.*)", line) for line in lines]
    if all(pairs):
        names = {int(pair[1]): pair[2] for pair in pairs if pair}
        if len(names) == len(lines):
            return names
    seen: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        if line in seen:
            raise UserError(f"{path}:{number}: class {line!r} stands on line {seen[line]} too; remove one")
        seen[line] = number
    return dict(enumerate(lines))


def display(folder: Path, classes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Class folders -> (class order, display names), as the files beside the data say.

    `cat_to_name.json`, in `folder` or next to it: an object from class to name; classes that it lacks keep their own.
    `classes.txt`, in `folder` only, in one of three forms, recognised in this order:

    1. every class is a line of it: the lines are the order of the classes;
    2. every line is `class name`, split at the first blank, and every class is named: display names;
    3. as many lines as there are classes: display names, in natural order of the classes.

    Anything else is refused, for a name on the wrong class is worse than none.
    """
    names = {}
    lines_path = folder / NAMES_TEXT
    if lines_path.is_file():
        lines = [class_name(line) for line in read_text(lines_path).split("\n")]
        lines = [line for line in lines if line]
        position = {line: i for i, line in reversed(list(enumerate(lines)))}
        pairs = {key: name for key, _, name in (line.partition(" ") for line in lines) if name}
        if set(classes) <= set(position):
            classes = tuple(sorted(classes, key=position.__getitem__))
        elif len(pairs) == len(lines) and set(classes) <= set(pairs):
            names = {name: class_name(pairs[name]) for name in classes}
        elif len(lines) == len(classes):
            names = dict(zip(classes, lines, strict=True))
        else:
            missing = [name for name in classes if name not in position and name not in pairs]
            raise UserError(
                f"{lines_path}: {len(lines)} lines do not fit the {len(classes)} class folders (no line for "
                f"{listed(missing)}); write one name a line for every class, or remove the file"
            )
    for path in (folder / NAMES_JSON, folder.parent / NAMES_JSON):
        if path.is_file():
            names |= read_names(path)
            break
    return classes, tuple(names.get(name, name) for name in classes)


def read_names(path: Path) -> dict[str, str]:
    """`cat_to_name.json` -> class to display name."""
    try:
        found = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); correct or remove the file") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; write an object from class to name") from None
    except ValueError:  # a number of thousands of digits
        raise UserError(f"{path}: holds a number that is too long; write an object from class to name") from None
    if not isinstance(found, dict):
        raise UserError(f'{path}: holds no object; write {{"class": "name", ...}}')
    for key, name in found.items():
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{path}: the name of class {key!r} is {name!r}; write a text")
    return {class_name(key): class_name(name) for key, name in found.items()}
