"""Open a source as a recipe or a trained model needs it: its list files, its groups, its split, its class order."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.data import tree
from linnaeus.data.archives.archive import is_archive
from linnaeus.data.batches import Rows
from linnaeus.data.class_names import listed
from linnaeus.data.display_names import stem
from linnaeus.data.images.content import UNKNOWN
from linnaeus.data.readers.columns import LabelFormat
from linnaeus.data.readers.csvfile import open_frame
from linnaeus.data.readers.repeats import whole_number
from linnaeus.data.sources import open_source
from linnaeus.data.split import split_table
from linnaeus.data.table import NEAR_DUPLICATES, Table, refuse_two_labels
from linnaeus.errors import UserError, did_you_mean
from linnaeus.inference.membership import SPLIT, KnownImages, Membership
from linnaeus.inference.selection import select
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.stores.contents import with_copies
from linnaeus.stores.samples import decode_split
from linnaeus.text import first_few


@dataclass(frozen=True)
class LabeledImages:
    """The images of a split of a source, decoded, with their labels in a model's classes."""

    source: str  # the source as the user named it
    split: str
    rows: Rows
    labels: np.ndarray  # (n,) int64, or (n, classes) bool where images may have several labels
    left_out: list[tuple[str, str]]  # (sample id, reason) of the images that cannot be read
    trained_on: int  # number of images that the model was trained on; 0 where the source is not that of its training
    # Whether the model was calibrated on any of the images; False where the source is not that of its training.
    calibrated_on: bool
    table: Table  # the whole source
    indices: np.ndarray  # (n,) int64: the index of each image in the table
    recognized_by: str = ""  # what images of the training are recognized by, as in `KnownImages.basis`
    total: int = 0  # number of images that were asked for, those left out included
    training: int = 0  # number of images left out because the model was trained on them
    # (n,) "<U5": the split of the run that each image was in; "" for none, or unknown.
    of_run: np.ndarray = field(default_factory=lambda: np.zeros(0, "<U5"))
    # (n,) int64: images of a group, and exact copies, have the same number; None where each is its own.
    groups: np.ndarray | None = None
    contradicting: int = 0  # number of images of which an exact copy has another label
    validation: LabeledImages | None = None  # images that were asked for and chose the model, kept apart
    unfinished: bool = False  # whether the training of the model was stopped before its end
    called_differently: str = ""  # classes that the source shows under another name than the model
    absent_labels: str = ""  # labels of the model that no image of the source has

    @property
    def selected_on(self) -> bool:
        """Whether any of the images chose the model; False where the source is not that of its training."""
        return bool((self.of_run == "valid").any())

    def notes(self) -> list[str]:
        """What must be said of the figures on these images: what was left out, and what makes them optimistic."""
        n = len(self.labels)
        lines = list[str]()
        if self.split == "train":
            lines.append(
                f"the model was trained on {self.trained_on:,} of these {n:,} images: these scores are optimistic"
            )
        if not self.recognized_by and self.split != "train":
            lines.append(
                "the model file holds no record of the images it was trained on, and no split.csv of its run lies "
                "beside it: whether these are among them cannot be checked, so these scores may be optimistic"
            )
        apart = 0 if self.validation is None else len(self.validation.labels)
        left_out = f"{self.training:,} of {self.total:,} images were used for training and are left out"
        # A model that was stopped is chosen by its validation images, and not calibrated yet.
        used = "selected and calibrated" if self.calibrated_on else "selected"
        chosen, optimistic = self.calibrated_on or self.selected_on, "these scores are slightly optimistic"
        if apart:
            also = f"; {apart:,} selected the model and are reported separately; {n:,} are unseen and measured"
            lines.append(
                (left_out if self.training else f"none of the {self.total:,} images was used for training") + also
            )
        elif self.training and chosen:
            lines.append(f"{left_out}; the model was {used} on the other {n:,}: {optimistic}")
        elif self.training:
            lines.append(f"{left_out}; {n:,} are measured")
        elif chosen:
            lines.append(f"the model was {used} on these images: {optimistic}")
        lines += [line for line in (self.called_differently, self.absent_labels) if line]
        if self.contradicting:
            lines.append(
                f"{self.contradicting:,} of {n:,} images have an exact copy with a different label, so one of the "
                "two always counts as wrong; correct the labels"
            )
        return lines


def stopped(about: ModelFile) -> str:
    """A warning if the training of a model was stopped before its end, or has not ended yet; else empty."""
    unfinished = about.data.get("unfinished") is True
    return "the training was stopped before its end: this is the best model up to then" if unfinished else ""


def open_for_recipe(source: Any, data: Mapping[str, Any], *, lenient: bool = False) -> Table:
    """The table of a source, or of a DataFrame, with the list files and the groups that a recipe's `data` names.

    `lenient`: nothing is trained on the source, which may be another one than the recipe was made for. So list files
    are ignored unless it is a folder, a missing column of groups is no error, and one class is enough.
    Raises UserError if the source cannot be read.
    """
    labels = LabelFormat(data.get("task"), data.get("separator"))
    train, valid, test = (data.get(split) for split in ("train", "valid", "test"))
    if valid == "test":  # the test images serve as validation: there is no list of validation images
        valid = None
    is_frame = hasattr(source, "itertuples")  # without importing pandas
    if lenient and isinstance(source, str | Path) and not (tree.is_folder(source) or is_archive(source)):
        train = valid = test = None
    groups = (data.get("split") or {}).get("groups")
    column = None if groups == NEAR_DUPLICATES else groups  # near-duplicates are found in the images, not in a column
    try:
        if is_frame:
            return open_frame(source, column, labels, lenient=lenient)
        return open_source(source, train=train, valid=valid, test=test, group=column, labels=labels, lenient=lenient)
    except UserError:
        if not lenient or column is None:
            raise
        return open_for_recipe(source, {**data, "split": None}, lenient=True)


def known_images(about: ModelFile, path: Path, source: Any) -> KnownImages:
    """The images of a source, and which of them the model at `path` was trained on."""
    data = about.recipe.get("data", {})
    table = _in_words_of(about, open_for_recipe(source, {**data, "task": about.task}, lenient=True))
    refuse_two_labels(table)
    split = data.get("split")
    membership = Membership.of_model(about, path)
    samples = sum(int(n) for n in about.data.get("counts", {}).values())
    # Near duplicates depend on all images, so the split can be repeated only with the complete source.
    by_copies = (split or {}).get("groups") == NEAR_DUPLICATES and (table.split == "").any()
    if by_copies and membership is None and len(table) >= samples:
        raise UserError(
            f"{table.source}: the model was trained on a split that keeps near-duplicates together, which cannot be "
            f"reproduced here; pass the split of its run: {path.parent / SPLIT}"
        )
    return KnownImages(table, _split_again(about, table), membership, path.parent, default_cache())


def _split_again(about: ModelFile, table: Table) -> Table | None:
    """The table split as it was for the training; None unless it is the one that the model was trained on."""
    data = about.recipe.get("data", {})
    split = data.get("split")
    if split is None or not (table.where("train").size or table.where("").size):
        return None
    valid_is_test = data.get("valid") == "test"
    try:
        again = split_table(
            table, valid=split["valid"], test=split["test"], seed=split["seed"], valid_is_test=valid_is_test
        )
    except (UserError, KeyError, TypeError):  # another source than that of the training
        return None
    return again if again.fingerprint() == about.data.get("fingerprint") else None


def load_labeled_images(about: ModelFile, path: Path, source: Any, split: str | None = None) -> LabeledImages:
    """Decode the images of a split of a source, a path or a DataFrame, with labels in the classes of a model.

    `split` None means test if the source has one, else valid, else all. Images that the model was trained on are left
    out, wherever they lie in the source, unless `split` is train; those that chose the model are kept apart, and
    measured only where nothing else is left. "unseen" is all but these two.
    Raises UserError if the source has a class that the model does not know, no such split, or no readable image.
    """
    known = known_images(about, path, source)
    name = known.table.source
    _check_classes(about, name, known.table.classes)
    called = _called_differently(about, name, known.table)
    chosen = select(known, split, name)
    images = _decode(about, known, chosen.split, chosen.measured, name)
    apart = None
    if len(chosen.validation):
        apart = _decode(about, known, "valid", chosen.validation, name)
    images = replace(images, recognized_by=known.basis, total=chosen.total, training=chosen.training)
    absent = _absent_labels(about, name, known.table)
    return replace(images, validation=apart, called_differently=called, absent_labels=absent)


def _decode(about: ModelFile, known: KnownImages, split: str, indices: np.ndarray, source: str) -> LabeledImages:
    table = known.table
    decoded = decode_split(table, indices, about.preprocessing.row_spec, default_cache())
    splits = known.split_of(decoded.indices)
    calibration_split = None if about.calibration is None else about.calibration.get("split")
    contents = known.contents(decoded.indices)
    labels = _in_classes(table.select(decoded.indices), about.classes)
    return LabeledImages(
        source=source,
        split=split,
        rows=decoded.rows,
        labels=labels,
        left_out=decoded.left_out,
        trained_on=int((splits == "train").sum()),
        calibrated_on=about.calibration is not None and bool((splits == calibration_split).any()),
        # Where the source states no split, the recognized one takes its place.
        table=table if (table.split != "").any() else dataclasses.replace(table, split=known.all()),
        indices=decoded.indices,
        of_run=splits,
        groups=with_copies(table.group_numbers(decoded.indices), contents),
        contradicting=_contradicting(contents, labels),
        unfinished=bool(stopped(about)),
    )


def _contradicting(contents: np.ndarray, labels: np.ndarray) -> int:
    """Number of images (n,) of which another one has the same content and another label."""
    known = np.flatnonzero(contents != UNKNOWN)
    pairs = np.unique(np.column_stack([contents[known], labels[known].astype(np.uint64)]), axis=0)
    _, first, labels_of = np.unique(pairs[:, 0], return_index=True, return_counts=True)
    return int(np.isin(contents[known], pairs[first, 0][labels_of > 1]).sum())


def _in_words_of(about: ModelFile, table: Table) -> Table:
    """The table with the model's names for classes that are the same whole number, such as `1` and `1.0`, and for
    columns of a CSV, which models of earlier versions have in lower case."""
    names, of_columns = list(table.classes), table.kind == "csv"
    for k, name in enumerate(names):
        same = [known for known in about.classes if whole_number(known) == whole_number(name) is not None]
        same += [known for known in about.classes if of_columns and known == name.lower()]
        if name not in about.classes and len(same) == 1 and same[0] not in names:
            names[k] = same[0]
    return dataclasses.replace(table, classes=tuple(names))


def _in_classes(table: Table, classes: tuple[str, ...]) -> np.ndarray:
    """The labels of a table in a model's classes, which may be more."""
    position = np.array([classes.index(name) for name in table.classes], np.int64)
    if not table.several:
        return position[table.labels]
    labels = np.zeros((len(table), len(classes)), bool)
    labels[:, position] = table.labels
    return labels


def _check_classes(about: ModelFile, source: str, classes: tuple[str, ...]) -> None:
    """Raise UserError unless the model knows every class of the source, which may lack some of the model's."""
    unknown = [name for name in classes if name not in about.classes]
    if not unknown:
        return
    missing = [name for name in about.classes if name not in classes]
    others = f"; the source lacks {listed(missing, 20)}, which the model knows" if missing else ""
    raise UserError(
        f"{source}: the model does not know {listed(unknown, 20)}{did_you_mean(unknown[0], about.classes)}{others}; "
        "rename the classes that are the same, and leave out the others"
    )


def _absent_labels(about: ModelFile, source: str, table: Table) -> str:
    """One line if no image of the source has some of the labels of a model for several; else ""."""
    absent = [name for name in about.classes if name not in table.classes]
    if not table.several or not absent:
        return ""
    return (
        f"no image of {source} has the label{'s' * (len(absent) > 1)} {listed(absent, 5)}: each counts as an image "
        "without; if nobody looked for them, the figures over all labels are wrong, and those of each other label hold"
    )


def _called_differently(about: ModelFile, source: str, table: Table) -> str:
    """One line if the source shows classes under other names than the model; else "".

    Raises UserError if a class of the source has the display name of another class of the model: its figures would be
    those of wrong labels.
    """
    ours = dict(zip(about.classes, about.names, strict=True))
    owners = {stem(shown): name for name, shown in ours.items()}
    differing = []
    for name, shown in zip(table.classes, table.names, strict=True):
        # A class without a display name is shown under its own, which contradicts nothing.
        if stem(shown) in (stem(ours[name]), stem(name)) or stem(ours[name]) == stem(name):
            continue
        other = owners.get(stem(shown), name)
        if other != name:
            raise UserError(
                f"{source}: its class {name!r} is {shown!r}, which is class {other!r} of the model; its {name!r} is "
                f"{ours[name]!r}: name the classes of the source as the model does"
            )
        differing.append(f"{name!r} is {shown!r} here and {ours[name]!r} in the model")
    if not differing:
        return ""
    return f"class {first_few(differing)}: matched by class, not by display name; check that both mean the same"
