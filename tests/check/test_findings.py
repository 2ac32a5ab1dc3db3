"""Findings: their order, their JSON, and the summary before training."""

from __future__ import annotations

import pytest

from linnaeus.check.findings import (
    KINDS,
    MORE_TO_LEARN,
    MORE_TO_MEASURE,
    Finding,
    by_kind,
    sort_findings,
    summary_lines,
)
from linnaeus.check.terminal import _subject

LEAK = Finding("leak", "error", ("train/a.jpg", "valid/b.jpg"), ("rose",), "2 images are the same")
EMPTY = Finding("empty", "error", ("train/c.jpg",), ("rose",), "empty file")
FIRST = Finding("suspicious-label", "warning", ("train/d.jpg",), ("rose", "tulip"), "looks like tulip")
SECOND = Finding("suspicious-label", "warning", ("train/e.jpg",), ("rose", "tulip"), "looks like tulip")
NOTE = Finding("small", "info", ("train/f.jpg",), ("rose",), "10 x 10 pixels")


def test_json_has_five_keys():
    assert LEAK.to_dict() == {
        "kind": "leak",
        "severity": "error",
        "paths": ["train/a.jpg", "valid/b.jpg"],
        "classes": ["rose"],
        "detail": "2 images are the same",
    }


def test_findings_are_sorted_by_severity_and_rankings_stay():
    assert sort_findings([NOTE, SECOND, LEAK, FIRST, EMPTY]) == [EMPTY, LEAK, SECOND, FIRST, NOTE]
    assert list(by_kind([NOTE, FIRST, LEAK, SECOND])) == [
        ("error", "leak"),
        ("warning", "suspicious-label"),
        ("info", "small"),
    ]


def test_the_summary_has_a_line_for_each_severity():
    assert summary_lines([LEAK, EMPTY, FIRST, SECOND, NOTE]) == [
        "errors in the data: empty files (1): train/c.jpg; leaks between splits (1): valid/b.jpg = train/a.jpg",
        "to review in the data: suspicious labels (2): train/d.jpg …",
    ]


def test_few_images_of_a_split_are_counted_as_images():
    found = [
        Finding("few-to-measure", "warning", (), (), f"{n} images in {split}: metrics on them are imprecise")
        for n, split in ((18, "valid"), (9, "test"))
    ]
    line = f"to review in the data: few images for evaluation (18 images in valid, 9 images in test: {MORE_TO_MEASURE})"
    assert summary_lines(found) == [line]


def test_the_summary_is_short():
    assert summary_lines([]) == []
    assert summary_lines([NOTE]) == []
    assert len(summary_lines([EMPTY])) == 1
    everything = [Finding(kind, severity) for kind in KINDS for severity in ("error", "warning")]
    assert len(summary_lines(everything)) == 2


@pytest.mark.parametrize(("kind", "severity"), [("leak", "fatal"), ("odd", "error")])
def test_kinds_and_severities_are_known(kind: str, severity: str):
    with pytest.raises(AssertionError):
        Finding(kind, severity)


@pytest.mark.parametrize(("kind", "joined"), [("leak", " = "), ("same-scene", " = "), ("pages", ", "), ("dark", ", ")])
def test_only_images_of_the_same_thing_are_called_equal(kind: str, joined: str):
    finding = Finding(kind, "warning", ("a.tif", "b.tif"), ("oak",), "detail")
    assert _subject(finding) == f"a.tif{joined}b.tif"
    assert f"b.tif{joined}a.tif" in "".join(summary_lines([finding]))


def test_too_few_training_images_come_first_with_what_helps():
    """A run of seven images reported 100 % of one image right; the reason stood third of three."""
    few = [
        Finding("few-images", "warning", (), (name,), f"{n} training images; too few")
        for name, n in (("b", 2), ("a", 3))
    ]
    (line,) = summary_lines([Finding("missing-class", "warning", (), ("a",), "none"), *few])
    assert line.startswith(
        f"to review in the data: classes with few training images (2; b has 2 training images: {MORE_TO_LEARN})"
    )
