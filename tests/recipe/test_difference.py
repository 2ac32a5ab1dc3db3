"""Nested tables are compared key by key."""

from __future__ import annotations

from linnaeus.recipe.difference import change_lines, differences

ONE = {"seed": 0, "data": {"size": 28, "mean": [1, 2]}, "phase": [{"lr": 0.1}]}
OTHER = {"seed": 0, "data": {"size": 32, "mean": [1, 2]}, "phase": [{"lr": 0.2}, {"lr": 0.3, "ema": 0.9}]}


def test_equal_values_have_no_differences():
    assert differences([ONE, ONE, ONE]) == {}


def test_differences_are_named_by_dotted_keys():
    assert differences([ONE, OTHER]) == {
        "data.size": [28, 32],
        "phase.1.lr": [0.1, 0.2],
        "phase.2": [None, {"lr": 0.3, "ema": 0.9}],
    }


def test_a_missing_table_can_be_expanded():
    found = differences([ONE, OTHER, ONE], expand=True)
    assert found["phase.2.lr"] == [None, 0.3, None]
    assert found["phase.2.ema"] == [None, 0.9, None]
    assert "phase.2" not in found


def test_a_list_of_plain_values_is_one_value():
    assert differences([{"betas": [0.9, 0.99]}, {"betas": [0.9, 0.999]}]) == {"betas": [[0.9, 0.99], [0.9, 0.999]]}


def test_an_empty_table_differs_from_a_missing_one():
    assert differences([{"augment": {}}, {}], expand=True) == {"augment": [{}, None]}


def test_changes_are_lines():
    then = {"a": 1, "b": [{"c": 1}, {"c": 2}], "d": {"e": None, "f": 1}}
    now = {"a": 1, "b": [{"c": 1}, {"c": 3}], "d": {"e": None, "g": "x"}}
    assert change_lines(then, now) == ["b.2.c: 2 → 3", "d.f: 1 → none", "d.g: none → x"]
