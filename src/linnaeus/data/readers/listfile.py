"""List files: `path label`, one image per line."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnaeus.data import tree
from linnaeus.data.class_names import (
    NAMES_TEXT,
    class_name,
    listed,
    natural_order,
    printable,
    read_text,
    spelling_variants,
)
from linnaeus.data.display_names import names_by_index, naming_note, refuse_swapped
from linnaeus.data.readers.namesakes import namesake
from linnaeus.data.readers.repeats import whole_numbers, with_swapped_labels, without_repeats
from linnaeus.data.table import SPLIT_NAMES, SPLITS, Table
from linnaeus.errors import UserError

NUMBER = re.compile("-?[0-9]{1,18}")
MXNET = re.compile(r"[0-9]+\t([0-9]{1,18})(?:\.0*)?\t(.+)")  # index, label, path
IMAGE_FOLDERS = ("images", "image", "img", "imgs", "jpg", "train", "train_images", "data")
SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG", ".webp", ".bmp", ".tif", ".tiff")


@dataclass
class Rows:
    """What one list file or CSV says, row by row."""

    file: Path
    texts: list[str] = field(default_factory=list)  # paths, as written
    labels: list[str] = field(default_factory=list)
    sets: list[tuple[str, ...]] | None = None  # labels of each image, where it may have several
    splits: list[str] = field(default_factory=list)  # "train" | "valid" | "test" | ""
    lines: list[int] = field(default_factory=list)  # line numbers, from 1, for messages
    groups: list[str] | None = None
    accepted: list[bool] = field(default_factory=list)  # whether a classifier gave the label; empty: unknown
    written: set[tuple[str, str]] = field(default_factory=set)  # (split, label as written)
    offered: tuple[str, ...] = ()  # columns that may say which images belong together
    notes: list[str] = field(default_factory=list)  # how the file was understood
    exact: bool = False  # whether labels are taken as they are, because Linnaeus wrote the file
    names: dict[str, str] = field(default_factory=dict)  # class -> its column as written, where each has a column


def open_lists(source: str, files: dict[str, Path]) -> Table:
    """Read list files; `files` maps a split ("" for none yet) to its file.

    A line is split at its last blank, so paths may hold blanks. Labels are names, or all of them numbers. The name of
    a number is its line in `classes.txt` beside the list (from 0; or the line `number name`), else the parent folder of
    its images where that is one to one, else the number itself. Classes that no line uses are left out: the model's
    index is the position among those that occur. Class order is that of the numbers, of `classes.txt`, or natural.
    """
    parts = [read_list(path, split) for split, path in files.items()]
    folder = parts[0].file.parent
    paths = [path for part in parts for path in locate(part)]
    labels, classes, notes = _resolve_labels(parts, paths, folder)
    split = np.array([split for part in parts for split in part.splits], dtype="<U5")
    root = str(folder.absolute())
    spellings = spelling_variants(pair for part in parts for pair in part.written)
    table = Table(source, "list", classes, classes, labels, split, paths=tuple(paths), root=root, spellings=spellings)
    return with_swapped_labels(
        without_repeats(table.with_notes(*(note for part in parts for note in part.notes), *notes))
    )


def read_list(path: Path, split: str = "") -> Rows:
    """Read one list file into rows; the images are not looked for yet."""
    rows, labels = Rows(path), []
    by_folder = False
    for number, line in enumerate(read_text(path).split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        cut = line.rsplit("\t", 1) if "\t" in line else line.rsplit(None, 1)  # labels may hold blanks after a tab
        if path.suffix.lower() == ".lst" and (record := MXNET.fullmatch(line)):
            cut = [record[2], record[1]]
        if len(cut) < 2 and "/" in line and (by_folder or not rows.texts):  # as in Food-101: class/image
            by_folder, cut = True, [line, line.split("/")[-2]]
        elif len(cut) < 2 or by_folder:
            raise UserError(f"{path}:{number}: {clip(line)} has no label; write `path label` on each line")
        rows.texts.append(cut[0])
        rows.labels.append(label_of(cut[1], path, number))
        labels.append(cut[1])
        rows.lines.append(number)
    splits, rows.notes = ([], []) if split else splits_of_folders(path, rows.texts)
    rows.splits = splits or [split] * len(rows.texts)
    rows.written = set(zip(rows.splits, labels, strict=True))
    if by_folder:
        rows.notes.append(f"{path.name}: lines have no label; the class is the folder of each image")
    if not rows.texts:
        raise UserError(f"{path}: lists no images; write `path label`, one per line")
    return rows


def splits_of_folders(file: Path, texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The split of each path and a note, where every path leads through a folder such as train/ or test/; else empty.

    A random split would mix the test images of such a list into training.
    """
    folders = [text.strip().replace("\\", "/").lower().split("/")[:-1] for text in texts]
    for level in zip(*folders, strict=False):
        splits = [SPLIT_NAMES.get(name, "") for name in level]
        if all(splits) and len(set(splits)) > 1:
            counts = ", ".join(f"{splits.count(split)} {split}" for split in SPLITS if split in splits)
            names = listed(sorted(set(level)))
            return splits, [f"{file.name}: the split is that of the folders {names} in the paths: {counts}"]
    return [], []


def clip(text: str, most: int = 120) -> str:
    """`text` quoted on one line of a message, shortened."""
    return repr(printable(text if len(text) <= most else text[:most] + "…"))


def _guessed(text: str) -> str:
    """A label that is not UTF-8, as it reads in a usual other encoding, so that the reader recognizes it."""
    raw = text.encode("utf-8", "surrogateescape")
    latin = sum(byte < 0x80 for byte in raw) > len(raw) / 2  # few accented letters, which GB 18030 would read too
    for encoding in ("cp1252", "gb18030") if latin else ("gb18030", "cp1252"):
        with suppress(UnicodeDecodeError):
            guess = raw.decode(encoding)
            if guess.isprintable():
                return f"{clip(guess)} (a guess from its bytes)"
    return clip(text)


def label_of(text: str, path: Path, number: int) -> str:
    """A label as written -> its class name. Refuses bytes that are no UTF-8, for they would match no other class."""
    if printable(text) != text:
        raise UserError(
            f"{path}:{number}: label {_guessed(text)} is not UTF-8; save the file as UTF-8 (in Excel: CSV UTF-8)"
        )
    return class_name(text)


def locate(rows: Rows) -> list[str]:
    """Absolute paths of the images: relative to the list, then to the working directory.

    Names that do not exist as written are sought in the usual folders beside the list and with the usual suffixes
    (IMAGE_FOLDERS, SUFFIXES); one such rule holds for the whole list, and `rows.notes` states it. Raises UserError for
    the first image that does not exist, with the number of others.
    """
    folder = str(rows.file.absolute().parent)
    paths = [_find(text, folder) for text in rows.texts]
    missing = [k for k, path in enumerate(paths) if path is None]
    # The rule found for the first missing image is applied to all: lists are written by one program.
    if missing and (rule := _rule(rows.texts[missing[0]].strip(), folder, rows.file.stem)) is not None:
        place, suffix = rule
        for k in missing:
            paths[k] = _find(os.path.join(place, rows.texts[k].strip() + suffix), folder)
        missing = [k for k in missing if paths[k] is None]
        where = f" in {place}/" if place else ""
        rows.notes.append(f"{rows.file.name}: images are found{where}{f' with {suffix} added' if suffix else ''}")
    if missing:
        raise _missing_images(rows, missing, folder)
    return [path for path in paths if path is not None]


def _missing_images(rows: Rows, missing: list[int], folder: str) -> UserError:
    """The error for rows whose images do not exist: it names the first of them, and what may help."""
    first = missing[0]
    text = rows.texts[first].strip()
    others = f" (nor do {len(missing) - 1} more of {len(rows.texts)})" if len(missing) > 1 else ""
    here = str(Path.cwd())
    where = f" in {folder}" if folder == here else f", neither in {folder} nor in {here}"
    hint = "correct the path or remove the line"
    # Lists made on another machine hold its paths; a suffix of the path may exist here.
    parts = text.replace("\\", "/").split("/")
    tails = ["/".join(parts[k:]) for k in range(1, len(parts))]
    if re.match("[a-z][a-z0-9+.-]+://", text, re.IGNORECASE):
        hint = "it is an address, and a list names files: download the images first"
    elif tail := next((tail for tail in tails if _find(tail, folder)), None):
        hint = f"{tail} exists: remove the part before it from the paths"
    elif other := namesake(text, folder):
        hint = f"{other} exists: if it is meant, write the paths that way"
    return UserError(
        f"{rows.file}:{rows.lines[first]}: {clip(rows.texts[first])} does not exist{others}{where}; {hint}"
    )


def _rule(text: str, folder: str, stem: str) -> tuple[str, str] | None:
    """(folder beside the list, suffix) with which a name that does not exist as written is a file."""
    names = (stem, f"{stem}_images", *IMAGE_FOLDERS, "../images")
    places = [name for name in dict.fromkeys(names) if tree.is_folder(os.path.join(folder, name))]
    for place in ("", *places):
        for suffix in ("", *SUFFIXES):
            if _find(os.path.join(place, text + suffix), folder):
                return place, suffix
    return None


def _find(text: str, folder: str) -> str | None:
    """The first file that a listed path can mean.

    Lists made on Windows separate folders by backslashes. macOS decomposes accents (NFD) in the names of some file
    systems and archives, and most editors compose them (NFC).
    """
    slashes = text.strip().replace("\\", "/")
    forms = () if text.isascii() else (unicodedata.normalize("NFC", slashes), unicodedata.normalize("NFD", slashes))
    # os.path, not Path: three times as fast for 100,000 lines.
    for name in dict.fromkeys((text, text.strip(), slashes, *forms)):
        name = os.path.expanduser(name) if name.startswith("~") else name
        for base in (folder, os.curdir):  # joined to an absolute path, either drops out
            path = os.path.join(base, name)
            if tree.is_file(path) and tree.is_reachable(path, folder):
                return os.path.abspath(path)
    return None


def _resolve_labels(parts: list[Rows], paths: list[str], folder: Path) -> tuple[np.ndarray, tuple[str, ...], list[str]]:
    """Labels as written -> indices (n,) int64, the class names in index order, and where the names come from."""
    texts, notes = whole_numbers([label for part in parts for label in part.labels])
    numeric = [NUMBER.fullmatch(text) is not None for text in texts]
    named = names_by_index(folder)
    if all(numeric):
        keys = [int(text) for text in texts]
        names, naming = _names_of_numbers(keys, paths, named)
        notes += naming
        problem = f"has {len(names)} classes, {min(names)} to {max(names)}" if names else "lacks it"
    else:
        # Only classes.txt may name classes by numbers; without it, a number among names is a mistake.
        listing = named[1] if named is not None and named[0].name == NAMES_TEXT else None
        if listing is None and any(numeric):
            raise _mixed_kinds(parts, texts, numeric, folder)
        names = dict(enumerate(natural_order(texts))) if listing is None else listing
        number = {name: i for i, name in names.items()}
        keys = [number.get(text, -1) for text in texts]
        problem = "lacks it"
    for k, key in enumerate(keys):
        if key not in names:
            assert named is not None, "names that come from the labels have all of them"
            raise UserError(
                f"{_place(parts, k)}: label {clip(texts[k])}, but {named[0]} {problem}; correct one of them"
            )
    order = sorted(set(keys))
    # Labels may have gaps (1, 2, 5), but positions in the output layer may not.
    position = {key: k for k, key in enumerate(order)}
    return np.array([position[key] for key in keys], dtype=np.int64), tuple(names[key] for key in order), notes


def _names_of_numbers(
    keys: list[int], paths: list[str], named: tuple[Path, dict[int, str]] | None
) -> tuple[dict[int, str], list[str]]:
    """Number -> class name, and a note on the file that names them.

    `named` is that file with its names. Without one, the folder of the images names a number where that is one to one.
    """
    folders = folder_of_label(zip(map(str, keys), paths, strict=True))
    if named is None:
        return {key: folders.get(str(key), str(key)) for key in keys}, []
    file, names = named
    used = {str(key): names[key] for key in sorted(set(keys)) if key in names}
    by_folder = {folders[key]: name for key, name in used.items() if key in folders}
    refuse_swapped(file, by_folder, by_folder)
    return names, naming_note(file, used, "by index")


def _mixed_kinds(parts: list[Rows], texts: list[str], numeric: list[bool], folder: Path) -> UserError:
    """The error for numbers among names or names among numbers: the rarer kind is most likely the mistake."""
    rare = sum(numeric) * 2 <= len(numeric)
    k = numeric.index(rare)
    kind, rest = ("a number", "names") if rare else ("a name", "numbers")
    return UserError(
        f"{_place(parts, k)}: label {clip(texts[k])} is {kind} where the other labels are {rest}; "
        f"use one kind, or name every class in {folder / NAMES_TEXT}"
    )


def folder_of_label(rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(label, path) of each row -> label to the folder of its images; empty unless that is one to one."""
    pairs = {(label, class_name(path.rsplit(os.sep, 2)[-2])) for label, path in rows}
    folders = dict(sorted(pairs))
    return folders if len(folders) == len(pairs) == len(set(folders.values())) and all(folders.values()) else {}


def _place(parts: list[Rows], k: int) -> str:
    """`file:line` of the k-th row of all parts together."""
    for part in parts:
        if k < len(part.lines):
            return f"{part.file}:{part.lines[k]}"
        k -= len(part.lines)
    raise AssertionError("no such row")
