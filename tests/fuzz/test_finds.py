"""What fuzzing found, each as it was found, so that it stays mended."""

from __future__ import annotations

from pathlib import Path

import pytest
from hostile import watched

from linnaeus.data.sources import open_source
from linnaeus.errors import UserError
from linnaeus.recipe import load_recipe, parse_setting
from linnaeus.recipe.load import LONGEST


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 50_000, "nested too deeply"),
        ("a = " + "9" * 5_000, "not TOML"),  # a ValueError that is no TOMLDecodeError
        ("a" + ".a" * 20_000 + " = 1", "a key of 20,000 parts"),  # took 6 s of processor time
        ("[a" + ".a" * 20_000 + "]", "a key of 20,000 parts"),
        ("# " + "x" * LONGEST, "characters"),
        ("# " + "x" * 5 * LONGEST, "bytes are too many for a recipe"),
    ],
)
def test_recipes_that_were_made_to_hurt(tmp_path: Path, text: str, reason: str):
    (tmp_path / "recipe.toml").write_text(text)
    with watched(tmp_path, seconds=2) as said:
        load_recipe(str(tmp_path / "recipe.toml"))
    assert reason in str(said[0])


@pytest.mark.parametrize("value", ["[" * 50_000, "9" * 5_000, "{a" + ".a" * 20_000 + "=1}"])
def test_settings_that_are_no_toml_are_words(tmp_path: Path, value: str):
    with watched(tmp_path, seconds=2):
        assert parse_setting(f"model.name={value}") == ("model.name", value)


def test_an_error_is_one_line_whatever_a_name_holds(tmp_path: Path):
    """A key with an end of line made two lines; a folder's name could color, or turn around, a terminal's text."""
    with watched(tmp_path) as said:
        load_recipe("digits", {"a\nb": 1})
    assert "a\\nb: unknown key" in str(said[0])
    error = UserError("x\x1b[31m \u202egnp.exe \udcff \x85 \u2028 rosé 玫瑰")
    assert str(error) == r"x\x1b[31m \u202egnp.exe \udcff \x85 \u2028 rosé 玫瑰"


def test_a_class_name_does_not_steer_the_terminal(tmp_path: Path):
    for label in ("rose\x1b[2J", "tulip\u202e\n"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a\rb.png").touch()
    table = open_source(tmp_path)
    assert table.classes == (r"rose\x1b[2J", r"tulip\u202e")
    assert table.sample_id(0) == r"rose\x1b[2J/a\rb.png"


def test_a_number_of_thousands_of_digits_in_the_names(tmp_path: Path):
    for label in ("1", "2"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "a.png").touch()
    (tmp_path / "cat_to_name.json").write_text("9" * 10_000)
    with watched(tmp_path) as said:
        open_source(tmp_path)
    assert "cat_to_name.json: holds a number that is too long" in str(said[0])
