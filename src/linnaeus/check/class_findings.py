"""Findings from the dataset table alone: sizes and names of the classes, and files that were ignored."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

import numpy as np

from linnaeus.check.findings import Finding
from linnaeus.console import counted
from linnaeus.data.class_names import class_name, listed
from linnaeus.data.table import Table
from linnaeus.text import percent

FEW_TO_LEARN = 10  # training images of a class
FEW_TO_MEASURE = 5  # images of a class in valid or test; one error is then a fifth of its recall
FEW_IN_ALL = 100  # images in valid or test; the 95 % interval of an accuracy of 90 % is then 83 % to 94 %
QUOTES = "\"'`\u2018\u2019\u201c\u201d\u00ab\u00bb "
COPY = re.compile(r"(\s*-\s*copy|\s+copy)?(\s*\([0-9]+\))?$", re.IGNORECASE)  # as file managers name a copied folder
IMBALANCE = 10  # ratio of the largest class to the smallest


def table_findings(table: Table) -> list[Finding]:
    """All findings that need no image."""
    return [*class_sizes(table), *class_names(table), *ignored_files(table)]


def class_sizes(table: Table) -> list[Finding]:
    """Classes that are missing from a split, too small to learn or to evaluate, or imbalanced."""
    counts = table.counts()
    zeros = np.zeros(len(table.classes), np.int64)
    # Images without a split may still become training images.
    learned = counts.get("train", zeros) + counts.get("", zeros)
    findings = []
    if len(table.classes) < 2 and not table.several:
        findings.append(Finding("one-class", "error", (), table.classes, "a classifier needs at least two classes"))
    for split in ("valid", "test"):
        if split in counts:
            findings += _evaluated_sizes(table, split, counts[split], learned)
    small = np.flatnonzero((learned > 0) & (learned < FEW_TO_LEARN)).tolist()
    # The smallest class first.
    for c in sorted(small, key=lambda c: learned[c]):
        detail = f"{counted(learned[c], 'training image')}; fewer than {FEW_TO_LEARN} rarely suffice"
        findings.append(Finding("few-images", "warning", (), (table.classes[c],), detail))
    present = learned[learned > 0]
    if len(present) > 1 and present.max() >= IMBALANCE * present.min():
        # A class without images has a finding of its own.
        most, least = int(learned.argmax()), int(np.where(learned > 0, learned, learned.max() + 1).argmin())
        detail = f"{learned[most]} images of {table.classes[most]!r}, {learned[least]} of {table.classes[least]!r}: "
        advice = 'select the model by best = "balanced_accuracy", and try sampling = "balanced"'
        detail += 'try class_weights = "balanced"' if table.several else advice
        findings.append(Finding("imbalance", "warning", (), (table.classes[most], table.classes[least]), detail))
    return findings


def _evaluated_sizes(table: Table, split: str, n: np.ndarray, learned: np.ndarray) -> list[Finding]:
    """Findings about a split that is evaluated, with `n` images of each class, of which `learned` are for training."""
    findings = []
    for c in np.flatnonzero((n > 0) & (learned == 0)).tolist() if learned.any() else ():
        detail = f"{counted(n[c], 'image')} in {split} but none for training; `linnaeus train` rejects this source"
        findings.append(Finding("missing-class", "error", (), (table.classes[c],), detail))
    for c in np.flatnonzero((n == 0) & (learned > 0)).tolist():
        detail = f"no images in {split}, so its recall cannot be measured"
        findings.append(Finding("missing-class", "warning", (), (table.classes[c],), detail))
    few = np.flatnonzero((n > 0) & (n < FEW_TO_MEASURE)).tolist()
    for c in sorted(few, key=lambda c: n[c]):
        detail = (
            f"{counted(n[c], 'image')} in {split}: each one changes the recall of the class by {percent(1 / n[c], 0)}"
        )
        findings.append(Finding("few-of-class", "info", (), (table.classes[c],), detail))
    images = len(table.where(split))
    if images < FEW_IN_ALL:
        detail = f"{counted(images, 'image')} in {split}: too few for precise metrics, as their intervals show"
        findings.append(Finding("few-to-measure", "warning", (), (), detail))
    return findings


def class_names(table: Table) -> list[Finding]:
    """Classes whose names look alike, and classes whose name is written in several ways."""
    alike: dict[str, list[str]] = {}
    for name in table.classes:
        # Names are compared without case, spaces and look-alike letters.
        alike.setdefault(_skeleton(name), []).append(name)
    findings = []
    for names in alike.values():
        if len(names) > 1:
            detail = f"{len(names)} classes whose names differ only in {_difference(names)}; if they are one class, "
            detail += "give it one name"
            findings.append(Finding("confusable-names", "warning", (), tuple(names), detail))
    spellings: dict[str, dict[str, list[str]]] = {}  # class -> spelling -> splits
    for split, text in table.spellings:
        spellings.setdefault(class_name(text), {}).setdefault(text, []).append(split or "the source")
    for name, texts in spellings.items():
        forms = "; ".join(f"{_form(text)} in {', '.join(splits)}" for text, splits in texts.items())
        detail = f"read as one class, but other tools see {len(texts)}: {forms}; use one spelling"
        findings.append(Finding("confusable-names", "warning", (), (name,), detail))
    return findings


def ignored_files(table: Table) -> list[Finding]:
    """Files and folders of the source that are no samples."""
    if not table.ignored:
        return []
    files = [name.rstrip("/").rpartition("/")[2] + "/" * name.endswith("/") for name in table.ignored]
    suffixes = Counter(f".{name.rpartition('.')[2]}" if "." in name.lstrip(".") else name for name in files)
    most_common = listed([suffix for suffix, _ in suffixes.most_common()])
    detail = (
        f"{len(table.ignored)} files or folders not used (hidden, not an image, or in no class folder): {most_common}"
    )
    return [Finding("ignored", "info", table.ignored, (), detail)]


def _skeleton(name: str) -> str:
    """A name without case, compatibility forms, invisible characters, the mark of a copy, leading zeros, quotation
    marks around it, and the characters between its words."""
    text = "".join(c for c in unicodedata.normalize("NFKC", name).casefold() if unicodedata.category(c) != "Cf")
    text = text.strip(QUOTES) or text
    text = COPY.sub("", text.strip()) or text
    return re.sub(r"(?<![0-9])0+(?=[0-9])", "", re.sub(r"(?<=\w)[\s_\-]+(?=\w)", " ", text))


def _difference(names: list[str]) -> str:
    if len({name.lower() for name in names}) == 1:
        return "case"
    if len({re.sub(r"[\s_\-]+", " ", name) for name in names}) == 1:
        return "spaces, hyphens or underscores"
    if len({COPY.sub("", name.strip()) for name in names}) == 1:
        return "the mark of a copy"
    return "case, spaces, quotation marks, leading zeros or Unicode form"


def _form(text: str) -> str:
    """A name, with a note on what cannot be seen in it."""
    if text != text.strip():
        return f"{text!r} with spaces around it"
    if text == unicodedata.normalize("NFC", text):
        return f"{text!r} composed (NFC)"
    return f"{text!r} decomposed (NFD)" if text == unicodedata.normalize("NFD", text) else f"{text!r} partly decomposed"
