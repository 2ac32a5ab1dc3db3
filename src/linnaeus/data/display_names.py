"""Display names of classes, from files beside the data; matched to the classes by name, not by position."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from linnaeus.data import tree
from linnaeus.data.class_names import NAMES_TEXT, class_name, listed, natural_key, read_classes, read_text
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.errors import UserError

NAMES_JSON = "cat_to_name.json"
TEXT_FILES = (NAMES_TEXT, "labels.txt", "class_names.txt", "label_list.txt")
LABEL_MAP = "label_num_to_disease_map.json"  # of numbers to names, as Kaggle has it beside a train.csv
JSON_FILES = (NAMES_JSON, "class_names.json", "labels.json", LABEL_MAP)
BY_NAME_ONLY = ("LOC_synset_mapping.txt", "classes.csv", "class_dict.csv", "data.yaml")
"""Files of ImageNet, Kaggle and Ultralytics, whose lines are never taken by their position alone."""
YAML_NAMES = re.compile(r"^names:[ \t]*(\[[^\]]*\]|(?:\n[ \t]*(?:-|[0-9]+:)[ \t].*)+)", re.MULTILINE)
YAML_NAME = re.compile(r"^[ \t]*(?:-|([0-9]+):)[ \t]+(.*?)[ \t]*(?:[ \t]#.*)?$", re.MULTILINE)
IDENTIFIER = re.compile(r"(?:class|cls|label|category|id|[a-z])?[-_ ]?[0-9]+", re.IGNORECASE)


class _MismatchError(UserError):
    """A file whose names do not belong to the classes."""


@dataclass(frozen=True)
class DisplayNames:
    """Classes in their order, the name to show for each, and where the names come from."""

    classes: tuple[str, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()


def stem(text: str) -> str:
    """`text` without case, separators, leading zeros and plural endings: equal for `Roses`, `rose` and `rose_`."""
    tokens = re.findall(r"[0-9]+|[^\W\d_]+", unicodedata.normalize("NFKC", text).casefold())
    joined = "".join(f"#{token.lstrip('0')}#" if token.isdigit() else token for token in tokens)
    return re.sub(r"(?:ies|y|es|e|s)+$", "", joined) or joined or text


def match(classes: Iterable[str], candidates: Iterable[str]) -> dict[str, str]:
    """Class -> the candidate that is the same name: letter by letter, or by a `stem` that is unique on both sides."""
    classes, candidates = tuple(classes), dict.fromkeys(candidates)
    # A stem must be unique on both sides, else two classes could take the same name.
    stems = Counter(map(stem, classes))
    by_stem: dict[str, list[str]] = {}
    for candidate in candidates:
        by_stem.setdefault(stem(candidate), []).append(candidate)
    matches = {}
    for name in classes:
        similar = by_stem.get(stem(name), [])
        if name in candidates:
            matches[name] = name
        elif len(similar) == stems[stem(name)] == 1:
            matches[name] = similar[0]
    return matches


def display_names(folder: Path, classes: tuple[str, ...]) -> DisplayNames:
    """Class folders -> their order and display names, from files in `folder`.

    Text (TEXT_FILES), in one of these forms: every class is a line, and the lines give the order; every line is
    `class name`; every line is `index class`. Names need not agree in case, separators or number. Only where the
    classes are identifiers such as `1` or `n0144`, and no line resembles one, are the lines assigned in natural order.
    BY_NAME_ONLY: the same forms, but nothing is assigned by position. JSON (JSON_FILES, the first also one level up):
    an object from class to name, or from name to class; classes that it lacks keep their own names.

    Raises UserError if a file gives a class the name of another one, if two files contradict each other, and
    where `classes.txt` does not fit. Any other file that does not fit is left out, which `notes` states.
    """
    names: dict[str, str] = {}
    notes: list[str] = []
    origin: dict[str, Path] = {}
    for path in _files(folder):
        try:
            lines, renamed = _read(path, classes)
            order, renamed, how = _from_lines(path, classes, lines) if lines else (classes, renamed, "by name")
        except _MismatchError as error:
            # Files under the usual name are meant for us, so their mistakes are errors; others may serve another tool.
            if path.name == NAMES_TEXT:
                raise
            notes.append(f"{error}; not used")
            continue
        refuse_swapped(path, classes, renamed)
        for name in sorted(renamed.keys() & names.keys()):
            # Two files may differ in spelling, but not name one class differently.
            if len({stem(names[name]), stem(renamed[name])} - {stem(name)}) == 2:
                raise UserError(
                    f"{path}: class {name!r} is {renamed[name]!r}, but {names[name]!r} in {origin[name]}; remove one"
                )
        if not origin:  # the first file decides the order
            classes = order
        names |= renamed
        origin |= dict.fromkeys(renamed, path)
        notes += naming_note(path, {c: renamed[c] for c in classes if renamed.get(c, c) != c}, how)
    notes += _repeated({name: names.get(name, name) for name in classes})
    return DisplayNames(classes, tuple(names.get(name, name) for name in classes), tuple(notes))


def naming_note(path: Path, names: Mapping[str, str], how: str) -> list[str]:
    """The line that states where display names come from; none where a file renames no class."""
    if not names:
        return []
    examples = ", ".join(f"{name!r} is {shown!r}" for name, shown in list(names.items())[:3])
    return [f"display names from {path}, {how}: {examples}{', …' if len(names) > 3 else ''}"]


def refuse_swapped(path: Path, classes: Iterable[str], names: Mapping[str, str]) -> None:
    """Raise UserError if `names` (class -> display name) gives a class a name that is that of another class."""
    owners = {stem(name): name for name in classes}
    for name, shown in names.items():
        owner = owners.get(stem(shown), name)
        if stem(owner) != stem(name):
            raise UserError(
                f"{path}: gives class {name!r} the name {shown!r}, but {owner!r} is a class of its own; correct the "
                "file, or remove it"
            )


def names_by_index(folder: Path) -> tuple[Path, dict[int, str]] | None:
    """The first file in `folder` that names classes by number, and index -> name; None if there is none."""
    for path in filter(tree.is_file, (folder / name for name in TEXT_FILES)):
        try:
            names = read_classes(path)
        except UserError:
            if path.name == NAMES_TEXT:
                raise
            continue
        if not any(Path(word).suffix.lower() in IMAGE_SUFFIXES for line in names.values() for word in line.split()):
            return path, names
    if tree.is_file(folder / LABEL_MAP):
        with suppress(UserError):
            content = read_json(folder / LABEL_MAP)
            if isinstance(content, dict) and all(map(str.isdigit, content)):
                return folder / LABEL_MAP, {int(key): name for key, name in content.items()}
    return None


def _files(folder: Path) -> list[Path]:
    beside = [folder / name for name in (*TEXT_FILES, *JSON_FILES, *BY_NAME_ONLY)]
    files = [path for path in beside if tree.is_file(path)]
    above = folder.absolute().parent / NAMES_JSON
    return files if folder / NAMES_JSON in files or not tree.is_file(above) else [*files, above]


def _read(path: Path, classes: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """The lines of a file, or else its names by class."""
    if path.suffix == ".json":
        content = read_json(path)
        if isinstance(content, list):
            return content, {}
        return [], _from_object(path, classes, content)
    text = read_text(path)
    rows = _yaml_names(text) if path.suffix == ".yaml" else text.split("\n")
    lines = [line for row in rows if (line := class_name(row))]
    if path.suffix == ".csv" and not match(classes, lines[0].split(",") if lines else ()):
        lines = [",".join(line.split(",")[:2]) for line in lines[1:]]  # without the header
    if not lines:
        raise _MismatchError(f"{path}: names no class")
    return lines, {}


def _yaml_names(text: str) -> list[str]:
    """`index name` of each name in the list or mapping `names` of a data.yaml, without a parser of YAML."""
    block = YAML_NAMES.search(text)
    if block is None:
        return []
    inline = block[1].startswith("[")
    pairs = [("", name.strip()) for name in block[1][1:-1].split(",")] if inline else YAML_NAME.findall(block[1])
    names = [(key or str(position), name.strip("'\"")) for position, (key, name) in enumerate(pairs)]
    return [" ".join(pair) for pair in names]


def _from_lines(
    path: Path, classes: tuple[str, ...], lines: Sequence[str]
) -> tuple[tuple[str, ...], dict[str, str], str]:
    """Class order, names by class, and how the two were matched."""
    # Accepts the separators seen in published datasets: "0 rose", "n01440764: tench", "rose, Rose".
    pairs = [re.split(r"\s*[:=,;]\s+|\s+|[:=,;]", line, maxsplit=1) for line in lines]
    if not all(len(pair) == 2 and all(pair) for pair in pairs):
        pairs = []
    rest = {key: class_name(name) for key, name in pairs}
    by_line, by_key = match(classes, lines), match(classes, rest)
    by_rest = match(classes, (name for _, name in pairs))
    numbered = bool(pairs) and all(key.isdigit() for key in rest)
    # In reverse, so that the first of two equal lines decides the position.
    if len(by_line) == len(classes):
        position = {line: i for i, line in reversed(list(enumerate(lines)))}
        return tuple(sorted(classes, key=lambda name: position[by_line[name]])), by_line, "by name"
    if len(by_key) == len(classes):
        return classes, {name: rest[key] for name, key in by_key.items()}, "by name"
    if len(by_rest) == len(classes) and numbered:
        index = {name: natural_key(key) for key, name in pairs}
        return tuple(sorted(classes, key=lambda name: index[by_rest[name]])), by_rest, "by name"
    resembles = bool(by_line or by_key or by_rest)
    # Positions are trusted only where the folders carry identifiers, such as WordNet's, that name nothing.
    identifiers = all(IDENTIFIER.fullmatch(name) for name in classes)
    keyed = numbered and all(name.isdigit() for name in classes)  # keys that name other classes, or count from 1
    guessed = identifiers and not resembles and not keyed and path.name not in BY_NAME_ONLY
    if len(lines) == len(classes) and guessed:
        return classes, dict(zip(classes, lines, strict=True)), "in the order of its lines, since none names a class"
    best = max(by_line, by_key, by_rest, key=len)
    missing = [name for name in classes if name not in best]
    raise _MismatchError(
        f"{path}: {len(lines)} lines do not fit the {len(classes)} class folders (no line for {listed(missing)}); "
        "write `folder name` on a line for every class, or remove the file"
    )


def _from_object(path: Path, classes: tuple[str, ...], content: dict[str, str]) -> dict[str, str]:
    """Class -> name, of an object from class to name or from name to class."""
    by_key = match(classes, content)
    if by_key:
        return {name: content[key] for name, key in by_key.items()}
    keys = {value: key for key, value in content.items()}
    by_value = match(classes, keys)
    if len(by_value) == len(classes) and len(keys) == len(content):
        indexed = all(map(str.isdigit, content))  # index to class: the classes name themselves
        return by_value if indexed else {name: keys[value] for name, value in by_value.items()}
    raise _MismatchError(f"{path}: names none of the {len(classes)} classes")


def read_json(path: Path) -> dict[str, str] | list[str]:
    """A JSON file of names: an object from class to name, from name to class or index, or an array of names."""
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); correct or remove the file") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply; write an object from class to name") from None
    except ValueError:  # a number of thousands of digits
        raise UserError(f"{path}: holds a number that is too long; write an object from class to name") from None
    if isinstance(content, list) and content and all(isinstance(name, str) and name.strip() for name in content):
        return [class_name(name) for name in content]
    error_type = UserError if path.name == NAMES_JSON else _MismatchError
    if not isinstance(content, dict):
        raise error_type(f'{path}: holds no object; write {{"class": "name", ...}}')
    if content and all(type(value) is int for value in content.values()) and not any(map(str.isdigit, content)):
        content = {str(index): name for name, index in content.items()}  # name to index, as Keras writes it
    for key, name in content.items():
        if not isinstance(name, str) or not name.strip():
            raise error_type(f"{path}: the name of class {key!r} is {name!r}; write a string")
    return {class_name(key): class_name(name) for key, name in content.items()}


def _repeated(names: Mapping[str, str]) -> list[str]:
    """A note about classes that are displayed under the same name."""
    counts = Counter(names.values())
    same = [name for name, shown in names.items() if counts[shown] > 1]
    return [f"classes {listed(same)} share a display name ({names[same[0]]!r})"] if same else []
