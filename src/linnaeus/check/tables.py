"""Findings that need no image: classes, their sizes and names, and what was passed over."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np

from linnaeus.check.findings import Finding
from linnaeus.data.class_names import class_name, listed
from linnaeus.data.table import Table

FEW_TO_LEARN = 10  # training images of a class
FEW_TO_MEASURE = 5  # images of a class in valid or test: one mistake is then a fifth of its recall
FEW_IN_ALL = 100  # images in valid or test: the 95 % interval of 90 % right is then 83 % to 94 %
UNEQUAL = 10  # times as many images as the smallest class


def tables(table: Table) -> list[Finding]:
    """Everything that the table alone shows."""
    return [*sizes(table), *names(table), *ignored(table)]


def sizes(table: Table) -> list[Finding]:
    """Classes missing from a split, too small to learn or to measure, or very unequal."""
    found = []
    counts = table.counts()
    zeros = np.zeros(len(table.classes), np.int64)
    learned = counts.get("train", zeros) + counts.get("", zeros)
    if len(table.classes) < 2:
        found.append(Finding("one-class", "error", (), table.classes, "a classifier needs two classes or more"))
    for split in ("valid", "test"):
        if split not in counts:
            continue
        n = counts[split]
        for c in np.flatnonzero((n > 0) & (learned == 0)).tolist() if learned.any() else ():
            detail = f"{n[c]} images in {split} and none to learn from; `train` refuses the source"
            found.append(Finding("missing-class", "error", (), (table.classes[c],), detail))
        for c in np.flatnonzero((n == 0) & (learned > 0)).tolist():
            detail = f"none in {split}: nobody will know how well it is recognized"
            found.append(Finding("missing-class", "warning", (), (table.classes[c],), detail))
        few = np.flatnonzero((n > 0) & (n < FEW_TO_MEASURE)).tolist()
        for c in sorted(few, key=lambda c: n[c]):
            detail = f"{n[c]} in {split}: each is {1 / n[c]:.0%} of its recall"
            found.append(Finding("few-to-measure", "info", (), (table.classes[c],), detail))
        if n.sum() < FEW_IN_ALL:
            detail = f"{n.sum()} images in {split}: figures on it are rough; see their intervals"
            found.append(Finding("few-to-measure", "warning", (), (), detail))
    small = np.flatnonzero((learned > 0) & (learned < FEW_TO_LEARN)).tolist()
    for c in sorted(small, key=lambda c: learned[c]):
        detail = f"{learned[c]} images to learn from; {FEW_TO_LEARN} is little already"
        found.append(Finding("few-images", "warning", (), (table.classes[c],), detail))
    present = learned[learned > 0]
    if len(present) > 1 and present.max() >= UNEQUAL * present.min():
        most, least = int(learned.argmax()), int(np.where(learned > 0, learned, learned.max() + 1).argmin())
        detail = f"{learned[most]} images of {table.classes[most]!r}, {learned[least]} of {table.classes[least]!r}: "
        detail += 'judge by best = "balanced_accuracy", and try sampling = "balanced"'
        found.append(Finding("imbalance", "warning", (), (table.classes[most], table.classes[least]), detail))
    return found


def names(table: Table) -> list[Finding]:
    """Classes whose names a person would take for one; and one class whose name is written in several ways."""
    alike: dict[str, list[str]] = {}
    for name in table.classes:
        alike.setdefault(_skeleton(name), []).append(name)
    found = []
    for same in alike.values():
        if len(same) > 1:
            detail = f"{len(same)} classes that differ in {_difference(same)} only; if they are one, give it one name"
            found.append(Finding("confusable-names", "warning", (), tuple(same), detail))
    ways: dict[str, dict[str, list[str]]] = {}  # class -> way of writing -> splits
    for split, text in table.spellings:
        ways.setdefault(class_name(text), {}).setdefault(text, []).append(split or "the source")
    for name, texts in ways.items():
        said = "; ".join(f"{_form(text)} in {', '.join(splits)}" for text, splits in texts.items())
        detail = f"read as one class, and other tools will see {len(texts)}: {said}; write it in one way"
        found.append(Finding("confusable-names", "warning", (), (name,), detail))
    return found


def ignored(table: Table) -> list[Finding]:
    """What lies in the source and is no sample."""
    if not table.ignored:
        return []
    files = [name.rpartition("/")[2] for name in table.ignored]
    kinds = Counter(f".{name.rpartition('.')[2]}" if "." in name.lstrip(".") else name for name in files)
    usual = listed([kind for kind, _ in kinds.most_common()])
    detail = f"{len(table.ignored)} files or folders that hold no images, or are hidden: {usual}"
    return [Finding("ignored", "info", table.ignored, (), detail)]


def _skeleton(name: str) -> str:
    """What is left of a name without case, compatibility forms, and whatever stands between its words."""
    return re.sub(r"(?<=\w)[\s_\-]+(?=\w)", " ", unicodedata.normalize("NFKC", name).casefold())


def _difference(same: list[str]) -> str:
    if len({name.lower() for name in same}) == 1:
        return "case"
    if len({re.sub(r"[\s_\-]+", " ", name) for name in same}) == 1:
        return "blanks, or the signs that stand for them,"
    return "case, blanks or Unicode form"


def _form(text: str) -> str:
    """A name as written, with what the eye does not see."""
    if text != text.strip():
        return f"{text!r} with blanks around it"
    if text == unicodedata.normalize("NFC", text):
        return f"{text!r} composed (NFC)"
    return f"{text!r} decomposed (NFD)" if text == unicodedata.normalize("NFD", text) else f"{text!r} partly decomposed"
