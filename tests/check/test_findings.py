"""Findings: their order, their JSON, and the three lines that a training says."""

from __future__ import annotations

import pytest

from linnaeus.check.findings import KINDS, Finding, by_kind, in_order, short_form

LEAK = Finding("leak", "error", ("train/a.jpg", "valid/b.jpg"), ("rose",), "2 images are the same")
EMPTY = Finding("empty", "error", ("train/c.jpg",), ("rose",), "empty file")
FIRST = Finding("suspicious-label", "warning", ("train/d.jpg",), ("rose", "tulip"), "looks like tulip")
SECOND = Finding("suspicious-label", "warning", ("train/e.jpg",), ("rose", "tulip"), "looks like tulip")
NOTE = Finding("small", "info", ("train/f.jpg",), ("rose",), "10 x 10 pixels")


def test_json_has_the_five_keys_of_the_contract():
    assert LEAK.to_dict() == {
        "kind": "leak",
        "severity": "error",
        "paths": ["train/a.jpg", "valid/b.jpg"],
        "classes": ["rose"],
        "detail": "2 images are the same",
    }


def test_the_worst_first_and_a_ranking_stays():
    assert in_order([NOTE, SECOND, LEAK, FIRST, EMPTY]) == [EMPTY, LEAK, SECOND, FIRST, NOTE]
    assert list(by_kind([NOTE, FIRST, LEAK, SECOND])) == [
        ("error", "leak"),
        ("warning", "suspicious-label"),
        ("info", "small"),
    ]


def test_the_short_form_tells_the_story_in_three_lines():
    assert short_form([LEAK, EMPTY, FIRST, SECOND, NOTE], "see the page") == [
        "2 errors: empty files 1 (train/c.jpg); leaks between splits 1 (valid/b.jpg = train/a.jpg)",
        "2 warnings: suspicious labels 2 (train/d.jpg …)",
        "see the page",
    ]


def test_the_short_form_is_short():
    assert short_form([], "flowers") == []
    assert short_form([NOTE], "flowers") == []
    assert len(short_form([EMPTY], "flowers")) == 2
    everything = [Finding(kind, severity) for kind in KINDS for severity in ("error", "warning")]
    assert len(short_form(everything, "flowers")) == 3


@pytest.mark.parametrize(("kind", "severity"), [("leak", "fatal"), ("odd", "error")])
def test_kinds_and_severities_are_known(kind: str, severity: str):
    with pytest.raises(AssertionError):
        Finding(kind, severity)
