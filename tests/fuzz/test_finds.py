"""Regression tests of what fuzzing found, on the input that it found."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hostile import watched
from PIL import Image
from tiny import draw, write_images, write_recipe

import linnaeus.report.canvas  # noqa: F401 - matplotlib creates its configuration folder when it is first imported
from linnaeus.console import Console
from linnaeus.data.sources import open_source
from linnaeus.environment import cache_dir
from linnaeus.errors import UserError
from linnaeus.recipe import load_recipe, parse_setting
from linnaeus.recipe.load import LONGEST
from linnaeus.training.run import train


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 50_000, "nested too deeply"),
        ("a = " + "9" * 5_000, "not TOML"),  # a ValueError that is no TOMLDecodeError
        ("a" + ".a" * 20_000 + " = 1", "a key of 20,000 parts"),  # took 6 s of processor time
        ("[a" + ".a" * 20_000 + "]", "a key of 20,000 parts"),
        ("# " + "x" * LONGEST, "characters"),
        ("# " + "x" * 5 * LONGEST, "bytes, too large for a recipe"),
    ],
)
def test_hostile_recipes_are_refused(tmp_path: Path, text: str, reason: str):
    (tmp_path / "recipe.toml").write_text(text)
    with watched(tmp_path, seconds=2) as said:
        load_recipe(str(tmp_path / "recipe.toml"))
    assert reason in str(said[0])


@pytest.mark.parametrize("value", ["[" * 50_000, "9" * 5_000, "{a" + ".a" * 20_000 + "=1}"])
def test_settings_that_are_not_toml_are_strings(tmp_path: Path, value: str):
    with watched(tmp_path, seconds=2):
        assert parse_setting(f"model.name={value}") == ("model.name", value)


def test_an_error_is_one_line_whatever_a_name_holds(tmp_path: Path):
    """A key with a line break made two lines; the name of a folder could color or reverse the text of a terminal."""
    with watched(tmp_path) as said:
        load_recipe("digits", {"a\nb": 1})
    assert "a\\nb: unknown key" in str(said[0])
    error = UserError("x\x1b[31m \u202egnp.exe \udcff \x85 \u2028 rosé 玫瑰")
    assert str(error) == r"x\x1b[31m \u202egnp.exe \udcff \x85 \u2028 rosé 玫瑰"


def test_a_class_name_does_not_control_the_terminal(tmp_path: Path):
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


def test_a_run_on_hostile_names_stays_in_its_folder(tmp_path: Path):
    """Names of classes, files and source that hold paths, formulas and control characters: all is written below it."""
    labels = (
        "../../up",
        "/etc/passwd",
        "a\x07b",
        "$(touch x)`id`",
        "\u202egnp\x1b[2J",
        "<script>alert(1)</script>",
        "CON",
    )
    source = tmp_path / "so\nurce"
    source.mkdir()
    lines = ["path,label"]
    for k, label in enumerate(labels):
        for i, image in enumerate(draw(np.full(4, k % 5), k)):
            Image.fromarray(image).save(source / f"-{k}\x1b{i}.png")
            lines.append(f'"-{k}\x1b{i}.png","{label}"')
    (source / "x.csv").write_text("\n".join(lines))
    recipe = write_recipe(tmp_path / "tiny.toml", {"epochs": 1}, name="$(touch x) <b>")
    with watched(tmp_path / "run", cache_dir(), Path(tempfile.gettempdir()) / "matplotlib") as said:
        train(source / "x.csv", str(recipe), out=tmp_path / "run", device="cpu", console=Console(quiet=True))
    assert said == []
    assert (tmp_path / "run" / "report.html").is_file()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "\x1b" not in page


@pytest.mark.parametrize("name", ["../../up", "/tmp/up", "..", "a\\b", "c:", "a\nb", "", "x" * 300])
def test_the_name_of_a_recipe_does_not_choose_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    """`runs/<name>-1` was made wherever a recipe from elsewhere said."""
    monkeypatch.chdir(tmp_path)
    source = write_images(tmp_path / "source", each=4)
    recipe = write_recipe(tmp_path / "tiny.toml", {"epochs": 1}, name=name)
    with watched(tmp_path / "runs", cache_dir()) as said:
        train(source, str(recipe), device="cpu", console=Console(quiet=True))
    assert "tiny.toml: name = " in str(said[0])
    assert not (tmp_path / "runs").exists()


def test_a_recipe_file_of_any_name_is_a_recipe(tmp_path: Path):
    odd = write_recipe(tmp_path / "a:b\\c\x1b.toml", {"epochs": 1})
    assert load_recipe(str(odd)).name == r"a_b_c_x1b"
