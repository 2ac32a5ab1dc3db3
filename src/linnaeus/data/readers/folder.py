"""Read a folder of class folders, with or without `train`, `valid` and `test` folders above them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnaeus.console import counted
from linnaeus.data import tree
from linnaeus.data.archives.archive import is_archive
from linnaeus.data.class_names import (
    class_name,
    listed,
    natural_order,
    spelling_variants,
)
from linnaeus.data.display_names import JSON_FILES, TEXT_FILES, display_names
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.images.formats import LITTER
from linnaeus.data.readers.layouts import layout_note, refuse_detection, refuse_parts, refuse_unnamed_split
from linnaeus.data.table import SPLIT_NAMES, SPLITS, Table
from linnaeus.errors import UserError, visible


@dataclass
class Scan:
    """The files found below a folder. Paths are absolute; those in `ignored` are relative to the source."""

    root: str
    images: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    written: set[tuple[str, str]] = field(default_factory=set)  # (split, name of a class folder)

    def passed_over(self, path: str, mark: str = "") -> None:
        name = os.path.relpath(path, self.root)
        if name not in (*TEXT_FILES, *JSON_FILES):  # these are read, not ignored
            self.ignored.append(visible(name.replace(os.sep, "/")) + mark)


def open_folder(source: str, path: Path, *, lenient: bool = False) -> Table:
    """Read a folder: `train/`, `valid/` (or `val/`), `test/` with class folders inside, or class folders at the top.

    Images may lie in subfolders of a class folder. Hidden files and files that are not images are listed in `ignored`.
    A class folder without images is an error, or is ignored if `lenient`. Symbolic links are followed; each folder is
    read once per class. Classes are in natural order, or in the order of `classes.txt`.
    """
    root = os.path.abspath(path)  # links stay as the user wrote them
    scan = Scan(root)
    parts = _parts(scan, root)
    notes: list[str] = []
    contents: list[tuple[str, str, list[str]]] = []  # split, class, images
    for split, folder in parts.items():
        folders = [entry.name for entry in _entries(Scan(root), folder)[0]]
        refuse_detection(folder, folders)
        inner = {name: _inner(folder, name) for name in folders}
        refuse_parts(folder, [name for name in folders if inner[name] is not None], _known(inner))
        notes += layout_note(folder, folders, _known(inner))
        contents += [(split, name, images) for name, images in _classes(scan, folder, split).items()]
        if not any(images for part, _, images in contents if part == split):
            raise UserError(_nothing(scan, folder, split, path))
    learns = "train" if "train" in parts else ""
    for split, name, images in contents:
        if split == learns and not images:
            where = os.path.join(parts[split], name)
            if lenient:
                scan.passed_over(where, "/")
                continue
            raise UserError(f"{where}: class folder without images; add some, or remove the folder")
    identities = natural_order(name for split, name, images in contents if images)
    shown = display_names(path, identities)
    position = {name: k for k, name in enumerate(shown.classes)}
    contents = [part for part in contents if part[2]]
    table = Table(
        source,
        "folder",
        shown.classes,
        shown.names,
        np.repeat([position[name] for _, name, _ in contents], [len(images) for *_, images in contents]),
        np.repeat(np.array([split for split, *_ in contents], dtype="<U5"), [len(images) for *_, images in contents]),
        paths=tuple(image for *_, images in contents for image in images),
        ignored=tuple(sorted(scan.ignored)),
        root=root,
        spellings=spelling_variants(scan.written),
        notes=(*notes, *shown.notes),
    )
    top = parts.get(learns)
    if len(shown.classes) == 1 and top is not None:
        _refuse_wrapper(Path(top), shown.classes[0])
    return table


def _inner(folder: str, name: str) -> set[str] | None:
    """Subfolders of a class folder that contain images or folders; None if the class folder contains images itself."""
    path = os.path.join(folder, name)
    folders, files = _entries(Scan(path), path)
    if any(_is_image(entry) for entry in files):
        return None
    return {entry.name for entry in folders if any(map(_is_image, _entries(Scan(path), entry.path)[1]))} | {
        entry.name for entry in folders if _entries(Scan(path), entry.path)[0]
    }


def _known(inner: dict[str, set[str] | None]) -> dict[str, set[str]]:
    return {name: folders or set() for name, folders in inner.items()}


def _parts(scan: Scan, root: str) -> dict[str, str]:
    """Split -> its folder; {"": root} if the class folders are at the top.

    Folders named train, valid or test are splits if there are no other folders, or if `train` contains folders. A
    class may be called "train" (beside "bus"); its folder contains images.
    """
    folders, _ = _entries(Scan(root), root)
    parts: dict[str, str] = {}
    others = []
    for entry in folders:
        split = SPLIT_NAMES.get(entry.name.lower())
        if split is None:
            others.append(entry)
        elif split in parts:
            raise UserError(f"{parts[split]} and {entry.path}: two folders for {split}; keep one")
        else:
            parts[split] = entry.path
    train = parts.get("train")
    # Names of splits beside other folders may be classes ("test" in a dataset of documents).
    if not parts or (others and not (train and _entries(Scan(root), train)[0])):
        return {"": root}
    refuse_unnamed_split(root, [entry.name for entry in others])
    for entry in others:
        scan.passed_over(entry.path, "/")
    for entry in _entries(scan, root)[1]:
        scan.passed_over(entry.path)
    return {split: parts[split] for split in SPLITS if split in parts}


def _entries(scan: Scan, folder: str) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """Folders and files in `folder`, sorted. Hidden ones are added to `ignored`."""
    folders: list[os.DirEntry[str]] = []
    files: list[os.DirEntry[str]] = []
    try:
        for entry in tree.scan(folder):
            hidden = entry.name.startswith(".") or entry.name in LITTER
            is_folder = _is_folder(entry)
            if hidden:
                scan.passed_over(entry.path, "/" if is_folder else "")
            else:
                (folders if is_folder else files).append(entry)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
    return folders, files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_image(entry: os.DirEntry[str]) -> bool:
    """By the suffix. Not a pipe or a device, because reading it could block. Decoding reports dangling links."""
    if os.path.splitext(entry.name)[1].lower() not in IMAGE_SUFFIXES:
        return False
    try:
        return entry.is_file() or (entry.is_symlink() and not os.path.exists(entry.path))
    except OSError:
        return True


def _classes(scan: Scan, folder: str, split: str) -> dict[str, list[str]]:
    """Class name -> sorted images, for the class folders in `folder`."""
    folders, files = _entries(scan, folder)
    for entry in files:
        scan.passed_over(entry.path)
    images_by_class: dict[str, list[str]] = {}
    for entry in folders:
        name = class_name(entry.name)
        scan.written.add((split, entry.name))
        if not name:
            raise UserError(f"{entry.path!r}: the name of this class folder is blank; rename it")
        images_by_class.setdefault(name, []).extend(sorted(_images(scan, entry.path)))
    return images_by_class


def _images(scan: Scan, top: str) -> list[str]:
    """All images below `top`. Each folder is entered once, so that loops of symbolic links end.

    A link to a folder above `top` is not followed: the images there are those of other classes.
    """
    images: list[str] = []
    entered = _folders_above(scan, top)
    todo = [top]
    while todo:
        folder = todo.pop()
        try:
            status = tree.stat(folder)
        except OSError as error:
            raise UserError(f"{folder}: cannot be read ({error.strerror}); check its permissions") from None
        # Device and inode identify a folder, whichever of several links leads to it.
        if (status.st_dev, status.st_ino) in entered:
            scan.passed_over(folder, "/")
            continue
        entered.add((status.st_dev, status.st_ino))
        folders, files = _entries(scan, folder)
        todo += [entry.path for entry in folders]
        for entry in files:
            if _is_image(entry):
                images.append(entry.path)
            else:
                scan.passed_over(entry.path)
    return images


def _folders_above(scan: Scan, top: str) -> set[tuple[int, int]]:
    """Device and inode of each folder of the source above `top`."""
    above: set[tuple[int, int]] = set()
    for folder in Path(top).parents:
        with suppress(OSError):
            status = tree.stat(folder)
            above.add((status.st_dev, status.st_ino))
        if str(folder) == scan.root:
            break
    return above


def _nothing(scan: Scan, folder: str, split: str, path: Path) -> str:
    """The error message for a folder, or a split of it, in which no class has an image."""
    folders, files = _entries(Scan(scan.root), folder)
    loose = sum(_is_image(entry) for entry in files)
    if loose:
        example = os.path.join(folder if split else str(path), "rose", files[0].name)
        also = (
            "" if split in ("", "train") else f", or move {split} away (`linnaeus predict` takes images without labels)"
        )
        here = f"{folder}: {counted(loose, 'image')}, but in no class folder"
        return f"{here}; put each class into a folder, as {example}{also}"
    # Users often give the folder into which the browser has saved the archive.
    archive = next((entry.path for entry in files if is_archive(entry.path)), None)
    inner = next((entry.name for entry in files if Path(entry.name).suffix.lower() in (".zip", ".tar", ".gz")), None)
    if archive is None and inner is not None:
        return f"{folder}: no images, but the archive {inner} inside it, which is not read there; unpack {folder}"
    if archive is not None and not folders:
        return f"{folder}: no images, but an archive; to read the images in it, give {archive} as the source"
    kinds = " ".join(sorted(IMAGE_SUFFIXES))
    inside = f"{counted(len(folders), 'folder')}, but " if folders else ""
    content = "an empty folder" if not folders and not files else f"{inside}no images"
    return f"{folder}: {content} ({kinds}); put the images of each class into a folder of their own"


def _refuse_wrapper(path: Path, only: str) -> None:
    """Refuse a single class folder that contains several folders: most likely an archive unpacked too deep."""
    for entry in _entries(Scan(str(path)), str(path))[0]:
        inside = _entries(Scan(str(path)), entry.path)[0]
        if class_name(entry.name) == only and len(inside) > 1:
            raise UserError(
                f"{path}: only one class folder, {only!r}; its folders {listed([e.name for e in inside])} may be the "
                f"classes: then point at {path / entry.name}"
            )


def loose_images(source: str, paths: Iterable[str]) -> Table:
    """The table of image files that have no class."""
    files = tuple(paths)
    labels, split = np.zeros(len(files), np.int64), np.full(len(files), "", "<U5")
    return Table(source, "folder", ("",), ("",), labels, split, files)
