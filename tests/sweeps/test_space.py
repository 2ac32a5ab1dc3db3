"""The search space of a sweep: reading, counting, and one line for every error."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny import write_recipe

from linnaeus.errors import UserError
from linnaeus.recipe import Recipe, load_recipe
from linnaeus.sweeps.space import Choices, Interval, combinations, every_combination, load_space, settings_of


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(str(write_recipe(tmp_path / "tiny.toml", {}, {"train": ["head"], "optimizer": "sgd"})))


def read(tmp_path: Path, recipe: Recipe, text: str, **settings):
    (tmp_path / "space.toml").write_text(text, encoding="utf-8")
    return load_space(tmp_path / "space.toml", recipe, settings)


def test_ranges_and_choices(tmp_path: Path, recipe: Recipe):
    space = read(
        tmp_path,
        recipe,
        '"phase.1.lr" = { low = 1e-4, high = 1e-1, log = true }\n'
        "phase.2.epochs = { low = 5, high = 20, step = 5 }\n"
        '"phase.1.schedule" = { choices = [{ name = "cosine" }, { name = "step", every = 2 }] }\n'
        '[phase.2.optimizer]\nchoices = ["sgd", "adamw"]\n',
    )
    assert space["phase.1.lr"] == Interval(1e-4, 1e-1, log=True)
    assert space["phase.2.epochs"] == Interval(5, 20, step=5)
    assert space["phase.2.epochs"].values() == [5, 10, 15, 20]
    assert space["phase.2.optimizer"] == Choices(("sgd", "adamw"))
    params = {"phase.1.lr": 0.01, "phase.2.epochs": 10, "phase.1.schedule": '{"every": 2, "name": "step"}'}
    settings = settings_of(space, {**params, "phase.2.optimizer": "sgd"})
    assert settings["phase.1.schedule"] == {"name": "step", "every": 2}
    assert combinations(space) is None


def test_finite_spaces_are_counted_and_listed(tmp_path: Path, recipe: Recipe):
    space = read(
        tmp_path, recipe, '"phase.1.batch" = { low = 8, high = 10 }\n"phase.1.nesterov" = { choices = [true, false] }'
    )
    assert combinations(space) == 6
    listed = list(every_combination(space))
    assert len(listed) == 6
    assert {"phase.1.batch": 9, "phase.1.nesterov": "false"} in listed
    assert settings_of(space, listed[0]) == {"phase.1.batch": 8, "phase.1.nesterov": True}
    generator = random.Random(0)
    assert {space["phase.1.batch"].draw(generator) for _ in range(60)} == {8, 9, 10}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no key varies"),
        ("x = [", "not TOML"),
        ('"phase.1.lr" = 0.1', "phase.1.lr = 0.1: expected a range or choices"),
        ('"phase.1.lr" = { low = 1e-4 }', "phase.1.lr: high is missing"),
        ('"phase.1.lr" = { low = 1e-4, hihg = 1e-1 }', "phase.1.lr: unknown key 'hihg' (did you mean high?)"),
        ('"phase.1.lr" = { low = 0.1, high = 0.1 }', "low = 0.1 must be less than high = 0.1"),
        ('"phase.1.lr" = { low = 0.0, high = 0.1, log = true }', "a logarithmic range must start above 0"),
        ('"phase.1.lr" = { low = 0.1, high = 1, log = true, step = 0.1 }', "a logarithmic range has no steps"),
        ('"phase.1.lr" = { low = 0.1, high = inf }', "high = inf: expected a number"),
        ('"phase.1.batch" = { low = 8, high = 17, step = 4 }', "step = 4: does not divide the range from 8 to 17"),
        ('"phase.1.batch" = { low = 8, high = 16, step = 0 }', "step = 0: expected a number above 0"),
        ('"phase.1.lr" = { low = 0.1, high = 0.2, step = -0.1 }', "step = -0.1: expected a number above 0"),
        ('"phase.1.batch" = { low = true, high = 17 }', "low = True: expected a number"),
        ('"phase.1.batch" = { choices = [8] }', "expected a list of at least two values"),
        ('"phase.1.batch" = { choices = [8, 8] }', "8 occurs twice"),
        ('"phase.1.batch" = { choices = [8, 16], low = 2 }', "choices and low"),
        ('"phase.1.batch" = { choices = [8, 2020-01-01] }', "a recipe cannot have such a value"),
        (
            '"phase.1.batch" = { low = 8, high = 64.0 }',
            "expected a whole number; it lies in the range: write low, high",
        ),
        ('"phase.1.lrr" = { low = 0.1, high = 1.0 }', "phase.1.lrr = 0.1: unknown key (did you mean lr?)"),
        ('"phase.3.lr" = { low = 0.1, high = 1.0 }', "phase.3.lr = 0.1: the recipe has phases 1 to 2, not '3'"),
        ('"phase.1.lr" = { low = -1.0, high = 1.0 }', "phase.1.lr = -1.0: expected a number above 0"),
        ('"phase.1.optimizer" = { choices = ["adam", "sdg"] }', "phase.1.optimizer = 'sdg'"),
        ('"data.split.valid" = { low = 0.1, high = 0.3 }', "must not vary, or trials would not be comparable"),
        ('best = { choices = ["loss", "accuracy"] }', "must not vary, or trials would not be comparable"),
        (
            '"phase.1.schedule" = { choices = [{ name = "cosine" }, { name = "constant" }] }\n'
            '"phase.1.schedule.warmup" = { low = 0.0, high = 1.0 }',
            "phase.1.schedule: phase.1.schedule.warmup varies it too",
        ),
        ("seed = { low = 0, high = 9 }", "--set seed fixes it too"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, recipe: Recipe, text: str, message: str):
    with pytest.raises(UserError) as raised:
        read(tmp_path, recipe, text, seed=3)
    assert message in str(raised.value)
    assert str(tmp_path / "space.toml") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_one_line(tmp_path: Path, recipe: Recipe):
    with pytest.raises(UserError, match=r"none\.toml: cannot be read"):
        load_space(tmp_path / "none.toml", recipe, {})


def test_values_that_are_valid_only_with_others_are_accepted(tmp_path: Path, recipe: Recipe):
    """resize = 20 is invalid with the recipe's size = 28 and valid with size = 16."""
    space = read(tmp_path, recipe, '"data.resize" = { choices = [20, 32] }\n"data.size" = { choices = [16, 28] }')
    assert combinations(space) == 4
    with pytest.raises(UserError, match=r"data\.resize = 8"):
        read(tmp_path, recipe, '"data.resize" = { choices = [8, 32] }\n"data.size" = { choices = [16, 28] }')
