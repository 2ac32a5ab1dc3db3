"""Benchmarks as their authors publish them, with labels or the split in lists instead of folders.

Recognized by the names of the lists: CUB-200-2011 (also NABirds), Oxford-IIIT Pet, Tiny ImageNet, FGVC-Aircraft, the
Describable Textures Dataset (DTD), Stanford Dogs, and ImageNet as Kaggle has it.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from linnaeus.data import tree
from linnaeus.data.class_names import class_name, natural_order, read_text
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.readers.listfile import Rows, label_of, locate
from linnaeus.data.readers.repeats import without_repeats
from linnaeus.data.table import Table
from linnaeus.errors import UserError

Entry = tuple[int, str, str]  # line number in the list, path of the image, label


@dataclasses.dataclass(frozen=True)
class Published:
    """The lists of a benchmark."""

    title: str
    parts: list[Rows]
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # class -> display name
    note: str = ""  # what the lists leave open


def open_published(source: str, path: Path, names: set[str]) -> Table | None:
    """The table of a folder with the entries `names`, in the authors' split; None if it is none of these benchmarks.

    Raises UserError for a list that is damaged, or that names an image which does not exist.
    """
    for layout in LAYOUTS:
        found = layout(path, names)
        if found is not None:
            return _table(source, path, found)
    return None


def _table(source: str, path: Path, published: Published) -> Table:
    parts = published.parts
    paths = [image for part in parts for image in locate(part)]
    labels = [label for part in parts for label in part.labels]
    split = np.array([split for part in parts for split in part.splits], dtype="<U5")
    classes = tuple(natural_order(labels))
    position = {name: k for k, name in enumerate(classes)}
    numbers = np.array([position[label] for label in labels], dtype=np.int64)
    shown = tuple(published.names.get(name, name) for name in classes)
    # Two classes of ImageNet are called "crane": a name that does not tell them apart is extended by the class.
    shown = tuple(
        f"{name} ({key})" if shown.count(name) > 1 else name for key, name in zip(classes, shown, strict=True)
    )
    table = Table(source, "list", classes, shown, numbers, split, paths=tuple(paths), root=str(path.absolute()))
    files = ", ".join(sorted({os.path.relpath(part.file, path) for part in parts}))
    more = f"; {published.note}" if published.note else ""
    notes = (f"layout of {published.title}: labels and split are read from {files}{more}",)
    return without_repeats(table.with_notes(*notes, *(note for part in parts for note in part.notes)))


def _rows(file: Path, entries: Iterable[Entry], split: str | list[str]) -> Rows:
    """The rows of a list, in one split or in a split for each."""
    rows = Rows(file)
    for number, image, label in entries:
        rows.lines.append(number)
        rows.texts.append(image)
        rows.labels.append(label_of(label, file, number))
    if not rows.texts:
        raise UserError(f"{file}: lists no images; is the dataset complete?")
    rows.splits = [split] * len(rows.texts) if isinstance(split, str) else split
    return rows


def _lines(file: Path, words: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and the first `words` words of each line that is no comment; the last one may hold blanks."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            parts = line.strip().split(None, words - 1)
            if len(parts) < words:
                raise UserError(f"{file}:{number}: {line.strip()!r} has {len(parts)} words instead of {words}")
            yield number, parts


def _table_of_two(file: Path) -> dict[str, str]:
    """First word -> rest of each line."""
    return {key: rest for _, (key, rest) in _lines(file, 2)}


def _birds(path: Path, names: set[str]) -> Published | None:
    """Lists of `id value`: images.txt, image_class_labels.txt, train_test_split.txt (1: training), classes.txt."""
    if not {"images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"} <= names:
        return None
    labels = _table_of_two(path / "image_class_labels.txt")
    training = _table_of_two(path / "train_test_split.txt")
    names_of = _table_of_two(path / "classes.txt")
    # NABirds has several classes of one name, so there the number is the class.
    numbered = len(set(names_of.values())) < len(names_of)
    entries, splits = [], []
    for number, (key, image) in _lines(path / "images.txt", 2):
        label = labels.get(key, "")
        lacks = "image_class_labels.txt" if key not in labels else "train_test_split.txt" if key not in training else ""
        if lacks or label not in names_of:
            subject = f"image {key}" if lacks else f"class {label} of image {key}"
            where = f"{path / 'images.txt'}:{number}"
            raise UserError(f"{where}: {subject} is not in {lacks or 'classes.txt'}; is the dataset complete?")
        entries.append((number, os.path.join(path, "images", image), label if numbered else names_of[label]))
        splits.append("train" if training[key] == "1" else "test")
    title = "NABirds" if numbered else "CUB-200-2011"
    return Published(title, [_rows(path / "images.txt", entries, splits)], names_of if numbered else {})


def _pets(path: Path, names: set[str]) -> Published | None:
    """annotations/trainval.txt and test.txt: `Name_of_breed_12 class species breed`."""
    lists = {split: path / "annotations" / f"{stem}.txt" for split, stem in (("train", "trainval"), ("test", "test"))}
    if not {"images", "annotations"} <= names or not all(map(tree.is_file, lists.values())):
        return None

    def entries(file: Path) -> Iterator[Entry]:
        for number, (image, *_) in _lines(file, 4):
            yield number, os.path.join(path, "images", f"{image}.jpg"), image.rpartition("_")[0]

    parts = [_rows(file, entries(file), split) for split, file in lists.items()]
    return Published("Oxford-IIIT Pet", parts)


def _tiny_imagenet(path: Path, names: set[str]) -> Published | None:
    """train/CLASS/images, and val/images with val/val_annotations.txt: `image class box`."""
    annotations = path / "val" / "val_annotations.txt"
    if "train" not in names or not tree.is_file(annotations):
        return None
    folders = sorted(name for name in tree.names(path / "train") if tree.is_folder(path / "train" / name / "images"))
    found = [
        (0, os.path.join(path, "train", name, "images", image), name)
        for name in folders
        for image in sorted(tree.names(path / "train" / name / "images"))
        if Path(image).suffix.lower() in IMAGE_SUFFIXES
    ]
    entries = [
        (number, os.path.join(path, "val", "images", image), label)
        for number, (image, label, _) in _lines(annotations, 3)
    ]
    words = _table_of_two(path / "words.txt") if "words.txt" in names else {}
    parts = [_rows(path / "train", found, "train"), _rows(annotations, entries, "valid")]
    return Published("Tiny ImageNet", parts, {key: name.split(",")[0] for key, name in words.items()})


def _aircraft(path: Path, names: set[str]) -> Published | None:
    """data/images_variant_train.txt, _val and _test: `image name of the variant`."""
    data = path if "images_variant_train.txt" in names else path / "data"
    lists = {split: data / f"images_variant_{stem}.txt" for split, stem in SPLITS.items()}
    if not all(map(tree.is_file, lists.values())):
        return None
    parts = [
        _rows(
            file, ((k, os.path.join(data, "images", f"{image}.jpg"), name) for k, (image, name) in _lines(file, 2)), s
        )
        for s, file in lists.items()
    ]
    return Published("FGVC-Aircraft", parts, note="families and manufacturers are other lists beside them")


def _textures(path: Path, names: set[str]) -> Published | None:
    """labels/train1.txt, val1.txt, test1.txt: `class/image`, the first of ten splits."""
    lists = {split: path / "labels" / f"{stem}1.txt" for split, stem in SPLITS.items()}
    if "images" not in names or not all(map(tree.is_file, lists.values())):
        return None
    parts = [
        _rows(
            file, ((k, os.path.join(path, "images", i), class_name(i.split("/")[0])) for k, (i,) in _lines(file, 1)), s
        )
        for s, file in lists.items()
    ]
    return Published("DTD", parts, note="the first of its ten splits")


def _imagenet(path: Path, names: set[str]) -> Published | None:
    """ILSVRC/Data/CLS-LOC/train/CLASS, and val with LOC_val_solution.csv: `image,class box class box`."""
    solution = path / "LOC_val_solution.csv"
    data = path / "ILSVRC" / "Data" / "CLS-LOC"
    if "LOC_val_solution.csv" not in names or not tree.is_folder(data / "train"):
        return None
    found = [
        (0, os.path.join(data, "train", name, image), name)
        for name in sorted(tree.names(data / "train"))
        if tree.is_folder(data / "train" / name)
        for image in sorted(tree.names(data / "train" / name))
        if Path(image).suffix.lower() in IMAGE_SUFFIXES
    ]
    entries = []
    for number, line in enumerate(read_text(solution).split("\n"), 1):
        image, _, boxes = line.strip().partition(",")
        if boxes and number > 1:
            entries.append((number, os.path.join(data, "val", f"{image}.JPEG"), boxes.split()[0]))
    mapping = path / "LOC_synset_mapping.txt"
    words = _table_of_two(mapping) if tree.is_file(mapping) else {}
    parts = [_rows(data / "train", found, "train"), _rows(solution, entries, "valid")]
    return Published("ImageNet", parts, {key: name.split(",")[0] for key, name in words.items()})


def _dogs(path: Path, names: set[str]) -> Published | None:
    """train_list.mat and test_list.mat: a cell array `file_list` of `class/image`, beside Images."""
    lists = {"train": path / "train_list.mat", "test": path / "test_list.mat"}
    if "Images" not in names or not all(map(tree.is_file, lists.values())):
        return None
    parts = [
        _rows(file, ((k, os.path.join(path, "Images", i), class_name(i.split("/")[0])) for k, i in _cells(file)), split)
        for split, file in lists.items()
    ]
    return Published("Stanford Dogs", parts)


def _cells(file: Path) -> list[tuple[int, str]]:
    from scipy.io import loadmat

    try:
        cells = loadmat(io.BytesIO(tree.read(file)), variable_names=["file_list"])["file_list"]
        return [(k, str(cell[0])) for k, cell in enumerate(cells.reshape(-1), 1)]
    except Exception as error:  # the parser raises many types for damaged files
        raise UserError(
            f"{file}: no MATLAB file with 'file_list' ({type(error).__name__}); download it again"
        ) from None


SPLITS = {"train": "train", "valid": "val", "test": "test"}  # our name -> the name in the lists
LAYOUTS: tuple[Callable[[Path, set[str]], Published | None], ...] = (
    _birds,
    _pets,
    _tiny_imagenet,
    _aircraft,
    _textures,
    _imagenet,
    _dogs,
)
