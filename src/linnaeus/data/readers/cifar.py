"""Read the binary version of CIFAR-10 and CIFAR-100, from a folder or from the published archive."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.console import counted
from linnaeus.data.archives.tar import read_files
from linnaeus.data.class_names import class_name
from linnaeus.data.table import Table
from linnaeus.errors import UserError, not_read
from linnaeus.text import such_as

PIXELS = 3 * 32 * 32  # bytes: the red, green and blue planes, row by row
FILE_LIMIT = 1 << 28  # bytes; the largest published file, CIFAR-100's train.bin, has 154 million
ARCHIVE_LIMIT = 1 << 29  # bytes unpacked; both published archives have about 185 million


@dataclass(frozen=True)
class Release:
    """The differences between the two releases."""

    classes: int
    header: int  # label bytes before the pixels; the last of them is the class
    train: str  # pattern of the training files
    test: str
    names: str  # file with the class names
    folder: str  # folder inside the archive


CIFAR10 = Release(10, 1, r"data_batch_\d+\.bin", r"test_batch\.bin", "batches.meta.txt", "cifar-10-batches-bin")
CIFAR100 = Release(100, 2, r"train\.bin", r"test\.bin", "fine_label_names.txt", "cifar-100-binary")
RELEASES = (CIFAR10, CIFAR100)
PUBLISHED_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PICKLED = ("cifar-10-batches-py", "cifar-100-python", "data_batch_1", "batches.meta")


def find_cifar(folder: Path) -> Path | None:
    """The folder with the binary files, or the archive, at `folder` or inside it by its published name; else None."""
    for place in (folder, *(folder / release.folder for release in RELEASES)):
        names = os.listdir(place) if place.is_dir() else []
        if any(_release(name) for name in names):
            return place
    archives = sorted(folder.glob("cifar-10*-binary.tar.gz"))
    if len(archives) > 1:
        raise UserError(f"{folder}: holds {archives[0].name} and {archives[1].name}; point at one of them")
    if archives:
        return archives[0]
    # The pickled version is never opened: unpickling runs code from the file.
    if any((folder / name).exists() for name in PICKLED):
        raise _pickled(folder)
    return None


def open_cifar(source: str, path: Path) -> Table:
    """Read the folder with the binary files, or the `.tar.gz` without unpacking it to disk.

    Images are (n, 32, 32, 3) uint8. The training files become "train", the test file "test".
    """
    files = _read_folder(path) if path.is_dir() else _read_archive(path)
    release = next((release for name in files if (release := _release(name))), None)
    if release is None:
        raise UserError(f"{path}: holds no files of CIFAR (data_batch_1.bin ... or train.bin); download it again")
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    split: list[str] = []
    for part, pattern in (("train", release.train), ("test", release.test)):
        batches = [name for name in files if re.fullmatch(pattern, name)]
        # By length first, so that data_batch_10 would come after data_batch_9.
        for name in sorted(batches, key=lambda name: (len(name), name)):
            pixels, numbers = parse(files.pop(name), release, path / name)
            images.append(pixels)
            labels.append(numbers)
            split += [part] * len(numbers)
    classes = _names(files.get(release.names), release, path / release.names)
    root = os.path.abspath(path)
    return Table(
        source,
        "cifar",
        classes,
        classes,
        np.concatenate(labels),
        np.array(split),
        images=np.concatenate(images),
        root=root,
    )


def parse(raw: bytes, release: Release, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Parse one binary file into images (n, 32, 32, 3) uint8 and labels (n,) int64 (Krizhevsky 2009, "Binary version").

    Raises UserError if the file is truncated or a label is out of range.
    """
    record = release.header + PIXELS
    if not raw or len(raw) % record:
        raise UserError(f"{path}: {len(raw)} bytes is not a whole number of {record}-byte records; download it again")
    rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
    # In CIFAR-100 the fine label comes second, after the coarse one.
    labels = rows[:, release.header - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= release.classes)
    if len(wrong):
        raise UserError(
            f"{path}: record {wrong[0]} has label {labels[wrong[0]]}, but there are {release.classes} classes; "
            "is it another format?"
        )
    # The file holds planes (channel, height, width); the project uses (height, width, channel).
    planes = rows[:, release.header :].reshape(-1, 3, 32, 32)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels


def _release(name: str) -> Release | None:
    """The release that a data file belongs to, by its name."""
    return next((r for r in RELEASES if re.fullmatch(f"{r.train}|{r.test}", name)), None)


def _wanted(name: str) -> bool:
    return _release(name) is not None or name in {release.names for release in RELEASES}


def _read_folder(folder: Path) -> dict[str, bytes]:
    files = {}
    for path in sorted(folder.iterdir()):
        if _wanted(path.name) and path.is_file():
            if path.stat().st_size > FILE_LIMIT:
                raise UserError(f"{path}: {path.stat().st_size} bytes is more than CIFAR has; is it another format?")
            try:
                files[path.name] = path.read_bytes()
            except OSError as error:
                raise not_read(path, error) from None
    return files


def _read_archive(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    seen: list[str] = []

    def wanted(name: str) -> bool:
        seen.append(name)
        return _wanted(name)

    for name, data in read_files(path, wanted, ARCHIVE_LIMIT):
        if name in files:
            raise UserError(f"{path}: contains {name} twice; download it again")
        files[name] = data
    if not any(map(_release, files)):
        raise _without_binaries(path, seen)
    return files


def _pickled(path: Path) -> UserError:
    return UserError(
        f"{path}: the Python version of CIFAR, which is pickled and may hold code; get the binary version, "
        "cifar-10-binary.tar.gz or cifar-100-binary.tar.gz"
    )


def _without_binaries(path: Path, seen: Sequence[str]) -> UserError:
    """The error for an archive with neither images nor binary files: what it holds instead, files called `seen`."""
    if not seen:
        return UserError(f"{path}: holds no files; pack the folder again")
    if set(seen) & set(PICKLED):
        return _pickled(path)
    return UserError(
        f"{path}: holds neither images nor CIFAR binaries (data_batch_1.bin ... or train.bin), but "
        f"{counted(len(seen), 'other file')}{such_as(len(seen), seen[0])}; pack a folder with one subfolder per class"
    )


def _names(raw: bytes | None, release: Release, path: Path) -> tuple[str, ...]:
    """Class names in index order, from the text file of the release. Without it, the published names or numbers."""
    if raw is None:
        return PUBLISHED_NAMES if release is CIFAR10 else tuple(str(i) for i in range(release.classes))
    names = tuple(name for line in raw.decode("utf-8-sig", "replace").splitlines() if (name := class_name(line)))
    if len(set(names)) != release.classes or len(names) != release.classes:
        raise UserError(
            f"{path}: {len(names)} names ({len(set(names))} different) for {release.classes} classes; correct it"
        )
    return names
