"""Recipes: strict, readable errors, overrides, round trip."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from linnaeus.errors import UserError
from linnaeus.recipe import (
    Recipe,
    load_recipe,
    parse_setting,
    recipe_names,
    recipe_text,
    validate,
    without_recipe,
)

MINIMAL = {
    "model": {"name": "mini_resnet"},
    "data": {"resize": 28, "size": 28},
    "phase": [{"epochs": 1, "lr": 0.1}],
}


def test_there_are_recipes_and_each_is_whole():
    """Each parses, comes back equal through TOML, and opens with a title and what was measured."""
    assert len(recipe_names()) >= 10
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert validate(tomllib.loads(recipe.to_toml()), "again") == recipe
        header = recipe_text(name)[1].partition("[model]")[0]
        assert header.startswith("# ")
        assert "ccuracy" in header, f"{name} does not say what was measured"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle: unknown key (did you mean model"),
        ({"phase": [{"epochs": 1, "lr": 0.1, "weigth_decay": 1}]}, "phase.1.weigth_decay: unknown key (did you mean"),
        ({"phase": [{"epochs": 0, "lr": 0.1}]}, "phase.1.epochs = 0"),
        ({"phase": []}, "phase"),
        ({"phase": [{"epochs": 1, "lr": -1}]}, "phase.1.lr = -1"),
        ({"phase": [{"epochs": 1, "lr": 1, "schedule": {"name": "step", "evry": 3}}]}, "phase.1.schedule"),
        ({"phase": [{"epochs": 1, "lr": 1, "schedule": {"name": "stop"}}]}, "stop"),
        ({"data": {"resize": 20, "size": 28}}, "resize = 20 is smaller than size = 28"),
        ({"data": {"resize": 28, "size": 28, "split": {"valid": 0.6, "test": 0.5}}}, "leaves nothing to train on"),
        ({"phase": [{"epochs": 1, "lr": 1, "augment": {"hflip": 1.5}}]}, "phase.1.augment.hflip = 1.5"),
        ({"phase": [{"epochs": 1, "lr": 1, "augment": {"scale": [1.2, 0.8]}}]}, "the smaller first"),
        ({"best": "f1"}, "best = 'f1'"),
        ({"data": {"resize": 20, "size": 28}}, "the crop would have a border; raise resize or lower size"),
        ({"data": {}}, "data.resize: missing; data.size: missing"),
        ({"modl": 1, "sed": 2}, "modl: unknown key (did you mean model?); sed: unknown key (did you mean seed?)"),
        ({f"key{i}": 1 for i in range(7)}, "key4: unknown key (and 2 more)"),
    ],
)
def test_a_mistake_is_one_line_that_names_key_and_value(change: dict, message: str):
    with pytest.raises(UserError) as caught:
        validate({**MINIMAL, **change}, "my.toml")
    text = str(caught.value)
    assert text.startswith("my.toml: ")
    assert message in text
    assert "\n" not in text


def test_a_recipe_without_a_table_is_shown_a_complete_one():
    with pytest.raises(UserError, match=r"data: missing; `linnaeus recipes photos` prints a complete recipe"):
        validate({key: value for key, value in MINIMAL.items() if key != "data"}, "my.toml")


def test_overrides_count_phases_from_one():
    recipe = load_recipe("flowers102", {"phase.2.lr": 5e-5, "data.size": 192, "model.weights": "none"}, [3, 4])
    assert (recipe.phase[0].lr, recipe.phase[1].lr) == (1e-2, 5e-5)
    assert [phase.epochs for phase in recipe.phase] == [3, 4]
    assert recipe.data.size == 192


@pytest.mark.parametrize("key", ["phase.0.lr", "phase.3.lr", "phase.x.lr", "data.size.more"])
def test_an_override_that_fits_nowhere_is_refused(key: str):
    with pytest.raises(UserError, match="--set"):
        load_recipe("flowers102", {key: 1})


def test_epochs_must_be_one_number_a_phase():
    with pytest.raises(UserError, match="--epochs 3: recipe flowers102 has 2 phase"):
        load_recipe("flowers102", epochs=[3])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("phase.1.lr=1e-3", ("phase.1.lr", 1e-3)),
        ("data.train=trainda.txt", ("data.train", "trainda.txt")),
        ("data.size = 288", ("data.size", 288)),
        ("phase.1.train=['layer4','head']", ("phase.1.train", ["layer4", "head"])),
        ("data.valid=", ("data.valid", "")),
    ],
)
def test_settings_are_toml_and_bare_words_are_strings(text: str, expected: tuple):
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["", "lr", "=3"])
def test_a_setting_without_key_or_value_is_refused(text: str):
    with pytest.raises(UserError, match="KEY=VALUE"):
        parse_setting(text)


def test_unknown_and_broken_files(tmp_path: Path):
    with pytest.raises(UserError, match="did you mean flowers102"):
        load_recipe("flower102")
    broken = tmp_path / "broken.toml"
    broken.write_text("[model\n")
    with pytest.raises(UserError, match=r"broken\.toml: not TOML"):
        load_recipe(str(broken))
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="UTF-8"):
        load_recipe(str(binary))


def test_a_run_folder_is_a_recipe(tmp_path: Path):
    (tmp_path / "recipe.toml").write_text(load_recipe("digits").to_toml(), encoding="utf-8")
    assert load_recipe(str(tmp_path)) == load_recipe("digits")
    assert isinstance(load_recipe(str(tmp_path / "recipe.toml")), Recipe)


def test_epochs_of_a_solved_head_are_refused_with_what_works():
    with pytest.raises(UserError, match=r"phase\.1: epochs = 5: head = .auto. is solved in one step") as caught:
        load_recipe("photos", {}, [5])
    assert 'set head = "train" and lr = "auto"' in str(caught.value)
    assert without_recipe(caught.value, "photos").startswith("phase.1: epochs = 5"), "--epochs, and no --set, gave them"
    advised = load_recipe("photos", {"phase.1.head": "train", "phase.1.lr": "auto"}, [5])
    assert advised.phase[0].epochs == 5
    assert load_recipe("scratch", {}, [5]).phase[0].epochs == 5


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("sampling", "balanced", "class_weights"),
        ("mixup", 0.2, "no mixing"),
        ("label_smoothing", 0.1, "does not use"),
        ("ema", 0.9, "does not use"),
        ("clip", 1.0, "does not use"),
        ("early_stop", 3, "does not use"),
    ],
)
def test_a_solved_head_refuses_what_it_would_ignore(key: str, value: object, told: str) -> None:
    made = {"model": {"name": "resnet18"}, "data": {"resize": 32, "size": 32}}
    Recipe.model_validate(made | {"phase": [{"train": ["head"], "head": "auto", "class_weights": "balanced"}]})
    with pytest.raises(ValueError, match=told):
        Recipe.model_validate(made | {"phase": [{"train": ["head"], "head": "auto", key: value}]})
