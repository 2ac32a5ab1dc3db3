"""Tar files as WebDataset writes them, without an index: an image and its label share a name up to the first dot.

    train-0000.tar
        000000.jpg
        000000.cls      the class as text, or 000000.json with "label", "cls" or "class"
        000001.jpg
        000001.cls

Each tar is read once from front to back; the positions of its images are kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from linnaeus.data import tree
from linnaeus.data.archives.members import ShardMembers
from linnaeus.data.archives.remote import head, is_address, open_remote
from linnaeus.data.archives.tar import content, safe_members
from linnaeus.data.class_names import class_name, natural_order
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.table import SPLIT_NAMES, Table
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError, visible
from linnaeus.files import write_text

LABELS = (".cls", ".json")
LABEL_KEYS = ("label", "cls", "class")
LABEL_LIMIT = 1 << 20  # bytes of a label file
CACHE_FORMAT = 2


@dataclass(frozen=True)
class Sample:
    """An image in a tar and the class that its label file names."""

    name: str
    offset: int
    size: int
    label: str


def is_shard(path: Path) -> bool:
    """Whether a tar begins like a shard: with an image and its label, or an image in no folder."""
    images, labels = set(), set()
    try:
        with path.open("rb") as file:
            for member in islice(_files(str(path), file), 9):
                folder, _, last = member.name.removeprefix("./").rpartition("/")
                stem = f"{folder}/{last.partition('.')[0]}"
                images |= {stem} if _suffix(member.name) in IMAGE_SUFFIXES else set()
                labels |= {stem} if _suffix(member.name) in LABELS else set()
    except (OSError, UserError):
        pass  # what was read decides; reading it as what it is reports the damage
    return bool(images & labels) or any(stem.startswith("/") for stem in images)


def open_tars(source: str, places: list[str]) -> Table:
    """Read tar files, given by path or address. The split is the one that all their names, or their folders', state."""
    stamps = [_stamp(place) for place in places]
    shards = [_cached_samples(place, stamp) for place, stamp in zip(places, stamps, strict=True)]
    # Number of the shard per sample, in the order of `samples`.
    shard = np.repeat(np.arange(len(shards)), [len(samples) for samples in shards]).astype(np.int32)
    samples = [sample for samples in shards for sample in samples]
    if not samples:
        endings = " ".join(sorted(IMAGE_SUFFIXES))
        raise UserError(f"{source}: its tar files hold no images; check the path (images end in {endings})")
    classes = natural_order(sample.label for sample in samples)
    position = {name: i for i, name in enumerate(classes)}
    files = [Path(place).name for place in places]
    images = ShardMembers(
        tuple(places),
        tuple(map(str, stamps)),
        tuple(f"{files[k]}/{sample.name}" for k, sample in zip(shard.tolist(), samples, strict=True)),
        shard,
        np.array([sample.offset for sample in samples], np.int64),
        np.array([sample.size for sample in samples], np.int64),
        np.full(len(samples), -1, np.int64),
    )
    splits = [_split(place) for place in places]
    # A split only if every shard states one: guessing for some would leak images.
    split = np.array([splits[k] if all(splits) else "" for k in shard.tolist()], "<U5")
    labels = np.array([position[sample.label] for sample in samples])
    return Table(source, "shards", classes, classes, labels, split, members=images)


def _split(place: str) -> str:
    """The split that a shard's name begins with, as `train-0001.tar`, or its folder's name."""
    words = [re.split(r"[-_.]", Path(place).name.lower())[0], Path(place).parent.name.lower()]
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "")


def _stamp(place: str) -> list[Any]:
    """Version of a shard: that of the file, or its length and the server's version."""
    try:
        return list(head(place) if is_address(place) else tree.version(place))
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); check the path") from None


def _cached_samples(place: str, stamp: list[Any]) -> list[Sample]:
    """The samples of a shard, scanned only once as long as the shard does not change."""
    key = hashlib.sha256(json.dumps([CACHE_FORMAT, place, stamp]).encode()).hexdigest()[:32]
    cached = cache_dir() / "shards" / f"{key}.json"
    with suppress(OSError, ValueError):
        checksum, _, text = cached.read_text(encoding="utf-8").partition("\n")
        # A wrong digit would be an image of other bytes, and a wrong letter another class.
        if hashlib.sha256(text.encode()).hexdigest() == checksum:
            return [Sample(*row) for row in json.loads(text)]
    samples = list(scan_samples(place))
    text = json.dumps([astuple(sample) for sample in samples])
    write_text(cached, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
    return samples


def scan_samples(place: str) -> Iterator[Sample]:
    """The samples of one shard, in its order. Raises UserError for members that a shard must not have."""
    try:
        with open_remote(place) if is_address(place) else open(place, "rb") as file:
            yield from _pair(place, file)
    except OSError as error:
        raise UserError(f"{place}: cannot be read ({error.strerror}); check the path and its permissions") from None


def _files(place: str, file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    return (member for member in safe_members(place, file, "a shard") if member.isreg())


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _pair(place: str, file: BinaryIO) -> Iterator[Sample]:
    """Images with their labels: consecutive files that share a name up to its first dot."""
    key: str | None = None
    image: tarfile.TarInfo | None = None
    label: str | None = None
    for member in _files(place, file):
        folder, _, last = member.name.rpartition("/")
        stem = f"{folder}/{last.partition('.')[0]}"
        # WebDataset: consecutive files with the same stem are one sample, so a new stem ends it.
        if stem != key:
            yield from _complete(place, image, label)
            key, image, label = stem, None, None
        suffix = _suffix(last)
        if suffix in IMAGE_SUFFIXES:
            if image is not None:
                names = f"{visible(image.name)!r} and {visible(member.name)!r}"
                raise UserError(f"{place}: {names} are two images of one sample; give them different names")
            image = member
        elif suffix in LABELS and (suffix == ".cls" or label is None):  # .cls takes precedence over .json
            label = _read_label(place, file, member, suffix) or label
    yield from _complete(place, image, label)


def _complete(place: str, image: tarfile.TarInfo | None, label: str | None) -> Iterator[Sample]:
    """The sample whose files have all been read, if there is an image among them."""
    if image is None:
        return
    name = class_name(image.name)
    if label is None:
        raise UserError(f"{place}: {name!r} has no label; add a .cls file, or a .json file with a label, after it")
    yield Sample(name, image.offset_data, image.size, label)


def _read_label(place: str, file: BinaryIO, member: tarfile.TarInfo, suffix: str) -> str | None:
    """The class that a label file names; None where a .json file has no label."""
    shown = f"{place}: {visible(member.name)[:200]!r}"
    if member.size > LABEL_LIMIT:
        raise UserError(f"{shown} has {member.size:,} bytes, too many for a label; write the class only")
    data = content(place, file, member)
    try:
        text = data.decode("utf-8")
        value = text if suffix == ".cls" else json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{shown}: not {'UTF-8 text' if suffix == '.cls' else 'JSON'}; write it again") from None
    if isinstance(value, dict):
        value = next((value[key] for key in LABEL_KEYS if key in value), None)
    # A flag or a fraction is not a class; an integer is.
    if value is None or isinstance(value, bool | dict | list | float):
        return None
    name = class_name(str(value))
    if not name:
        raise UserError(f"{shown}: the label is empty; write the class")
    return name
