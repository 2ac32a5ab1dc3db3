"""Percentages: one formatter, which never rounds to certainty."""

from __future__ import annotations

import re

import pytest
from docblocks import ROOT
from hypothesis import given
from hypothesis import strategies as st

from linnaeus.text import code_html, folded, fraction, local_time, percent, probability_percent, typeset_percent


@pytest.mark.parametrize(
    ("share", "digits", "text"),
    [
        (1.0, 1, "100.0 %"), (0.9996, 1, ">99.9 %"), (0.9996, 2, "99.96 %"), (0.99996, 2, ">99.99 %"),
        (0.93, 0, "93 %"), (0.9996, 0, ">99 %"), (0.004, 0, "<1 %"), (0.0004, 1, "<0.1 %"), (0.0, 1, "0.0 %"),
        (float("nan"), 0, "–"), (float("inf"), 1, "–"), (1.5, 0, "150 %"), (1 - 1e-16, 0, "100 %"),
    ],
)  # fmt: skip
def test_zero_and_one_hundred_are_exact(share: float, digits: int, text: str):
    assert percent(share, digits) == text
    assert typeset_percent(share, digits) == text.replace(" ", "\u202f")


def test_a_probability_is_never_certain():
    """A softmax reaches 1 by the rounding of its type, and a file's digits round to 1."""
    assert [probability_percent(p) for p in (1.0, 0.9999, 0.5, 0.0, 1e-13, float("nan"), None)] == [
        *(">99.9 %", ">99.9 %", "50.0 %", "<0.1 %", "<0.1 %", "–", "–")
    ]
    assert probability_percent(1.0, 0, typeset=True) == ">99\u202f%"


def test_every_probability_is_written_by_its_function():
    """`percent` would write a probability that is 1 by rounding as "100.0 %", beside ">99.9 %" elsewhere."""
    of_probability = re.compile(r"(?<!probability_)\b(?:typeset_)?percent\([^()]*(?:probabilit|confidence)")
    found = [
        f"{path.name}: {line.strip()}"
        for path in sorted((ROOT / "src").rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if of_probability.search(line) and "exact=True" not in line  # a threshold
    ]
    assert found == []


def test_a_threshold_has_as_many_digits_as_it_takes():
    assert [percent(share, exact=True) for share in (0.945, 0.99996, 0.0004, 1.0)] == [
        *("94.5 %", "99.996 %", "0.04 %", "100.0 %")
    ]


@pytest.mark.parametrize("seconds", [1e12, 1e300, -1e12, -1e300])
def test_a_time_that_no_calendar_has_is_shown(seconds: float):
    assert f"{local_time(seconds):%Y-%m}" in ("1969-12", "1970-01")
    assert local_time(1e9).year == 2001


def test_what_stands_between_backticks_is_code():
    assert code_html("run `a <b>` or `c`, & so on") == "run <code>a &lt;b&gt;</code> or <code>c</code>, &amp; so on"
    assert code_html("a file`s name") == "a file`s name"


def test_a_fraction_is_one_only_if_it_is():
    assert [fraction(value) for value in (1.0, 0.9999, 0.93, 0.001, 0.0, None)] == [
        *("1.00", ">0.99", "0.93", "<0.01", "0.00", "–")
    ]
    assert fraction(0.99996, 4) == ">0.9999"


def test_a_difference_has_its_sign():
    assert [percent(share, 2, signed=True) for share in (0.012, -0.012, 0.0, -0.00001)] == [
        *("+1.20 %", "-1.20 %", "+0.00 %", "-<0.01 %")
    ]


@given(st.floats(0, 1), st.integers(0, 4), st.booleans())
def test_no_share_is_shown_as_certain(share: float, digits: int, exact: bool):
    text = percent(share, digits, exact=exact)
    number = re.fullmatch(r"([<>]?)([0-9.]+) %", text)
    assert number is not None
    if 1e-11 < share < 1 - 1e-11:
        assert float(number[2]) not in (0.0, 100.0)
    if not number[1]:
        assert abs(float(number[2]) - 100 * share) <= 0.5 * 10**-digits + 1e-9


def test_a_wide_table_is_folded_between_its_cells():
    """A first column that leaves no room is no label."""
    head = f"backbone{' ' * 40}accuracy      95 % interval   n  multiply-adds"
    assert folded(head, 60).splitlines() == [head[:56], "95 % interval   n  multiply-adds"]
    row = f"  {'a' * 45}  100.0 %  84.5 % to 100.0 %  21"
    assert folded(row, 60).splitlines() == [f"  {'a' * 45}  100.0 %", "    84.5 % to 100.0 %  21"]
    assert folded("a" * 90, 60) == "a" * 90
