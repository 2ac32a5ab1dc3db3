"""Shards: images and labels in tar files as WebDataset has them, and an index by which each is read by itself.

A folder of shards, or its address, holds `index.jsonl`, which `linnaeus data shard` writes:

    {"format": 1, "classes": […], "names": […], "shards": [{"file": "shard-00000.tar", "bytes": 1024}, …]}
    {"name": "rose/1.jpg", "label": 0, "split": "train", "shard": 0, "offset": 512, "size": 331, "crc32": 12345}

The table is read from it alone, and an order of training is a permutation of its lines. Shards of others, without an
index, are read once from front to back, and what was found is kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from linnaeus.data.class_names import class_name, natural_order
from linnaeus.data.decode import IMAGE_SUFFIXES, UnreadableError
from linnaeus.data.download import cache_dir
from linnaeus.data.remote import Files, Stream, fetch_range, head, is_address
from linnaeus.data.table import SPLIT_NAMES, Table
from linnaeus.data.tarscan import scan
from linnaeus.errors import UserError
from linnaeus.files import write_text

INDEX = "index.jsonl"
FORMAT = 1
INDEX_LIMIT = 4 << 30  # bytes; a line has about 120
MOST_SHARDS = 1_000_000
LABELS = (".cls", ".json")
LABEL_KEYS = ("label", "cls", "class")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_FILES = Files()


@dataclass(frozen=True, eq=False)
class ShardMembers:
    """The images of shards, as `Table.members`: n of them, in `places`, each known by where its bytes lie."""

    places: tuple[str, ...]
    """A path or an address for each shard."""
    stamps: tuple[str, ...]
    """What a shard is known again by, beside its members' checksums."""
    names: tuple[str, ...]
    shard: np.ndarray
    """(n,) int32, an index into places."""
    offset: np.ndarray
    size_: np.ndarray
    """(n,) int64, bytes from the shard's start, and how many."""
    crc32: np.ndarray
    """(n,) int64; -1 where it is not known."""

    def __len__(self) -> int:
        return len(self.names)

    def name(self, i: int) -> str:
        return self.names[i]

    def size(self, i: int) -> int:
        return int(self.size_[i])

    def key(self, i: int) -> bytes:
        crc = int(self.crc32[i])
        stamp = "" if crc >= 0 else f"{self.stamps[self.shard[i]]} {self.offset[i]}"
        return f"{self.names[i]}\0{self.size_[i]} {crc} {stamp}".encode("utf-8", "surrogateescape")

    def read(self, i: int) -> bytes:
        place, offset, size = self.places[self.shard[i]], int(self.offset[i]), int(self.size_[i])
        data = fetch_range(place, offset, size) if is_address(place) else _FILES.read(place, offset, size)
        if len(data) != size:
            raise UnreadableError(self.names[i], f"{place} is cut short before it", kind="truncated")
        if self.crc32[i] >= 0 and zlib.crc32(data) != self.crc32[i]:
            raise UnreadableError(self.names[i], f"its bytes in {place} are not those that the index describes")
        return data

    def take(self, indices: np.ndarray) -> ShardMembers:
        return ShardMembers(
            self.places, self.stamps, tuple(self.names[i] for i in indices), self.shard[indices],
            self.offset[indices], self.size_[indices], self.crc32[indices],
        )  # fmt: skip


def find_shards(path: Path, names: set[str]) -> bool:
    """Whether a folder is one of shards: an index, or tar files and no folders."""
    if INDEX in names:
        return True
    tars = sorted(name for name in names if name.endswith(".tar"))
    return bool(tars) and is_shard(path / tars[0]) and not any((path / name).is_dir() for name in names)


def is_shard(path: Path) -> bool:
    """Whether a tar begins like a shard: its first files are an image's and a label's."""
    try:
        with path.open("rb") as file:
            local = _Local(file, path.stat().st_size)
            for count, member in enumerate(scan(str(path), local, lambda name: False)):
                suffix = PurePosixPath(member.name).suffix.lower()
                if suffix in IMAGE_SUFFIXES or suffix in LABELS:
                    return True
                if count == 8:
                    return False
    except (OSError, UserError):
        return False
    return False


def open_shards(source: str, place: str | Path) -> Table:
    """Read a folder of shards, one shard, an address of either, or a pattern `x-{000..099}.tar` of them."""
    text = str(place)
    if BRACES.search(text):
        return _open_foreign(source, _expand(text))
    if is_address(text):
        if text.endswith(".tar"):
            return _open_foreign(source, [text])
        base = text.removesuffix(INDEX).rstrip("/") + "/"
        length, _ = head(base + INDEX)
        if length > INDEX_LIMIT:
            raise UserError(f"{base + INDEX}: {length:,} bytes are too many for an index")
        return _table(source, base + INDEX, fetch_range(base + INDEX, 0, length).split(b"\n"), base)
    path = Path(text)
    if path.is_file():
        return _open_foreign(source, [str(path.absolute())])
    if (path / INDEX).is_file():
        with (path / INDEX).open("rb") as file:
            return _table(source, str(path / INDEX), file, str(path.absolute()) + os.sep)
    return _open_foreign(source, sorted(str(p.absolute()) for p in path.glob("*.tar")))


def _expand(pattern: str) -> list[str]:
    """`x-{08..11}.tar` -> x-08.tar … x-11.tar."""
    match = BRACES.search(pattern)
    if match is None:
        return [pattern]
    first, last = int(match[1]), int(match[2])
    if not 0 <= last - first < MOST_SHARDS:
        raise UserError(f"{pattern}: {{{match[1]}..{match[2]}}} is no range of shards, such as {{000..099}}")
    numbers = [str(n).zfill(len(match[1])) for n in range(first, last + 1)]
    rest = _expand(pattern[match.end() :])
    return [pattern[: match.start()] + number + end for number in numbers for end in rest]


def _table(source: str, origin: str, lines: Iterable[bytes], base: str) -> Table:
    """The table of an index whose files lie at `base`."""
    rows: list[tuple[int, int, int, int, int]] = []
    names: list[str] = []
    split: list[str] = []
    head_line: dict[str, Any] | None = None
    number = 0
    try:
        for line in lines:
            number += 1
            if not line.strip():
                continue
            found = json.loads(line)
            if head_line is None:
                head_line = _checked_head(found)
                continue
            values = tuple(found[key] for key in ("label", "shard", "offset", "size", "crc32"))
            _check_row(values, head_line)
            if found["split"] not in ("", *SPLIT_NAMES):
                raise ValueError(f"split {found['split']!r}")
            names.append(str(found["name"]))
            split.append(SPLIT_NAMES.get(found["split"], ""))
            rows.append(values)
        if head_line is None:
            raise ValueError("it is empty")
    except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise UserError(f"{origin}:{number}: no index of shards ({reason}); write it again") from None
    table = np.array(rows, np.int64).reshape(-1, 5)
    shards = head_line["shards"]
    members = ShardMembers(
        tuple(base + shard["file"] for shard in shards), tuple(str(shard["bytes"]) for shard in shards), tuple(names),
        table[:, 1].astype(np.int32), table[:, 2], table[:, 3], table[:, 4],
    )  # fmt: skip
    if not is_address(base):
        _check_lengths(members, [shard["bytes"] for shard in shards])
    classes, shown = (tuple(map(str, head_line[key])) for key in ("classes", "names"))
    root = "" if is_address(base) else base.rstrip(os.sep)
    return Table(source, "shards", classes, shown, table[:, 0], np.array(split, "<U5"), members=members, root=root)


def _checked_head(found: Any) -> dict[str, Any]:
    if found.get("format") != FORMAT:
        raise ValueError(f"format {found.get('format')!r}, and this version reads {FORMAT}")
    classes, names = ([class_name(str(text)) for text in found[key]] for key in ("classes", "names"))
    if len(set(classes)) != len(classes) or len(names) != len(classes) or not all(classes):
        raise ValueError("its classes are not all different, or not all named")
    for shard in found["shards"]:
        name, length = shard["file"], shard["bytes"]
        if not isinstance(name, str) or PurePosixPath(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"shard {name!r} is not beside the index")
        if type(length) is not int or length < 0:
            raise ValueError(f"shard {name!r} has {length!r} bytes")
    return {**found, "classes": classes, "names": names}


def _check_row(values: tuple[Any, ...], head_line: dict[str, Any]) -> None:
    if not all(type(value) is int and 0 <= value < 1 << 62 for value in values):
        raise ValueError(f"label, shard, offset, size, crc32 are {values}")
    label, shard, offset, size, _ = values
    if label >= len(head_line["classes"]) or shard >= len(head_line["shards"]):
        raise ValueError(f"label {label} or shard {shard} is none of those above")
    if offset + size > head_line["shards"][shard]["bytes"]:
        raise ValueError(f"bytes {offset} to {offset + size} lie behind the end of shard {shard}")


def _check_lengths(members: ShardMembers, lengths: list[int]) -> None:
    """Raise UserError for a shard that is missing or has another length than the index says."""
    for place, length in zip(members.places, lengths, strict=True):
        try:
            found = os.stat(place).st_size  # noqa: PTH116
        except OSError as error:
            raise UserError(f"{place}: a shard of the index that is not there ({error.strerror})") from None
        if found != length:
            raise UserError(f"{place}: {found:,} bytes, but the index says {length:,}; write the shards again")


class _Local:
    """A local file, for `scan`."""

    def __init__(self, file: Any, length: int):
        self.file, self.length = file, length

    def read(self, size: int) -> bytes:
        return self.file.read(size)

    def skip(self, size: int) -> None:
        if self.file.tell() + size > self.length:
            raise EOFError
        self.file.seek(size, os.SEEK_CUR)


def _open_foreign(source: str, places: list[str]) -> Table:
    """Shards without an index, as others write them: an image and its `.cls` or `.json` share a name."""
    known = [_stamp(place) for place in places]
    found = [_remembered(place, stamp) for place, stamp in zip(places, known, strict=True)]
    samples = [(shard, *sample) for shard, listed in enumerate(found) for sample in listed]
    if not samples:
        raise UserError(f"{source}: its shards hold no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    classes = natural_order(sample[4] for sample in samples)
    position = {name: i for i, name in enumerate(classes)}
    members = ShardMembers(
        tuple(places), tuple(map(str, known)), tuple(f"{Path(places[s[0]]).name}/{s[1]}" for s in samples),
        np.array([s[0] for s in samples], np.int32), np.array([s[2] for s in samples], np.int64),
        np.array([s[3] for s in samples], np.int64), np.full(len(samples), -1, np.int64),
    )  # fmt: skip
    parts = [_part(place) for place in places]
    split = np.array([parts[s[0]] if all(parts) else "" for s in samples], "<U5")
    labels = np.array([position[s[4]] for s in samples])
    return Table(source, "shards", classes, classes, labels, split, members=members)


def _remembered(place: str, stamp: list[Any]) -> list[Any]:
    """(name, offset, size, class) of each image in a shard, read once for as long as the shard stays as it is."""
    key = hashlib.sha256(json.dumps([FORMAT, place, stamp]).encode()).hexdigest()[:32]
    kept = cache_dir() / "shards" / f"{key}.json"
    try:
        return json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = list(_samples(place))
        write_text(kept, json.dumps(found))
        return found


def _part(place: str) -> str:
    """The split that a shard's name begins with, as `train-0001.tar`, or its folder's."""
    words = [re.split(r"[-_.]", Path(place).name.lower())[0], Path(place).parent.name.lower()]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _stamp(place: str) -> list[Any]:
    if is_address(place):
        return list(head(place))
    try:
        found = os.stat(place)  # noqa: PTH116
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); check the path") from None
    return [found.st_size, found.st_mtime_ns]


def _samples(place: str) -> Iterator[tuple[str, int, int, str]]:
    """(name, offset, size, class) of each image in one shard, in its order."""
    if is_address(place):
        stream = Stream(place)
        try:
            yield from _paired(place, stream)
        finally:
            stream.close()
        return
    try:
        with open(place, "rb") as file:  # noqa: PTH123
            yield from _paired(place, _Local(file, os.fstat(file.fileno()).st_size))
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror})") from None


def _paired(place: str, stream: Any) -> Iterator[tuple[str, int, int, str]]:
    """Images with their labels: files that share a name up to its first dot, one after the other."""
    key: str | None = None
    image: tuple[str, int, int] | None = None
    label: str | None = None

    def whole() -> tuple[str, int, int, str] | None:
        if image is None:
            return None
        if label is None:
            raise UserError(f"{place}: {image[0]!r} has no label; write a .cls, or a .json with one, beside it")
        return (*image, label)

    for member in scan(place, stream, lambda name: PurePosixPath(name).suffix.lower() in LABELS):
        folder, _, last = member.name.rpartition("/")
        stem = f"{folder}/{last.partition('.')[0]}"
        if stem != key:
            if (done := whole()) is not None:
                yield done
            key, image, label = stem, None, None
        suffix = PurePosixPath(last).suffix.lower()
        if suffix in IMAGE_SUFFIXES:
            if image is not None:
                raise UserError(f"{place}: {image[0]!r} and {member.name!r} are two images of one sample")
            image = (class_name(member.name), member.offset, member.size)
        elif member.data is not None and (suffix == ".cls" or label is None):
            label = _label(f"{place}: {member.name!r}", suffix, member.data) or label
    if (done := whole()) is not None:
        yield done


def _label(where: str, suffix: str, data: bytes) -> str | None:
    """The class that a label's file names; None where a .json says other things."""
    try:
        text = data.decode("utf-8")
        found = text if suffix == ".cls" else json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: not {'text' if suffix == '.cls' else 'JSON'}; write it again") from None
    if isinstance(found, dict):
        found = next((found[key] for key in LABEL_KEYS if key in found), None)
    if found is None or isinstance(found, bool | dict | list | float):
        return None
    name = class_name(str(found))
    if not name:
        raise UserError(f"{where}: an empty label; write the class")
    return name
