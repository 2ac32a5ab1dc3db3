"""Read a folder of class folders, with or without `train`, `valid` and `test` folders above them."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from linnaeus.console import counted
from linnaeus.data import tree
from linnaeus.data.archives.archive import is_archive
from linnaeus.data.class_names import class_name, listed, natural_order, spelling_variants
from linnaeus.data.display_names import BY_NAME_ONLY, JSON_FILES, TEXT_FILES, display_names
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.images.formats import LITTER
from linnaeus.data.readers import layouts
from linnaeus.data.readers.foreign_files import unread_images
from linnaeus.data.readers.unused import doubtful_notes, unused_notes
from linnaeus.data.table import SPLIT_NAMES, SPLITS, Table
from linnaeus.errors import UserError, not_read, visible

Entries = list[os.DirEntry[str]]


def _list(folder: str) -> tuple[Entries, Entries, Entries]:
    """Folders, files, and hidden entries of both kinds in `folder`, each sorted."""
    folders: Entries = []
    files: Entries = []
    hidden: Entries = []
    try:
        for entry in tree.scan(folder):
            if entry.name.startswith(".") or entry.name in LITTER:
                hidden.append(entry)
            else:
                (folders if _is_folder(entry) else files).append(entry)
    except OSError as error:
        raise not_read(folder, error) from None
    return folders, files, hidden


@dataclass
class Scan:
    """The files found below a folder. Paths are absolute; those in `ignored` are relative to the source."""

    root: str
    ignored: list[str] = field(default_factory=list)
    written: set[tuple[str, str]] = field(default_factory=set)  # (split, name of a class folder)
    loose: list[str] = field(default_factory=list)  # images outside of the class folders
    aside: list[str] = field(default_factory=list)  # folders beside the splits

    def pass_over(self, path: str, mark: str = "") -> None:
        """List a file in `ignored`; a folder has the `mark` "/"."""
        name = os.path.relpath(path, self.root)
        if name not in (*TEXT_FILES, *JSON_FILES, *BY_NAME_ONLY):  # these are read, not ignored
            self.ignored.append(visible(name.replace(os.sep, "/")) + mark)

    def entries(self, folder: str) -> tuple[Entries, Entries]:
        """Folders and files in `folder`, sorted. Hidden ones are passed over."""
        folders, files, hidden = _list(folder)
        for entry in hidden:
            self.pass_over(entry.path, "/" if _is_folder(entry) else "")
        return folders, files


def open_folder(source: str, path: Path, *, lenient: bool = False) -> Table:
    """Read a folder: `train/`, `valid/` (or `val/`), `test/` with class folders inside, or class folders at the top.

    Images may lie in subfolders of a class folder. Hidden files and files that are not images are listed in `ignored`.
    A class folder without images is an error, or is ignored if `lenient`. Symbolic links are followed; each folder is
    read once per class. Classes are in natural order, or in the order of `classes.txt`.
    """
    root = os.path.abspath(path)  # links stay as the user wrote them
    scan = Scan(root)
    parts = _parts(scan)
    notes: list[str] = []
    images: dict[tuple[str, str], list[str]] = {}  # (split, class) -> its images
    for split, folder in parts.items():
        notes += _check_layout(folder)
        by_class = _classes(scan, folder, split)
        if not any(by_class.values()):
            raise UserError(_nothing(folder, split, path))
        images |= {(split, name): files for name, files in by_class.items()}
    learns = "train" if "train" in parts else ""
    for name in [name for (split, name), files in images.items() if split == learns and not files]:
        where = os.path.join(parts[learns], name)
        if not lenient:
            raise UserError(f"{where}: class folder without images; add some, or remove the folder")
        scan.pass_over(where, "/")
    images = {key: files for key, files in images.items() if files}
    shown = display_names(path, natural_order(name for _, name in images))
    notes += unused_notes(root, scan.loose, scan.aside, parts.values())
    notes += doubtful_notes((name, files) for (_, name), files in images.items())
    position = {name: k for k, name in enumerate(shown.classes)}
    counts = [len(files) for files in images.values()]
    table = Table(
        source,
        "folder",
        shown.classes,
        shown.names,
        np.repeat([position[name] for _, name in images], counts),
        np.repeat(np.array([split for split, _ in images], dtype="<U5"), counts),
        paths=tuple(file for files in images.values() for file in files),
        ignored=tuple(sorted(scan.ignored)),
        root=root,
        spellings=spelling_variants(scan.written),
        notes=(*notes, *shown.notes),
    )
    if len(shown.classes) == 1 and learns in parts:
        _refuse_wrapper(Path(parts[learns]), shown.classes[0])
    return table


def _check_layout(folder: str) -> list[str]:
    """What was understood of the folders below the class folders in `folder`. Raises UserError for other layouts."""
    names = [entry.name for entry in _list(folder)[0]]
    if by_name := _classes_in_names(folder):
        name, example = next(iter(by_name.items()))
        return [f"{folder}: the class is the part of each name before the first dot: {name} is of {example!r}"]
    layouts.refuse_detection(folder, names)
    inner = {name: below for name in names if (below := _inner(os.path.join(folder, name))) is not None}
    layouts.refuse_parts(folder, list(inner), inner)
    return layouts.layout_note(folder, names, inner)


def _classes_in_names(folder: str) -> dict[str, str]:
    """As `classes_in_names`, for the images in a folder without folders."""
    folders, files, _ = _list(folder)
    return {} if folders else layouts.classes_in_names([entry.name for entry in files if _is_image(entry)])


def _inner(path: str) -> set[str] | None:
    """Subfolders of a class folder that contain images or folders; None if the class folder contains images itself."""
    folders, files, _ = _list(path)
    if any(map(_is_image, files)):
        return None
    below = {entry.name: _list(entry.path) for entry in folders}
    return {name for name, (inside, images, _) in below.items() if inside or any(map(_is_image, images))}


def _parts(scan: Scan) -> dict[str, str]:
    """Split -> its folder; {"": root} if the class folders are at the top.

    Folders named train, valid or test are splits if there are no other folders, or if `train` contains folders. A
    class may be called "train" (beside "bus"); its folder contains images.
    """
    parts: dict[str, str] = {}
    others = []
    for entry in _list(scan.root)[0]:
        split = SPLIT_NAMES.get(entry.name.lower())
        if split is None:
            others.append(entry)
        elif split in parts:
            raise UserError(f"{parts[split]} and {entry.path}: two folders for {split}; keep one")
        else:
            parts[split] = entry.path
    # Names of splits beside other folders may be classes ("test" in a dataset of documents).
    train = parts.get("train")
    if not parts or (others and not (train and (_list(train)[0] or _classes_in_names(train)))):
        return {"": scan.root}
    layouts.refuse_unnamed_split(scan.root, [entry.name for entry in others])
    for entry in others:
        scan.pass_over(entry.path, "/")
        scan.aside.append(entry.path)
    _pass_over_files(scan, scan.entries(scan.root)[1])
    return {split: parts[split] for split in SPLITS if split in parts}


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
    (folders, files), by_name = scan.entries(folder), _classes_in_names(folder)
    _pass_over_files(scan, [entry for entry in files if entry.name not in by_name])
    images_by_class: dict[str, list[str]] = {}
    for image, written in by_name.items():
        scan.written.add((split, written))
        images_by_class.setdefault(class_name(written), []).append(os.path.join(folder, image))
    for entry in folders:
        name = class_name(entry.name)
        scan.written.add((split, entry.name))
        if not name:
            raise UserError(f"{entry.path!r}: the name of this class folder is blank; rename it")
        images_by_class.setdefault(name, []).extend(sorted(_images(scan, entry.path)))
    return images_by_class


def images_of_classes(folder: Path) -> dict[str, list[str]]:
    """Class name -> absolute paths of its images, sorted, for the class folders in `folder`, however deep they lie."""
    root = os.path.abspath(folder)
    return _classes(Scan(root), root, "")


def _pass_over_files(scan: Scan, files: list[os.DirEntry[str]]) -> None:
    """Files that lie in no class folder."""
    for entry in files:
        scan.pass_over(entry.path)
        if _is_image(entry):
            scan.loose.append(entry.path)


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
            raise not_read(folder, error) from None
        # Device and inode identify a folder, whichever of several links leads to it.
        if (status.st_dev, status.st_ino) in entered:
            scan.pass_over(folder, "/")
            continue
        entered.add((status.st_dev, status.st_ino))
        folders, files = scan.entries(folder)
        todo += [entry.path for entry in folders]
        for entry in files:
            if _is_image(entry):
                images.append(entry.path)
            else:
                scan.pass_over(entry.path)
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


def _nothing(folder: str, split: str, path: Path) -> str:
    """The error message for a folder, or a split of it, in which no class has an image."""
    folders, files, _ = _list(folder)
    loose = sum(_is_image(entry) for entry in files)
    if loose:
        example = os.path.join(folder if split else str(path), "rose", files[0].name)
        also = "" if split in ("", "train") else f", or move {split} away"
        return (
            f"{folder}: {counted(loose, 'image')}, but in no class folder; put each class into a folder, as "
            f"{example}{also}; images without labels are for `linnaeus label`, `linnaeus predict` and, if they show no "
            "class of the model, `linnaeus evaluate --outside`"
        )
    # Users often give the folder into which the browser has saved the archive.
    archive = next((entry.path for entry in files if is_archive(entry.path)), None)
    inner = next((entry.name for entry in files if Path(entry.name).suffix.lower() in (".zip", ".tar", ".gz")), None)
    if archive is None and inner is not None:
        return f"{folder}: no images, but the archive {inner} inside it; nested archives are not read: unpack {folder}"
    if archive is not None and not folders:
        return f"{folder}: no images, but an archive; to read the images in it, give {archive} as the source"
    below = [entry.name for inner_folder in folders for entry in _list(inner_folder.path)[1]]
    unread = unread_images([*(entry.name for entry in files), *below])
    if unread is not None:
        return f"{folder}: no images that can be read, but {unread}"
    kinds = " ".join(sorted(IMAGE_SUFFIXES))
    inside = f"{counted(len(folders), 'folder')}, but " if folders else ""
    content = "an empty folder" if not folders and not files else f"{inside}no images"
    return f"{folder}: {content}; put the images of each class into a folder of their own (images end in {kinds})"


def _refuse_wrapper(path: Path, only: str) -> None:
    """Refuse a single class folder with several folders below it: most likely an archive unpacked too deep."""
    place = next((entry.path for entry in _list(str(path))[0] if class_name(entry.name) == only), None)
    while place is not None:
        folders, files = _list(place)[:2]
        if len(folders) > 1:
            raise UserError(
                f"{path}: only one class folder, {only!r}; the folders {listed([e.name for e in folders])} below it "
                f"may be the classes or splits: then point at {place}"
            )
        place = folders[0].path if folders and not files else None
