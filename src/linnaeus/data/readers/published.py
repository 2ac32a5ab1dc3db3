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
from linnaeus.data.readers.folder import images_of_classes
from linnaeus.data.readers.listfile import Rows, label_of, locate
from linnaeus.data.readers.repeats import without_repeats
from linnaeus.data.table import Table
from linnaeus.errors import UserError

Entry = tuple[int, str, str]  # line number in the list, path of the image, label
SPLITS = {"train": "train", "valid": "val", "test": "test"}  # our name of a split -> its name in the lists


@dataclasses.dataclass(frozen=True)
class Published:
    """The images of a benchmark."""

    title: str
    parts: list[Rows]  # with the paths of images that are known to exist
    names: dict[str, str] = dataclasses.field(default_factory=dict)  # class -> display name, where they differ
    note: str = ""  # what the lists leave open


def open_published(source: str, path: Path, names: set[str]) -> Table | None:
    """The table of a folder with the entries `names`, in the authors' split; None if it is none of these benchmarks.

    Raises UserError for a list that is damaged, or that names an image which does not exist.
    """
    for layout in LAYOUTS:
        published = layout(path, names)
        if published is not None:
            return _table(source, path, published)
    return None


def _table(source: str, path: Path, published: Published) -> Table:
    parts = published.parts
    paths = tuple(image for part in parts for image in part.texts)
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
    table = Table(source, "list", classes, shown, numbers, split, paths=paths, root=str(path.absolute()))
    files = ", ".join(sorted({os.path.relpath(part.file, path) for part in parts}))
    more = f"; {published.note}" if published.note else ""
    notes = (f"layout of {published.title}: labels and split are read from {files}{more}",)
    return without_repeats(table.with_notes(*notes, *(note for part in parts for note in part.notes)))


def _listed(file: Path, entries: Iterable[Entry], split: str | list[str]) -> Rows:
    """The images of a list, in one split or in a split for each."""
    rows = Rows(file)
    for number, image, label in entries:
        rows.lines.append(number)
        rows.texts.append(image)
        rows.labels.append(label_of(label, file, number))
    if not rows.texts:
        raise UserError(f"{file}: lists no images; is the dataset complete?")
    rows.splits = [split] * len(rows.texts) if isinstance(split, str) else split
    rows.texts = locate(rows)
    return rows


def _in_class_folders(folder: Path, split: str) -> Rows:
    """The images of the class folders in `folder`."""
    rows = Rows(folder)
    for name, images in images_of_classes(folder).items():
        rows.texts += images
        rows.labels += [name] * len(images)
    if not rows.texts:
        raise UserError(f"{folder}: holds no images; is the dataset complete?")
    rows.splits = [split] * len(rows.texts)
    return rows


def _lists(folder: Path, files: dict[str, str]) -> dict[str, Path] | None:
    """Split -> its list, from split -> file name; None unless all are there."""
    lists = {split: folder / name for split, name in files.items()}
    return lists if all(map(tree.is_file, lists.values())) else None


def _lines(file: Path, words: int) -> Iterator[tuple[int, list[str]]]:
    """Line number and the first `words` words of each line that is no comment; the last one may hold blanks."""
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            parts = line.strip().split(None, words - 1)
            if len(parts) < words:
                raise UserError(f"{file}:{number}: {line.strip()!r} has {len(parts)} words instead of {words}")
            yield number, parts


def _pairs(file: Path) -> dict[str, str]:
    """First word -> rest of each line."""
    return {key: rest for _, (key, rest) in _lines(file, 2)}


def _first_names(file: Path) -> dict[str, str]:
    """Class -> the first of its names, from lines `class name, other name`; empty without the file."""
    return {key: names.split(",")[0] for key, names in _pairs(file).items()} if tree.is_file(file) else {}


def _by_folder(images: Path, listed: Iterable[tuple[int, str]]) -> Iterator[Entry]:
    """Lines of `class/image`, below the folder `images`."""
    for number, image in listed:
        yield number, os.path.join(images, image), class_name(image.split("/")[0])


def _birds(path: Path, names: set[str]) -> Published | None:
    """Lists of `id value`: images.txt, image_class_labels.txt, train_test_split.txt (1: training), classes.txt."""
    if not {"images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"} <= names:
        return None
    file, labels = path / "images.txt", _pairs(path / "image_class_labels.txt")
    training, names_of = _pairs(path / "train_test_split.txt"), _pairs(path / "classes.txt")
    # NABirds has several classes of one name, so there the number is the class.
    numbered = len(set(names_of.values())) < len(names_of)
    entries, splits = [], []
    for number, (key, image) in _lines(file, 2):
        label = labels.get(key, "")
        lacks = "image_class_labels.txt" if key not in labels else "train_test_split.txt" if key not in training else ""
        if lacks or label not in names_of:
            subject = f"image {key}" if lacks else f"class {label} of image {key}"
            lacks = lacks or "classes.txt"
            raise UserError(f"{file}:{number}: {subject} is not in {lacks}; is the dataset complete?")
        entries.append((number, os.path.join(path, "images", image), label if numbered else names_of[label]))
        splits.append("train" if training[key] == "1" else "test")
    title = "NABirds" if numbered else "CUB-200-2011"
    return Published(title, [_listed(file, entries, splits)], names_of if numbered else {})


def _pets(path: Path, names: set[str]) -> Published | None:
    """annotations/trainval.txt and test.txt: `Name_of_breed_12 class species breed`."""
    lists = _lists(path / "annotations", {"train": "trainval.txt", "test": "test.txt"})
    if "images" not in names or lists is None:
        return None

    def entries(file: Path) -> Iterator[Entry]:
        for number, (image, *_) in _lines(file, 4):
            yield number, os.path.join(path, "images", f"{image}.jpg"), image.rpartition("_")[0]

    return Published("Oxford-IIIT Pet", [_listed(file, entries(file), split) for split, file in lists.items()])


def _tiny_imagenet(path: Path, names: set[str]) -> Published | None:
    """train/CLASS/images, and val/images with val/val_annotations.txt: `image class box`."""
    lists = _lists(path / "val", {"valid": "val_annotations.txt"})
    if "train" not in names or lists is None:
        return None
    file = lists["valid"]
    entries = ((k, os.path.join(path, "val", "images", image), label) for k, (image, label, _) in _lines(file, 3))
    parts = [_in_class_folders(path / "train", "train"), _listed(file, entries, "valid")]
    return Published("Tiny ImageNet", parts, _first_names(path / "words.txt"))


def _aircraft(path: Path, names: set[str]) -> Published | None:
    """data/images_variant_train.txt, _val and _test: `image name of the variant`."""
    data = path if "images_variant_train.txt" in names else path / "data"
    lists = _lists(data, {split: f"images_variant_{stem}.txt" for split, stem in SPLITS.items()})
    if lists is None:
        return None

    def entries(file: Path) -> Iterator[Entry]:
        for number, (image, variant) in _lines(file, 2):
            yield number, os.path.join(data, "images", f"{image}.jpg"), variant

    parts = [_listed(file, entries(file), split) for split, file in lists.items()]
    return Published("FGVC-Aircraft", parts, note="families and manufacturers are other lists beside them")


def _textures(path: Path, names: set[str]) -> Published | None:
    """labels/train1.txt, val1.txt, test1.txt: `class/image`, the first of ten splits."""
    lists = _lists(path / "labels", {split: f"{stem}1.txt" for split, stem in SPLITS.items()})
    if "images" not in names or lists is None:
        return None

    def entries(file: Path) -> Iterator[Entry]:
        return _by_folder(path / "images", ((number, image) for number, (image,) in _lines(file, 1)))

    parts = [_listed(file, entries(file), split) for split, file in lists.items()]
    return Published("DTD", parts, note="the first of its ten splits")


def _imagenet(path: Path, names: set[str]) -> Published | None:
    """ILSVRC/Data/CLS-LOC/train/CLASS, and val with LOC_val_solution.csv: `image,class box class box`."""
    lists, data = _lists(path, {"valid": "LOC_val_solution.csv"}), path / "ILSVRC" / "Data" / "CLS-LOC"
    if lists is None or not tree.is_folder(data / "train"):
        return None
    entries = []
    for number, line in enumerate(read_text(lists["valid"]).split("\n"), 1):
        image, _, boxes = line.strip().partition(",")
        if boxes and number > 1:
            entries.append((number, os.path.join(data, "val", f"{image}.JPEG"), boxes.split()[0]))
    parts = [_in_class_folders(data / "train", "train"), _listed(lists["valid"], entries, "valid")]
    return Published("ImageNet", parts, _first_names(path / "LOC_synset_mapping.txt"))


def _dogs(path: Path, names: set[str]) -> Published | None:
    """train_list.mat and test_list.mat: a cell array `file_list` of `class/image`, beside Images."""
    lists = _lists(path, {"train": "train_list.mat", "test": "test_list.mat"})
    if "Images" not in names or lists is None:
        return None
    parts = [_listed(file, _by_folder(path / "Images", _cells(file)), split) for split, file in lists.items()]
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


LAYOUTS: tuple[Callable[[Path, set[str]], Published | None], ...] = (
    _birds,
    _pets,
    _tiny_imagenet,
    _aircraft,
    _textures,
    _imagenet,
    _dogs,
)
