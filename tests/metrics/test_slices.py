"""Accuracy by slice: figures, tests and the correction for their number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact

from linnaeus.metrics.intervals import wilson
from linnaeus.metrics.mcnemar import holm
from linnaeus.metrics.slices import accuracy_by_slice


def test_figures_interval_and_corrected_test_of_each_value():
    correct = np.array([True] * 45 + [False] * 5 + [True] * 10 + [False] * 10 + [True] * 29 + [False])
    values = ["a"] * 50 + ["b"] * 20 + ["c"] * 30
    slices = accuracy_by_slice(correct, values)
    assert [(s.value, s.n, s.correct) for s in slices] == [("b", 20, 10), ("a", 50, 45), ("c", 30, 29)]
    assert slices[0].interval == pytest.approx(wilson(10, 20))
    assert slices[0].difference == pytest.approx(10 / 20 - 74 / 80)
    tables = {"a": [[45, 5], [39, 11]], "b": [[10, 10], [74, 6]], "c": [[29, 1], [55, 15]]}
    p = dict(zip("abc", holm([fisher_exact(tables[name]).pvalue for name in "abc"]), strict=True))
    assert {s.value: s.p for s in slices} == pytest.approx(p)
    assert [s.is_worse for s in slices] == [True, False, False]


def test_chance_names_no_slice_as_worse_more_often_than_stated():
    """Ten slices of the same true accuracy, 400 times: the lowest one is extreme by chance alone."""
    rng = np.random.default_rng(0)
    values = [str(k % 10) for k in range(300)]
    named = sum(any(s.is_worse for s in accuracy_by_slice(rng.random(300) < 0.9, values)) for _ in range(400))
    assert named <= 400 * 0.05


def test_images_of_few_groups_are_not_taken_for_many():
    """All errors of a slice are in one of its two groups: the images alone would call it worse."""
    correct = np.ones(200, bool)
    correct[:20] = False
    values, groups = ["a"] * 40 + ["b"] * 160, np.arange(200) // 20
    assert accuracy_by_slice(correct, values)[0].is_worse
    assert not accuracy_by_slice(correct, values, groups)[0].is_worse


def test_a_single_value_has_nothing_to_be_compared_with():
    (only,) = accuracy_by_slice(np.array([True, False]), ["a", "a"])
    assert (only.p, only.is_worse, only.to_dict()["difference"]) == (1.0, False, None)
