"""Open a source: choose the reader for a folder, a file, an address or a known name."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.data import tree
from linnaeus.data.archived import holds_folder, top_folder
from linnaeus.data.archives.archive import is_archive
from linnaeus.data.archives.remote import is_address
from linnaeus.data.catalog import KNOWN, not_found
from linnaeus.data.class_names import class_name, listed
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.readers import cifar, csvfile, folder, idx, known_sources, listfile, pixelcsv, shards
from linnaeus.data.readers.columns import AS_SHOWN, LabelFormat
from linnaeus.data.readers.foreign_files import foreign_file
from linnaeus.data.readers.labels import with_task
from linnaeus.data.readers.published import open_published
from linnaeus.data.readers.unused import holds_labels, names_images
from linnaeus.data.readers.webdataset import is_shard
from linnaeus.data.table import SPLIT_NAMES, SPLITS, Table, checked
from linnaeus.errors import UserError, not_read, refuse_name

LISTS = {
    "train": ("train.txt", "train_list.txt"),
    "valid": ("valid.txt", "val.txt", "val_list.txt", "valid_list.txt"),
    "test": ("test.txt", "test_list.txt"),
}
CSVS = (".csv", ".tsv", ".jsonl")
SAMPLE = re.compile("sample_?submission", re.IGNORECASE)  # of a competition: its labels mean nothing


def open_source(
    source: Any,
    *,
    train: str | None = None,
    valid: str | None = None,
    test: str | None = None,
    group: str | None = None,
    labels: LabelFormat = AS_SHOWN,
    lenient: bool = False,
) -> Table:
    """Read a source, a string or a path, into a table, without opening an image.

    `train`, `valid`, `test` name list files (or CSVs) in a folder. `group` names the column of a CSV; samples with
    equal values stay in one split. `labels` says whether images have several labels. A path on disk takes precedence
    over a known name. A known dataset is downloaded if necessary. Raises UserError, also for a table that cannot be
    trained on, unless `lenient`: `check` wants to show everything that is wrong with the data.
    """
    if not isinstance(source, str | os.PathLike):
        raise UserError(_not_a_path(source))
    named = {"train": train, "valid": valid, "test": test}
    lists = {split: name for split, name in named.items() if name is not None}
    table = _open(os.fspath(source), lists, group, labels, lenient)
    if group is not None and table.groups is None:
        raise UserError(
            f"{table.source}: cannot be grouped by {group!r}, because only a CSV has columns; write a CSV with the "
            f"columns path, label and {group}"
        )
    if labels.separator is not None and table.kind != "csv" and not lenient:
        raise UserError(
            f"{source}: data.separator = {labels.separator!r} divides the cells of a CSV, and this source is of kind "
            f"{table.kind}; leave it out"
        )
    table = with_task(table, labels.task)
    return table if lenient and len(table) else checked(table)


def _open(text: str, lists: dict[str, str], group: str | None, labels: LabelFormat, lenient: bool) -> Table:
    """Choose the reader; `lists` maps a split to the list file or CSV that the user named for it."""
    path = Path(text).expanduser()
    # A local folder may have a name that looks like an address or a range.
    if (is_address(text) or shards.RANGE.search(text)) and not path.exists():
        if lists:
            raise UserError(f"{text}: shards define their splits; leave out {listed([*lists])}")
        return shards.open_shards(text, text)
    try:
        is_folder, is_file, exists = tree.is_folder(path), path.is_file(), path.exists()
    except (OSError, ValueError) as error:  # a name too long, a folder that may not be entered
        raise UserError(
            f"{text[:200]!r}: cannot be opened ({getattr(error, 'strerror', error)}); check the path"
        ) from None
    if not text.strip():
        raise UserError("an empty source; give a folder, a list file, a CSV or a known name")
    if is_file and holds_folder(path):
        place, notes = top_folder(path)
        table = _open_folder(text, place, lists, group, labels, lenient)
        return dataclasses.replace(table, notes=(*notes, *table.notes))
    if lists and not is_folder:
        raise UserError(f"{text}: not a folder, but {listed([*lists])} must name list files in a folder")
    if is_folder:
        return _open_folder(text, path, lists, group, labels, lenient)
    if is_file:
        return _open_file(text, path, group, labels)
    if exists:
        raise UserError(f"{text}: neither a file nor a folder; give a folder, a list file or a CSV")
    # Last, so that a folder called mnist is preferred to the download.
    if text in KNOWN:
        return known_sources.open_known(text)
    raise UserError(not_found(text))


def _not_a_path(source: object) -> str:
    kind = type(source)
    if kind.__module__.startswith("datasets.") and hasattr(source, "column_names"):
        return (
            f"a {kind.__name__} of Hugging Face; write its images into class folders, and pass their folder: for each "
            'row, row["image"].save(f"photos/{names[row["label"]]}/{i}.png") with dataset.features["label"].names'
        )
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__.split('.')[0]}.{kind.__name__}"
    return (
        f"a source of type {name}; pass the path of a folder, list file or CSV, a known name, or a pandas DataFrame "
        "with the columns path and label (linnaeus.sklearn.ImageClassifier takes arrays and lists)"
    )


def is_run_folder(names: Collection[str]) -> bool:
    """Whether a folder with entries of these `names` is a run folder, not a folder of images."""
    return "recipe.toml" in names and not {"model.safetensors", "split.csv", "history.csv"}.isdisjoint(names)


def _open_folder(
    source: str, path: Path, lists: dict[str, str], group: str | None, labels: LabelFormat, lenient: bool
) -> Table:
    """Choose the reader by the content of the folder: binary formats, then list files, then class folders."""
    try:
        names = tree.names(path)
    except OSError as error:
        raise not_read(source, error) from None
    if lists:
        return _open_lists(source, path, lists, names, group, labels)
    if is_run_folder(names):
        raise UserError(f"{source}: a run folder, not images; give the folder of images that the run was trained on")
    if shards.find_shards(path, names):
        return shards.open_shards(source, path)
    published = open_published(source, path, names)
    if published is not None:
        return published
    binaries = cifar.find_cifar(path)
    if binaries is not None:
        return cifar.open_cifar(source, binaries)
    if idx.find_idx(path):
        return idx.open_idx(source, path)
    if names.intersection(LISTS["train"] + LISTS["test"]):
        return _open_lists(source, path, {}, names, group, labels)
    meta = path / "meta"  # Food-101 as published: meta/train.txt beside images/
    if "images" in names and tree.is_file(meta / "train.txt"):
        return _open_lists(source, meta, {}, tree.names(meta), group, labels)
    tables = _tables_of_splits(path, names)
    if not tables and (beside := _labels_beside_images(path, names)) is not None:
        tables = {"": beside}
    if tables:
        table = csvfile.open_csv(source, tables, group, labels)
        notes = (f"labels are read from {', '.join(map(str, tables.values()))}", *table.notes)
        return dataclasses.replace(table, notes=notes, root=str(path.absolute()))
    return folder.open_folder(source, path, lenient=lenient)


def _tables_of_splits(path: Path, names: set[str]) -> dict[str, Path]:
    """Split -> its CSV: train.csv beside valid.csv or test.csv, or a CSV among the images of the folder of each."""
    beside = {SPLIT_NAMES[name[:-4].lower()]: path / name for name in sorted(names) if _is_split(name, ".csv")}
    beside = {split: table for split, table in beside.items() if holds_labels(table)}
    if "train" in beside and len(beside) > 1:
        return beside
    inside = {}
    for name in sorted(name for name in names if _is_split(name, "") and _has_images(path / name)):
        tables = [file for file in sorted(tree.names(path / name)) if file.lower().endswith(CSVS)]
        if len(tables) == 1 and names_images(path / name / tables[0]):
            inside[SPLIT_NAMES[name.lower()]] = path / name / tables[0]
    return inside if "train" in inside else {}


def _is_split(name: str, suffix: str) -> bool:
    return name.lower().endswith(suffix) and name.lower().removesuffix(suffix) in SPLIT_NAMES


def _labels_beside_images(path: Path, names: set[str]) -> Path | None:
    """The CSV with the labels of a folder whose images lie in a folder such as `images`, not in class folders."""
    tables = sorted(name for name in names if name.lower().endswith(CSVS) and not SAMPLE.match(name))
    places = [path / name for name in sorted(names) if name.lower() in (*listfile.IMAGE_FOLDERS, *SPLITS)]
    flat = _has_images(path) and not any(tree.is_folder(path / name) for name in names if not name.startswith("."))
    if not tables or not (flat or any(_has_images(place) for place in places)):
        return None
    usual = [name for name in tables if Path(name).stem.lower() in ("train", "labels", "train_labels", "metadata")]
    if len(tables) > 1 and len(usual) != 1:
        raise UserError(f"{path}: images without class folders, and {listed(tables)}; point at the CSV with the labels")
    return path / (usual or tables)[0]


def _has_images(folder: Path) -> bool:
    return tree.is_folder(folder) and any(Path(name).suffix.lower() in IMAGE_SUFFIXES for name in tree.names(folder))


def _open_lists(
    source: str, path: Path, lists: dict[str, str], names: set[str], group: str | None, labels: LabelFormat
) -> Table:
    """Read list files in a folder: the given ones, and those with the usual names for the other splits."""
    files = {}
    for split in SPLITS:
        usual = next((name for name in LISTS[split] if name in names), None)
        name = lists.get(split, usual)
        if name is not None:
            files[split] = path / name
            if not tree.is_file(files[split]):
                raise UserError(f"{files[split]}: no such list file; set data.{split} to a file in {path}")
    kinds = {file.suffix.lower() in CSVS for file in files.values()}
    if len(kinds) > 1:
        raise UserError(f"{source}: {listed([file.name for file in files.values()])}: use list files or CSVs, not both")
    return csvfile.open_csv(source, files, group, labels) if kinds == {True} else listfile.open_lists(source, files)


def _open_file(source: str, path: Path, group: str | None, labels: LabelFormat) -> Table:
    """Choose the reader by the name of the file, or else by its first bytes."""
    name = path.name.lower()
    if name.endswith(".csv") and pixelcsv.holds_pixels(path):
        return pixelcsv.open_pixels(source, path)
    if name.endswith(CSVS):
        return csvfile.open_csv(source, {"": path}, group, labels)
    if name.endswith(".tar") and is_shard(path):
        return shards.open_shards(source, path)
    if is_archive(path):
        return cifar.open_cifar(source, path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise UserError(f"{source}: a single image; give the folder with the class folders, or use `linnaeus predict`")
    if name.endswith(".bin"):
        raise UserError(f"{source}: one file of several; give its folder, {path.absolute().parent}")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise not_read(source, error) from None
    if not head.strip():
        raise UserError(f"{source}: is empty; give a folder, a list file or a CSV")
    if (what := foreign_file(path, head)) is not None:
        raise UserError(f"{source}: {what}")
    if idx.NAME.fullmatch(path.name) or head[:3] == b"\0\0\x08":
        return idx.open_idx(source, path)
    if b"\0" in head and head[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise UserError(
            f"{source}: neither a text file nor a supported format; give a folder, a list file, a CSV, CIFAR or IDX"
        )
    return listfile.open_lists(source, {"": path})


def refuse_inside(out: str | Path, table: Table) -> None:
    """Raise UserError if the folder `out` lies inside the source of a table, as `refuse_among` does."""
    refuse_name(out)
    refuse_among("--out", out, [table.source] if table.kind == "folder" else [], table.classes)


def refuse_among(option: str, out: str | Path, sources: Iterable[str], classes: Collection[str]) -> None:
    """Raise UserError if `out`, which `option` names, lies among images, of which the next command would take its own.

    That is inside a folder of the `sources`, or of two folders with the names of `classes`, whatever a command reads.
    """
    place = Path(out).resolve()
    read = {Path(source).resolve() for source in sources if tree.is_folder(source)}
    for above in (place, *place.parents):
        if above in read or len(_class_folders(above, classes)) > 1:
            raise UserError(
                f"{option} {out}: lies inside the source {above}, so images written there would become part of the "
                f"data; choose another {option} elsewhere"
            )


def _class_folders(folder: Path, classes: Collection[str]) -> set[str]:
    """The names of the subfolders that are classes; a run may have the name of one, too."""
    try:
        named = [entry for entry in tree.scan(folder) if class_name(entry.name) in classes and entry.is_dir()]
        return {class_name(entry.name) for entry in named if not is_run_folder(tree.names(entry.path))}
    except OSError:
        return set()


def loose_images(source: str, paths: Iterable[str]) -> Table:
    """The table of image files that have no class."""
    files = tuple(paths)
    labels, split = np.zeros(len(files), np.int64), np.full(len(files), "", "<U5")
    return Table(source, "folder", ("",), ("",), labels, split, files)
