"""The table: which samples a source holds, read without opening an image; and how it is split."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from linnaeus.data import tree
from linnaeus.data.class_names import listed
from linnaeus.data.display_names import match
from linnaeus.errors import UserError, visible

if TYPE_CHECKING:
    from linnaeus.data.archives.members import ShardMembers

SPLITS = ("train", "valid", "test")
NEAR_DUPLICATES = "near-duplicates"  # as a recipe's split.groups: copies of one image are a group
SPLIT_NAMES = {  # what the parts are called in the wild
    "train": "train",
    "training": "train",
    "valid": "valid",
    "val": "valid",
    "validation": "valid",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of a source: n images, their labels and splits, and the class names.

    Exactly one of `paths`, `images` and `members` is given. A sample keeps its id through `select` and `split_table`.
    """

    source: str  # what the user pointed at
    kind: str  # "folder" | "list" | "csv" | "cifar" | "idx" | "digits" | "pixels" | "shards"
    classes: tuple[str, ...]  # class names in index order: the identity used for matching (NFC)
    names: tuple[str, ...]  # display names, same order
    labels: np.ndarray  # (n,) int64, an index into classes; (n, classes) bool where images may have several labels
    split: np.ndarray  # (n,) "<U5": "train" | "valid" | "test" | "" (not yet split)
    paths: tuple[str, ...] | None = None  # absolute paths, where images are files
    images: np.ndarray | None = None  # (n, H, W) or (n, H, W, 3) uint8, where the source holds arrays
    members: ShardMembers | None = None  # where they lie inside larger files, which no store copies
    groups: tuple[str, ...] | None = None  # samples of one group stay on one side of a split; "" is no group
    accepted: np.ndarray | None = None  # (n,) bool, of labels of `linnaeus label`: those that its classifier gave
    offered: tuple[str, ...] = ()  # columns of a CSV that may say so, where none was named
    ignored: tuple[str, ...] = ()  # hidden files and non-images that were passed over
    spellings: tuple[tuple[str, str], ...] = ()  # (split, name as written) of classes written in more than one way
    notes: tuple[str, ...] = ()  # how the source was understood, where another reading was possible: lines to print
    root: str = ""  # absolute folder that sample ids are relative to
    origin: np.ndarray | None = None  # (n,) "<U5": the part of the source a sample came from; where images
    number: np.ndarray | None = None  # (n,) int64: its position in that part; where images

    def __post_init__(self) -> None:
        contents = [values for values in (self.paths, self.images, self.members) if values is not None]
        assert len(contents) == 1, "a table holds paths, or images, or members"
        n = len(contents[0])
        assert len(self.labels) == len(self.split) == n
        assert len(self.classes) == len(self.names)
        assert self.groups is None or len(self.groups) == n
        # Several labels per image are an indicator matrix; one label is an index.
        kind = bool if np.ndim(self.labels) == 2 else np.int64
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=kind))
        object.__setattr__(self, "split", np.asarray(self.split, dtype="<U5"))
        # Samples of an array have no path; they are named by split and number, also after a selection.
        if self.images is not None and self.number is None:
            number = np.empty(n, dtype=np.int64)
            for part in np.unique(self.split):
                where = self.where(part)
                number[where] = np.arange(len(where))
            object.__setattr__(self, "origin", self.split)
            object.__setattr__(self, "number", number)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int | None:
        """1 or 3 where the source holds arrays; None where images are files that nobody has opened yet."""
        if self.images is None:
            return None
        return 1 if self.images.ndim == 3 else 3

    @property
    def several(self) -> bool:
        """Whether an image may have several labels, or none."""
        return self.labels.ndim == 2

    def labels_of(self, i: int) -> tuple[str, ...]:
        """Names of the classes of sample i: one, or where there may be several labels any number."""
        row = self.labels[i]
        return tuple(self.classes[c] for c in (np.flatnonzero(row) if self.several else [row]))

    def require_one_label(self, purpose: str) -> None:
        """Raise UserError, naming the `purpose`, for images that may have several labels."""
        if self.several:
            raise UserError(f"{self.source}: its images have several labels each, which {purpose} does not support")

    def where(self, split: str) -> np.ndarray:
        """Indices (k,) int64 of the samples of a split; "" for those not yet split."""
        return np.flatnonzero(self.split == split)

    def select(self, indices: np.ndarray) -> Table:
        """The table of these samples, in this order; the classes stay."""
        indices = np.asarray(indices, dtype=np.int64)

        def pick(values):
            return None if values is None else tuple(values[i] for i in indices)

        def take(values):
            return None if values is None else values[indices]

        return dataclasses.replace(
            self,
            labels=self.labels[indices],
            split=self.split[indices],
            paths=pick(self.paths),
            images=take(self.images),
            members=None if self.members is None else self.members.take(indices),
            groups=pick(self.groups),
            accepted=take(self.accepted),
            origin=take(self.origin),
            number=take(self.number),
        )

    def with_notes(self, *notes: str) -> Table:
        """The same table with more lines to print."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))

    def group_numbers(self, indices: np.ndarray) -> np.ndarray | None:
        """(k,) int64, equal for samples of one group; None where there are no groups of two or more among them."""
        numbers = None if self.groups is None else group_numbers([self.groups[i] for i in indices.tolist()])
        return None if numbers is None else indices[numbers]

    @property
    def offer(self) -> str:
        """What is to be said of columns that may name groups; "" where there are none, or groups are named already."""
        if not self.offered or self.groups is not None or not (self.split == "").any():
            return ""
        first, *more = self.offered
        which = f"columns {listed(self.offered)} repeat" if more else f"column {first!r} repeats"
        return (
            f"the {which}: if images with the same value belong together, data.split.groups={first} keeps them in "
            "one split, and the intervals account for it"
        )

    def counts(self) -> dict[str, np.ndarray]:
        """Samples by class, (classes,) int64, for each split that has any, in the order train, valid, test, "".

        An image with several labels counts for each of them.
        """
        return {
            split: class_counts(self.labels[self.split == split], len(self.classes))
            for split in (*SPLITS, "")
            if (self.split == split).any()
        }

    def sizes(self) -> dict[str, int]:
        """Number of samples of each split that has any, in the order of `counts`."""
        return {split: n for split in (*SPLITS, "") if (n := int((self.split == split).sum()))}

    def image(self, i: int) -> str | bytes | np.ndarray:
        """Sample i as the decoder takes it: a path, the bytes of a file, or an array."""
        if self.paths is not None:
            return self.paths[i]
        if self.members is not None:
            return self.members.read(i)
        assert self.images is not None
        return self.images[i]

    def sample_id(self, i: int) -> str:
        """A stable name of sample i: its path relative to the source where it lies inside, or "train[17]"."""
        if self.members is not None:
            return visible(self.members.names[i])
        if self.paths is None:
            assert self.origin is not None
            assert self.number is not None
            return f"{self.origin[i] or self.kind}[{self.number[i]}]"
        path, inside = self.paths[i], self.root + os.sep
        if self.root and path.startswith(inside):
            path = path[len(inside) :]
        return visible(path.replace(os.sep, "/"))

    def fingerprint(self) -> str:
        """SHA-256 (hex) over classes, sample ids, labels, splits, and file sizes or the pixels.

        It stays when the folder moves, and changes when an image is added, removed, relabelled or resized.
        """
        digest = hashlib.sha256()
        for name in self.classes:
            digest.update(name.encode() + b"\0")
        labels = [np.flatnonzero(row).tolist() for row in self.labels] if self.several else self.labels.tolist()
        for i, (label, split) in enumerate(zip(labels, self.split.tolist(), strict=True)):
            # Sizes are cheap and reveal a replaced file, without reading gigabytes.
            size = tree.size(self.paths[i]) if self.paths is not None else -1
            size = size if self.members is None else int(self.members.sizes[i])
            digest.update(f"{self.sample_id(i)}\0{label}\0{split}\0{size}\n".encode())
        if self.images is not None:
            digest.update(f"{self.images.shape}".encode())
            for i in range(0, len(self.images), 4096):  # in pieces: a selection need not be contiguous
                digest.update(np.ascontiguousarray(self.images[i : i + 4096]).data)
        return digest.hexdigest()


def class_counts(labels: np.ndarray, classes: int) -> np.ndarray:
    """(classes,) int64: samples of each class, by labels (n,) int64 or (n, classes) bool."""
    return labels.sum(0, dtype=np.int64) if labels.ndim == 2 else np.bincount(labels, minlength=classes)


def group_numbers(names: Sequence[str]) -> np.ndarray | None:
    """(n,) int64: of each sample the first of its group, itself where its group is ""; None where none is shared."""
    first: dict[str, int] = {}
    numbers = [first.setdefault(name, i) if name else i for i, name in enumerate(names)]
    return np.array(numbers, np.int64) if len(set(numbers)) < len(numbers) else None


def checked(table: Table) -> Table:
    """`table`, if a classifier can be made of it: images, two classes, none that only validation or test has."""
    source = table.source
    if not len(table):
        raise UserError(f"{source}: holds no images; point at a folder of class folders, a list file or a CSV")
    if not table.classes:
        raise UserError(f"{source}: no image has a label, so there is nothing to learn; fill in the labels")
    refuse_two_labels(table)
    counts = table.counts()
    learned = sum((counts[split] for split in ("train", "") if split in counts), np.zeros(len(table.classes), np.int64))
    if not learned.any():  # only validation or test: something to evaluate on
        return table
    for split in ("valid", "test"):
        lost = [table.classes[i] for i in np.flatnonzero(counts.get(split, learned * 0) * (learned == 0))]
        if lost:
            learned_names = [table.classes[i] for i in np.flatnonzero(learned)]
            similar = [f"{other!r} in train is {name!r} here" for name, other in match(lost, learned_names).items()]
            if similar:
                raise UserError(
                    f"{source}: {split} and train spell classes differently: {', '.join(similar[:5])}; "
                    "give each class one name"
                )
            subject = f"class {listed(lost)} is" if len(lost) == 1 else f"classes {listed(lost)} are"
            raise UserError(
                f"{source}: {subject} in {split} but not in train; add training images, "
                f"or remove {'it' if len(lost) == 1 else 'them'} from {split}"
            )
    if table.several:
        _refuse_unusable_labels(table, learned)
    elif len(table.classes) < 2:
        raise UserError(
            f"{source}: all {len(table)} images are of one class, {table.classes[0]!r}; "
            "a classifier needs two or more: give each class a folder, or a label, of its own"
        )
    return table


def _refuse_unusable_labels(table: Table, learned: np.ndarray) -> None:
    """Raise UserError if every image to learn from has a label, or a name holds the separator of split.csv."""
    for name in table.classes:
        if "|" in name:
            raise UserError(
                f"{table.source}: label {name!r} contains '|', which separates labels in split.csv; rename it"
            )
    n = len(table.where("train")) + len(table.where(""))
    if always := [table.classes[c] for c in np.flatnonzero(learned == n)]:
        raise UserError(
            f"{table.source}: every training image has the label {listed(always)}, and a label is learned from images "
            "with and without it; add images, or remove the label"
        )


def refuse_two_labels(table: Table) -> None:
    """Raise UserError for a file that a list or CSV names twice, with different labels."""
    if table.kind not in ("list", "csv") or table.paths is None or len(set(table.paths)) == len(table):
        return
    first: dict[str, int] = {}
    for i, path in enumerate(table.paths):
        earlier = first.setdefault(path, i)
        if (table.labels[earlier] != table.labels[i]).any():
            one, other = table.labels_of(earlier), table.labels_of(i)
            if table.several:
                raise UserError(
                    f"{table.source}: {table.sample_id(i)!r} is listed with the labels {listed(one) or 'none'} and "
                    f"with {listed(other) or 'none'}; write all labels of an image in one row"
                )
            raise UserError(
                f"{table.source}: {table.sample_id(i)!r} is listed with the labels {listed([*one, *other])}; an image "
                "has one label: correct or remove a row (several labels: one row per image, and a column labels)"
            )
