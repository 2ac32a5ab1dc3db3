"""Shards: tar files as WebDataset reads them, with an index from which the table is read without opening a tar.

    shards/
        index.jsonl
        train-00000.tar
        valid-00000.tar

`linnaeus data shard` writes the folder. The first line of the index describes the shards, every other line an image:

    {"format": 1, "classes": […], "names": […], "shards": [{"file": "train-00000.tar", "bytes": 1024}, …]}
    {"name": "rose/1.jpg", "label": 0, "split": "train", "shard": 0, "offset": 512, "size": 331, "crc32": 12345}

Tar files without an index are read by `webdataset.py`.
"""

from __future__ import annotations

import json
import os
import re
from array import array
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from linnaeus.data.archives.members import ShardMembers
from linnaeus.data.archives.remote import fetch_range, head, is_address
from linnaeus.data.class_names import class_name
from linnaeus.data.readers.webdataset import is_shard, open_tars
from linnaeus.data.table import SPLIT_NAMES, Table
from linnaeus.errors import UserError, next_step

INDEX = "index.jsonl"
FORMAT = 1
INDEX_LIMIT = 4 << 30  # bytes; a line has about 120
MOST_SHARDS = 1_000_000
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
NUMBERS = ("label", "shard", "offset", "size", "crc32")


def find_shards(path: Path, names: set[str]) -> bool:
    """Whether a folder holds shards: an index, or tar files and no folders."""
    if INDEX in names:
        return True
    tars = sorted(name for name in names if name.endswith(".tar"))
    return bool(tars) and is_shard(path / tars[0]) and not any((path / name).is_dir() for name in names)


def open_shards(source: str, place: str | Path) -> Table:
    """Read a folder of shards, one shard, an address of either, or a range `x-{000..099}.tar` of them."""
    text = str(place)
    # A range comes first: an address with braces is not that of a folder.
    if RANGE.search(text):
        return open_tars(source, expand(text))
    if is_address(text):
        if text.endswith(".tar"):
            return open_tars(source, [text])
        base = text.removesuffix(INDEX).rstrip("/") + "/"
        # The index is read into memory, so its size is checked before.
        length, _ = head(base + INDEX)
        if length > INDEX_LIMIT:
            raise UserError(f"{base + INDEX}: {length:,} bytes are too many for an index; write the shards again")
        return read_index(source, base + INDEX, fetch_range(base + INDEX, 0, length).split(b"\n"), base)
    path = Path(text)
    if path.is_file():
        return open_tars(source, [str(path.absolute())])
    if (path / INDEX).is_file():
        with (path / INDEX).open("rb") as file:
            return read_index(source, str(path / INDEX), file, str(path.absolute()) + os.sep)
    return open_tars(source, sorted(str(p.absolute()) for p in path.glob("*.tar")))


def expand(pattern: str) -> list[str]:
    """`x-{08..11}.tar` -> x-08.tar … x-11.tar."""
    match = RANGE.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MOST_SHARDS:
        raise UserError(f"{pattern}: {match[0]} is not a range of shards; write it as {{000..099}}")
    numbers = [str(n).zfill(len(match[1])) for n in range(first, last + 1)]
    rest = expand(pattern[match.end() :])
    return [pattern[: match.start()] + number + end for number in numbers for end in rest]


def read_index(source: str, origin: str, lines: Iterable[bytes], base: str) -> Table:
    """The table of the index `origin`, whose shards lie in the folder or at the address `base`."""
    columns = {key: array("q") for key in NUMBERS}
    names: list[str] = []
    split: list[str] = []
    header: dict[str, Any] | None = None
    number = 0
    try:
        for line in lines:
            number += 1
            if not line.strip():
                continue
            fields = json.loads(line)
            if header is None:
                header = _check_header(fields)
                continue
            _check_image(fields, header)
            for key in NUMBERS:
                columns[key].append(fields[key])
            names.append(str(fields["name"]))
            split.append(SPLIT_NAMES.get(fields["split"], ""))
        if header is None:
            raise ValueError("the index is empty")
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{origin}:{number}: not an index of shards ({reason}); write the shards again") from None
    label, shard, offset, size, crc32 = (np.array(columns[key], np.int64) for key in NUMBERS)
    shards = header["shards"]
    places = tuple(base + entry["file"] for entry in shards)
    stamps = tuple(str(entry["bytes"]) for entry in shards)
    members = ShardMembers(places, stamps, tuple(names), shard.astype(np.int32), offset, size, crc32)
    # On a server the lengths would cost a request per shard; a wrong range is detected when reading.
    if not is_address(base):
        _check_lengths(members, [entry["bytes"] for entry in shards])
    classes, shown = (tuple(map(str, header[key])) for key in ("classes", "names"))
    root = "" if is_address(base) else base.rstrip(os.sep)
    return Table(source, "shards", classes, shown, label, np.array(split, "<U5"), members=members, root=root)


def _check_header(fields: Any) -> dict[str, Any]:
    """The first line of an index, with normalized class names. Raises ValueError, KeyError or TypeError."""
    if fields.get("format") != FORMAT:
        raise ValueError(f"format {fields.get('format')!r}, but this version reads format {FORMAT}")
    classes, names = ([class_name(str(text)) for text in fields[key]] for key in ("classes", "names"))
    if len(set(classes)) != len(classes) or len(names) != len(classes) or not all(classes):
        raise ValueError("two classes have the same name, or a class has none")
    for shard in fields["shards"]:
        name, length = shard["file"], shard["bytes"]
        # Names come from a file that others wrote: a path could lead out of the folder.
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"shard {name!r} is not in the folder of the index")
        if type(length) is not int or length < 0:
            raise ValueError(f"shard {name!r} has {length!r} bytes")
    return {**fields, "classes": classes, "names": names}


def _check_image(fields: dict[str, Any], header: dict[str, Any]) -> None:
    """Check the line of one image. Raises ValueError or KeyError."""
    values = [fields[key] for key in NUMBERS]
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise ValueError(f"{', '.join(NUMBERS)} are {values}, not whole numbers from 0")
    label, shard, offset, size, _ = values
    if label >= len(header["classes"]) or shard >= len(header["shards"]):
        raise ValueError(f"label {label} or shard {shard} is not in the first line")
    if offset + size > header["shards"][shard]["bytes"]:
        raise ValueError(f"bytes {offset} to {offset + size} lie beyond the end of shard {shard}")
    if fields["split"] not in ("", *SPLIT_NAMES):
        raise ValueError(f"unknown split {fields['split']!r}")


def _check_lengths(members: ShardMembers, lengths: list[int]) -> None:
    """Raise UserError for a shard that is missing or has another length than the index says."""
    for place, length in zip(members.places, lengths, strict=True):
        try:
            size = os.stat(place).st_size
        except OSError as error:
            advice = next_step(error, "copy it here")
            raise UserError(f"{place}: a shard of the index is missing ({error.strerror}); {advice}") from None
        if size != length:
            raise UserError(f"{place}: {size:,} bytes, but the index says {length:,}; write the shards again")
