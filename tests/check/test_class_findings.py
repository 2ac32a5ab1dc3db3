"""Findings about the sizes and the names of classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from scenes import scene, write_scenes

from linnaeus.check.class_findings import class_names, class_sizes, ignored_files, table_findings
from linnaeus.check.findings import Finding
from linnaeus.data.sources import open_source
from linnaeus.data.table import Table
from linnaeus.errors import UserError

NFC, NFD = (unicodedata.normalize(form, "pensée") for form in ("NFC", "NFD"))


def table(counts: dict[str, dict[str, int]]) -> Table:
    """Split -> class -> images."""
    classes = tuple(sorted({name for part in counts.values() for name in part}))
    rows = [
        (split, classes.index(name)) for split, part in counts.items() for name, n in part.items() for _ in range(n)
    ]
    split, labels = np.array([s for s, _ in rows]), np.array([c for _, c in rows])
    return Table("t", "list", classes, classes, labels, split, paths=tuple(f"/t/{i}.jpg" for i in range(len(rows))))


def summary(found: list[Finding]) -> set[tuple[str, str, tuple[str, ...]]]:
    return {(f.kind, f.severity, f.classes) for f in found}


def test_a_good_table_has_no_findings():
    assert (
        table_findings(table({"train": {"a": 200, "b": 300}, "valid": {"a": 50, "b": 60}, "test": {"a": 60, "b": 70}}))
        == []
    )


def test_classes_missing_from_a_split():
    found = class_sizes(table({"train": {"a": 50, "b": 50}, "valid": {"a": 150, "c": 50}}))
    assert summary(found) == {("missing-class", "error", ("c",)), ("missing-class", "warning", ("b",))}


def test_a_test_split_alone_is_complete():
    assert class_sizes(table({"test": {"a": 60, "b": 60}})) == []


def test_few_images():
    found = class_sizes(table({"train": {"a": 9, "b": 30}, "valid": {"a": 4, "b": 20}}))
    assert summary(found) == {
        ("few-images", "warning", ("a",)),
        ("few-of-class", "info", ("a",)),
        ("few-to-measure", "warning", ()),
    }
    assert class_sizes(table({"": {"a": 10, "b": 10}})) == []


def test_imbalance_names_the_largest_and_the_smallest():
    (finding,) = class_sizes(table({"": {"a": 100, "b": 1000, "c": 300}}))
    assert (finding.kind, finding.classes) == ("imbalance", ("b", "a"))
    assert "1000 images of 'b', 100 of 'a'" in finding.detail
    assert class_sizes(table({"": {"a": 101, "b": 1000}})) == []


def test_one_class():
    assert [f.kind for f in class_sizes(table({"": {"a": 20}}))] == ["one-class"]


@pytest.mark.parametrize(
    ("classes", "difference"),
    [
        (("Rose", "rose"), "case"),
        (("ice cream", "ice_cream", "ice-cream"), "spaces, hyphens or underscores"),
        (("ﬁr", "fir"), "Unicode form"),
        (("Sweet Pea", "sweet_pea"), "case, spaces"),
        (("cat", "cat\u200b"), "Unicode form"),
        (("cat", "cat - Copy", "cat (1)"), "the mark of a copy"),
        (("1", "01"), "leading zeros"),
    ],
)
def test_similar_names(classes: tuple[str, ...], difference: str):
    (finding,) = class_names(table({"": dict.fromkeys((*classes, "other"), 20)}))
    assert set(finding.classes) == set(classes)
    assert difference in finding.detail


def test_different_names():
    assert (
        class_names(table({"": dict.fromkeys(("rose", "roses", "1", "-1", "1.5", "15", "+", "-", "été", "ete"), 20)}))
        == []
    )


def test_one_class_in_two_unicode_forms(tmp_path: Path):
    assert NFC != NFD
    for split, name in (("train", NFC), ("valid", NFD)):
        write_scenes(tmp_path / split, (name, "mallow"), each=3)
    opened = open_source(tmp_path)
    assert len(opened.classes) == 2
    (finding,) = class_names(opened)
    assert finding.classes == (NFC,)
    assert f"{NFC!r} composed (NFC) in train" in finding.detail
    assert f"{NFD!r} decomposed (NFD) in valid" in finding.detail


@pytest.mark.parametrize("kind", ["csv", "list"])
def test_two_unicode_forms_in_list_files(kind: str, tmp_path: Path):
    for i in range(4):
        scene(i, 40, 40).save(tmp_path / f"{i}.jpg")
    labels = (NFC, NFD, "mallow", "mallow")
    if kind == "csv":
        lines = [
            "path,label,split",
            *(f"{i}.jpg,{label},{'valid' if i % 2 else 'train'}" for i, label in enumerate(labels)),
        ]
        path = tmp_path / "data.csv"
    else:
        lines = [f"{i}.jpg {label}" for i, label in enumerate(labels)]
        path = tmp_path / "all.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    opened = open_source(path)
    splits = ("train", "valid") if kind == "csv" else ("", "")
    assert opened.spellings == tuple(sorted([(splits[0], NFC), (splits[1], NFD)]))
    assert len(class_names(opened)) == 1


def test_a_single_spelling_is_no_finding(tmp_path: Path):
    for split in ("train", "valid"):
        write_scenes(tmp_path / split, (NFD, "mallow"), each=3)
    assert open_source(tmp_path).spellings == ()


def test_sources_that_training_rejects_can_be_checked(tmp_path: Path):
    write_scenes(tmp_path / "train", ("Rose", "mallow"), each=3)
    write_scenes(tmp_path / "valid", ("rose", "mallow"), each=3)
    with pytest.raises(UserError, match="valid and train spell classes differently"):
        open_source(tmp_path)
    found = summary(table_findings(open_source(tmp_path, lenient=True)))
    assert ("missing-class", "error", ("rose",)) in found
    assert ("confusable-names", "warning", ("Rose", "rose")) in found


def test_quotation_marks_around_a_name_are_no_other_class(tmp_path: Path):
    write_scenes(tmp_path, ("rose", "'rose'", "\u2018rose\u2019", "oak"))
    (finding,) = class_names(open_source(tmp_path))
    assert len(finding.classes) == 3
    assert "quotation marks" in finding.detail


def test_ignored_files_are_counted(tmp_path: Path):
    write_scenes(tmp_path)
    for name in ("notes.txt", "more.txt", ".hidden"):
        (tmp_path / "oak" / name).write_text("x")
    (finding,) = ignored_files(open_source(tmp_path))
    assert finding.paths == ("oak/.hidden", "oak/more.txt", "oak/notes.txt")
    assert finding.detail.startswith("3 files or folders")
    assert "'.txt'" in finding.detail
