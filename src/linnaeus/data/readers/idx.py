"""IDX files: MNIST, Fashion-MNIST, KMNIST and EMNIST, raw or gzipped."""

from __future__ import annotations

import dataclasses
import gzip
import math
import os
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.data.class_names import class_name, listed, read_text
from linnaeus.data.display_names import names_by_index, naming_note
from linnaeus.data.table import Table
from linnaeus.errors import UserError

TYPES = {0x08: "uint8", 0x09: "int8", 0x0B: "int16", 0x0C: "int32", 0x0D: "float32", 0x0E: "float64"}
LIMIT = 1 << 31  # bytes of one array; the largest published file, EMNIST's byclass, has 547 million
DEFLATE = 1032  # gzip shrinks by no more than this factor (zlib's "Technical Details")
CHUNK = 1 << 20  # bytes read at a time

# Published names: [set-]{train,t10k,test}-{images,labels}-idx{3,1}-ubyte[.gz]; some unpack to "images.idx3-ubyte".
NAME = re.compile(
    r"(?P<set>.*?)(?P<part>train|t10k|test|valid|val)?-?(?P<what>images|labels)[-.]idx[134][-.]ubyte(\.gz)?",
    re.IGNORECASE,
)
PARTS = {"train": "train", "valid": "valid", "val": "valid", "test": "test", "t10k": "test", "": ""}


@dataclass(frozen=True)
class IdxFile:
    """One IDX file, described by its name."""

    path: Path
    collection: str  # "", or such as "emnist-letters"
    split: str
    what: str  # "images" | "labels"


def find_idx(folder: Path) -> list[IdxFile]:
    """The IDX files in `folder`, or in its subfolder `raw`. A raw file hides the gzipped one of the same name."""
    for place in (folder, folder / "raw"):
        names = set(os.listdir(place)) if place.is_dir() else set()
        files = [_by_name(place / name) for name in sorted(names) if name.removesuffix(".gz") not in names - {name}]
        if any(files):
            return [file for file in files if file]
    return []


def _by_name(path: Path) -> IdxFile | None:
    match = NAME.fullmatch(path.name)
    if match is None:
        return None
    return IdxFile(path, match["set"].rstrip("-"), PARTS[(match["part"] or "").lower()], match["what"].lower())


def open_idx(source: str, path: Path) -> Table:
    """Read a folder of IDX files, or the set that one file belongs to (its training and its test files).

    Images (n, H, W) uint8. Class names are the labels' numbers, those that occur, in order; names to display come
    from `classes.txt` beside the files (line k, from 0, for label k) or from EMNIST's own mapping.
    """
    folder = path if path.is_dir() else path.parent
    files = find_idx(folder)
    # MNIST and EMNIST may share a folder; images of one must not meet labels of the other.
    sets = sorted({file.collection for file in files if file.what == "images"})
    if path.is_file():
        named = _by_name(path)
        if named is None:
            raise UserError(f"{path}: an IDX file under another name; rename it as published (train-images-idx3-ubyte)")
        sets = [named.collection]
    if not sets:
        raise UserError(f"{folder}: IDX labels without images; add train-images-idx3-ubyte(.gz) beside them")
    if len(sets) > 1:
        raise UserError(f"{folder}: holds several sets ({listed(sets)}); point at the images file of one of them")
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    split: list[str] = []
    image_files = [file for file in files if file.collection == sets[0] and file.what == "images"]
    # In a fixed order, so that sample numbers do not depend on the order of the folder.
    for file in sorted(image_files, key=lambda file: ("train", "valid", "test", "").index(file.split)):
        batch, numbers = _read_pair(file, files)
        if images and batch.shape[1:] != images[0].shape[1:]:
            raise UserError(
                f"{file.path}: images of {batch.shape[1:]}, but {images[0].shape[1:]} before; check the files"
            )
        images.append(batch)
        labels.append(numbers)
        split += [file.split] * len(numbers)
    if not images:
        raise UserError(f"{folder}: set {sets[0]!r} has labels but no images; add its images file")
    values, indices = np.unique(np.concatenate(labels), return_inverse=True)
    classes = tuple(str(value) for value in values)
    names, notes = _display(files[0].path.parent, sets[0], classes)
    pixels = images[0] if len(images) == 1 else np.concatenate(images)
    root = os.path.abspath(folder)
    table = Table(source, "idx", classes, names, indices.reshape(-1), np.array(split), images=pixels, root=root)
    return dataclasses.replace(table, notes=tuple(notes))


def _read_pair(file: IdxFile, files: list[IdxFile]) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, H, W) or (n, H, W, 3) uint8 and labels (n,) of one part."""
    partner = [f for f in files if (f.collection, f.split, f.what) == (file.collection, file.split, "labels")]
    if not partner:
        name = file.path.name.replace("images", "labels").replace("idx3", "idx1")
        raise UserError(f"{file.path}: its labels are missing; put {file.path.with_name(name)} beside it")
    images, labels = read_idx(file.path), read_idx(partner[0].path)
    if not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)):
        raise UserError(f"{file.path}: shape {images.shape} is not that of gray or RGB images; is it the images file?")
    if labels.ndim != 1:
        raise UserError(f"{partner[0].path}: shape {labels.shape} is not one label per image; is it the labels file?")
    if len(images) != len(labels):
        raise UserError(f"{file.path}: {len(images)} images, but {len(labels)} labels in {partner[0].path}; check both")
    if file.collection.lower().startswith("emnist"):  # stored column by column (Cohen et al. 2017 kept MATLAB's order)
        images = np.ascontiguousarray(images.swapaxes(1, 2))
    return images, labels


def read_idx(path: Path) -> np.ndarray:
    """One IDX file of uint8, of any shape, raw or gzipped (format: yann.lecun.com/exdb/mnist).

    Raises UserError, naming the file, if the magic number, the dimensions or the length are wrong. The length is
    checked before memory is taken for it: against the file's, or the most that a gzip file of its size can hold.
    """
    try:
        stored = path.stat().st_size
        with path.open("rb") as raw:
            # The published files are gzipped, but browsers and tools often unpack them under the same name.
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream = gzip.GzipFile(fileobj=raw) if zipped else raw
            shape = _header(path, stream.read(4), stream.read)
            size, begin = math.prod(shape), 4 + 4 * len(shape)
            # Checked before reading: an incomplete download is the most common damage.
            if not zipped and begin + size != stored:
                raise UserError(
                    f"{path}: {stored} bytes, but its header says {begin + size}; it is {_cut(stored, begin + size)}"
                )
            # A header can claim terabytes; deflate cannot expand further than this ratio.
            if size > min(LIMIT, stored * DEFLATE):
                raise UserError(f"{path}: its header claims {size} bytes, more than it can hold; download it again")
            data = bytearray()
            while len(data) < size and (piece := stream.read(min(CHUNK, size - len(data)))):
                data += piece
            if len(data) < size or stream.read(1):
                unpacked = begin + len(data)
                count = unpacked if len(data) < size else "more"
                cut = _cut(unpacked, begin + size)
                raise UserError(f"{path}: {count} bytes unpacked, but its header says {begin + size}; it is {cut}")
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({class_name(str(error))}); download it again") from None
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _cut(size: int, expected: int) -> str:
    return (
        "cut short: download it again"
        if size < expected
        else "not an IDX file, or has something appended: download it again"
    )


def _header(path: Path, magic: bytes, read) -> tuple[int, ...]:
    """Magic number (two zero bytes, type, dimensions) and the dimensions, big-endian uint32 each."""
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES or not 1 <= magic[3] <= 4:
        raise UserError(
            f"{path}: starts with {magic.hex(' ') or 'nothing'}, but an IDX file starts with 00 00 08 and 01 to "
            "04; download it again"
        )
    if magic[2] != 0x08:
        raise UserError(f"{path}: holds {TYPES[magic[2]]}; only uint8 is read: convert it")
    raw = read(4 * magic[3])
    if len(raw) < 4 * magic[3]:
        raise UserError(f"{path}: ends inside its header; it is cut short: download it again")
    shape = struct.unpack(f">{magic[3]}I", raw)
    if 0 in shape:
        raise UserError(f"{path}: dimensions {shape} hold no values; download it again")
    return shape


def _display(folder: Path, collection: str, classes: tuple[str, ...]) -> tuple[tuple[str, ...], list[str]]:
    """Display names for class numbers: from `classes.txt`, else from EMNIST's mapping, else the numbers themselves."""
    # torchvision puts the files into a folder raw/, beside which classes.txt may lie.
    named = names_by_index(folder) or names_by_index(folder.parent if folder.name == "raw" else folder)
    if named is not None:
        path, names = named
        missing = [name for name in classes if int(name) not in names]
        if missing:
            raise UserError(f"{path}: no line for label {listed(missing)}; add it, or remove the file")
        shown = {name: names[int(name)] for name in classes}
        return tuple(shown.values()), naming_note(path, shown, "by index")
    path = folder / f"{collection}-mapping.txt"
    if not collection or not path.is_file():
        return classes, []
    letters: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), 1):
        cells = line.split()
        # Code points above 0xD7FF include surrogates, which cannot be written as UTF-8.
        if cells and not all(re.fullmatch("[0-9]{1,6}", cell) and int(cell) < 0xD800 for cell in cells):
            raise UserError(f"{path}:{number}: {line.strip()!r} is not `label code [code]`; correct or remove the file")
        if cells:
            letters[cells[0]] = "/".join(chr(int(code)) for code in cells[1:])
    shown = {name: letters.get(name) or name for name in classes}
    return tuple(shown.values()), naming_note(path, shown, "by index")
