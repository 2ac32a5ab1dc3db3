"""A new run from one with a solved head: its classes are renamed, merged or dropped, and others added."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.console import Console
from linnaeus.data.class_names import class_name, listed, natural_order
from linnaeus.data.images.content import UNKNOWN
from linnaeus.data.images.decode import IMAGE_SUFFIXES
from linnaeus.data.sources import loose_images
from linnaeus.data.split import split_table
from linnaeus.data.table import Table, checked
from linnaeus.errors import UserError, did_you_mean
from linnaeus.inference.membership import held_in
from linnaeus.runs.changes import RunChanges
from linnaeus.runs.layout import SPLIT
from linnaeus.runs.ownership import is_in_progress
from linnaeus.stores.contents import HashedImages
from linnaeus.training.derived.solved_run import SolvedRun
from linnaeus.training.run import Run, train


@dataclass(frozen=True)
class ChangedRun:
    """A run with changed classes, and its answers beside those of the run before on the images of both."""

    run: Run
    changes: RunChanges


def change_classes(
    path: str | Path, changes: ClassChanges, *, out: str | Path | None = None, device: str = "auto", console: Console
) -> ChangedRun:
    """Train a run with changed classes; the activations of images that stay are reused from the run at `path`.

    The run at `path` is only read. Raises UserError if its network was trained below the head, its images are not
    files, or the changes do not fit its classes.
    """
    old = SolvedRun.read(Path(path), "its classes cannot be changed")
    if old.model.task == "multi-label":
        raise UserError(f"{path}: its images have several labels each, which `linnaeus classes` does not support")
    before = old.table()
    after = changed_table(before, changes)
    lines = _describe(old.path, before, after, changes)
    record = RunChanges(old.path, lines, changes.targets(before.classes, before.names))
    earlier = old.earlier(before, record)
    with old.new_folder("classes", out) as place:
        # The new run's own split.csv is its source: no folder or list has these images with these classes.
        after = dataclasses.replace(after, source=str(place.absolute() / SPLIT))
        resume = is_in_progress(place)  # what a killed process of the same command has begun
        run = train(after, old.recipe, out=place, device=device, console=console, earlier=earlier, resume=resume)
    return ChangedRun(run, record)


def _describe(path: Path, before: Table, after: Table, changes: ClassChanges) -> list[str]:
    """What changes, one line each. Raises UserError if nothing does."""
    lines = [f"class renamed: {text.replace('=', ' is now ')}" for text in changes.rename]
    lines += [f"classes merged: {text.replace('=', ' are now ')}" for text in changes.merge]
    lines += [f"class dropped: {text}" for text in changes.drop]
    lines += [
        f"images added: {folder}" if Path(folder).name == name else f"images added: {folder} as {name}"
        for folder, name in changes.added
    ]
    if not lines:
        raise UserError(f"{path}: nothing to change; give --rename, --merge, --drop or --add")
    sizes = f"{len(before)} to {len(after)} images"
    return [*lines, f"{len(before.classes)} to {len(after.classes)} classes, {sizes}"]


@dataclass(frozen=True)
class ClassChanges:
    """What becomes of the classes. Names may be class names or display names."""

    rename: tuple[str, ...] = ()  # each `A=B`
    merge: tuple[str, ...] = ()  # each `A,B=C`
    drop: tuple[str, ...] = ()
    add: tuple[Path, ...] = ()  # folders of images of one class each
    name: tuple[str, ...] = ()  # the class of the images of each folder; by default, the names of the folders

    @property
    def added(self) -> list[tuple[Path, str]]:
        """Each folder with the class of its images."""
        names = self.name or [folder.resolve().name for folder in self.add]
        return list(zip(self.add, names, strict=True))

    def targets(self, classes: tuple[str, ...], names: tuple[str, ...]) -> dict[str, str | None]:
        """Each class -> the class that its images have afterwards, None for a dropped class. Raises UserError."""
        targets: dict[str, str | None] = {}
        for option, texts in (("--rename", self.rename), ("--merge", self.merge), ("--drop", self.drop)):
            for text in texts:
                sources, new = self._parse(option, text)
                for name in sources:
                    source = find_class(name, classes, names, f"{option} {name}: the run")
                    if source in targets:
                        raise UserError(f"{option} {text}: class {name!r} is changed twice; name each class once")
                    targets[source] = new
        kept = [name for name in classes if name not in targets]
        for text in self.rename:
            new = class_name(text.rpartition("=")[2].strip())
            if targets.get(new) == new:
                raise UserError(f"--rename {text}: changes nothing; leave it out")
            # Two classes under one name must be a deliberate merge, not a slip of --rename.
            others = [old for old, target in targets.items() if target == new]
            if new in kept or len(others) > 1:
                raise UserError(f"--rename {text}: {new!r} is the name of another class; merge them with --merge")
        return {name: targets.get(name, name) for name in classes}

    @staticmethod
    def _parse(option: str, text: str) -> tuple[list[str], str | None]:
        """The named classes, and the new name."""
        if option == "--drop":
            return [text], None
        old, equals, new = text.rpartition("=")
        names = [old] if option == "--rename" else [name.strip() for name in old.split(",")]
        if not equals or not new.strip() or not all(names) or (option == "--merge" and len(names) < 2):
            form = "OLD=NEW" if option == "--rename" else "A,B=C"
            raise UserError(f"{option} {text}: must be {form}, such as {option} {form}")
        return names, class_name(new.strip())


def changed_table(table: Table, changes: ClassChanges) -> Table:
    """The table afterwards: images that stay keep their order and their split. Raises UserError."""
    targets = changes.targets(table.classes, table.names)
    labels: list[str | None] = [targets[table.classes[label]] for label in table.labels.tolist()]
    kept = table.select(np.array([i for i, label in enumerate(labels) if label is not None], np.int64))
    new = [label for label in labels if label is not None]
    shown = dict(zip(table.classes, table.names, strict=True))
    for folder, name in changes.added:
        added = _added(kept, folder, name, shown)
        new += [added.classes[0]] * len(added)
        assert kept.paths is not None
        assert added.paths is not None
        groups = None if kept.groups is None else (*kept.groups, *[""] * len(added))
        split = np.concatenate([kept.split, added.split])
        paths = (*kept.paths, *added.paths)
        kept = dataclasses.replace(kept, labels=np.zeros(len(new), np.int64), split=split, paths=paths, groups=groups)
    classes = natural_order(new)
    index = {name: i for i, name in enumerate(classes)}
    numbers = np.array([index[name] for name in new], np.int64)
    # Classes keep their display names where they keep their name.
    names = tuple(shown.get(name, name) for name in classes)
    return checked(dataclasses.replace(kept, classes=classes, names=names, labels=numbers))


def find_class(name: str, classes: tuple[str, ...], names: tuple[str, ...], place: str) -> str:
    """The class of this name or display name. Raises UserError, which begins with `place`, if there is none."""
    if name in classes:
        return name
    shown = [label for label, display in zip(classes, names, strict=True) if display == name]
    if len(shown) != 1:
        raise UserError(f"{place} has no class {name!r}{did_you_mean(name, names)}; it has {listed(names, 20)}")
    return shown[0]


def _added(table: Table, folder: Path, name: str, shown: dict[str, str]) -> Table:
    """The images of a folder as a table of one class, split in the shares of `table`."""
    if table.paths is None:
        raise UserError(f"{folder}: cannot be added, because the images of the run are not files")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --add takes a folder with the images of one class")
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    paths = tuple(str(path.absolute()) for path in files if not path.name.startswith("."))
    if not paths:
        raise UserError(
            f"{folder}: holds no images; --add takes a folder with the images of one class, not in subfolders"
        )
    if twice := set(paths) & set(table.paths):
        raise UserError(f"{min(twice)}: is an image of the run already; --add takes new images")
    _refuse_copies(table, folder, paths)
    label = class_name(name)
    label = next((known for known, display in shown.items() if display == label), label)
    unsplit = Table(str(folder), "list", (label,), (label,), np.zeros(len(paths)), np.full(len(paths), ""), paths)
    # In the shares of the run, so that the new class is measured like the others.
    valid, test = (float((table.split == split).mean()) for split in ("valid", "test"))
    return split_table(unsplit, valid=valid, test=test, seed=0)


def _refuse_copies(table: Table, folder: Path, paths: tuple[str, ...]) -> None:
    """Raise UserError if added images have the content of images of the run: these would train and measure it."""
    contents = HashedImages(table, default_cache()).hashes(np.arange(len(table)))
    copies = np.flatnonzero(held_in(contents[contents != UNKNOWN], loose_images(str(folder), paths)))
    if len(copies):
        raise UserError(
            f"{folder}: {len(copies):,} of its {len(paths):,} images are copies of images of the run, such as "
            f"{Path(paths[copies[0]]).name}; --add takes new images: remove them"
        )
