"""Recognize folder layouts that are not one folder per class, and refuse them or point them out."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Sequence

from linnaeus.data.class_names import listed
from linnaeus.data.table import SPLIT_NAMES
from linnaeus.errors import UserError

DETECTION = {"labels", "annotations", "masks"}
IMAGES = re.compile("(jpeg)?images?|imgs?|(train|val|test)[0-9]{4}")
OTHER_NAMES = {"dev": "valid", "eval": "valid", "evaluation": "valid", "holdout": "test", "hold_out": "test"}
OTHER_NAMES |= {"validate": "valid", "训练集": "train", "训练": "train", "验证集": "valid", "验证": "valid"}
OTHER_NAMES |= {"测试集": "test", "测试": "test"}
GROUPS = re.compile(
    "(cam|camera|fold|batch|part|session|day|run|set|split|seq|sequence|group|patient|subject|site|scene|view|video"
    "|clip|user|device|location|series)[-_ ]?[0-9]+",
    re.IGNORECASE,
)


NUMBERED = re.compile(r"([^.]*[^\W\d][^.]*)\.[0-9]+\.[^.]+")  # as in Dogs vs. Cats: cat.0.jpg


def classes_in_names(names: Sequence[str]) -> dict[str, str]:
    """Name of an image -> its class, where all are called like `cat.0.jpg`, with two classes or more; else empty."""
    found = {name: match[1] for name in names if (match := NUMBERED.fullmatch(name))}
    return found if len(found) == len(names) and 1 < len(set(found.values())) <= len(names) / 2 else {}


def likely_split(name: str) -> str | None:
    """The split that a folder's name resembles without being it, such as `seg_train`, `test-set` or `vaild`."""
    text = name.lower()
    words = [SPLIT_NAMES[word] for word in re.split("[^a-z]+", text) if word in SPLIT_NAMES]
    close = difflib.get_close_matches(text, SPLIT_NAMES, 1, 0.8)
    return OTHER_NAMES.get(text) or (words[0] if words else SPLIT_NAMES[close[0]] if close else None)


def refuse_detection(folder: str, names: Iterable[str]) -> None:
    """Raise UserError for images beside boxes or masks, as YOLO, COCO and Pascal VOC have them."""
    names = list(names)
    images = [name for name in names if IMAGES.fullmatch(name.lower())]
    others = [name for name in names if name.lower() in DETECTION]
    if images and others:
        raise UserError(
            f"{folder}: {images[0]}/ beside {others[0]}/ is a layout for detection or segmentation; to classify whole "
            "images, give each class a folder, or write a CSV with path and label"
        )


def refuse_unnamed_split(folder: str, others: Sequence[str]) -> None:
    """Raise UserError for a folder beside train/ that looks like validation or test, and would be left out."""
    for name in others:
        split = likely_split(name)
        if split in ("valid", "test"):
            raise UserError(
                f"{os.path.join(folder, name)}: beside train/ and named like {split}; rename it to {split}, or move it "
                "away"
            )


def refuse_parts(folder: str, names: Sequence[str], inner: dict[str, set[str]]) -> None:
    """Raise UserError if the class folders `names` are parts of a dataset; `inner`: class -> folders inside."""
    # Two or more folders: a single class may be called "test".
    parts = [name for name in names if likely_split(name)]
    if len(parts) > 1 and all(inner.get(name) for name in parts):
        raise UserError(
            f"{folder}: {listed(parts)} are named like splits, not classes; rename them to train, valid or test, with "
            f"the class folders directly inside, or point at one: {os.path.join(folder, parts[0])}"
        )
    # class/train/image instead of train/class/image: the levels are swapped.
    common = _common(names, inner)
    splits = {name for name in common if name.lower() in SPLIT_NAMES}
    if splits or (common and all(GROUPS.fullmatch(name) for name in names)):
        meaning = "are splits" if splits else "may be the classes"
        raise UserError(
            f"{folder}: the class folders {listed(names)} all contain {listed(sorted(common))}, which {meaning}; put "
            f"{'the split above the class, as train/' + names[0] if splits else 'the images into one folder per class'}"
            ", or write a CSV with path, label, split and group"
        )


def layout_note(folder: str, names: Sequence[str], inner: dict[str, set[str]]) -> list[str]:
    """What was understood where all class folders contain only folders, above all of the same names."""
    common = _common(names, inner)
    if not common and len(names) > 1 and all(inner.get(name) for name in names):
        example = f"{names[0]}/{min(inner[names[0]])}"
        return [f"classes are the folders {listed(names)} in {folder}; the folders inside, such as {example}, are not"]
    if not common:
        return []
    return [
        f"classes are the folders {listed(names)} in {folder}; the folders {listed(sorted(common))} inside each are not"
    ]


def _common(names: Sequence[str], inner: dict[str, set[str]]) -> set[str]:
    """Names of at least two folders that every class folder contains."""
    sets = [inner.get(name, set()) for name in names]
    common = set.intersection(*sets) if len(sets) > 1 else set()
    return common if len(common) > 1 else set()
