"""Keys that stand for several others, and the names that other tools give to a key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from linnaeus.errors import UserError
from linnaeus.recipe import load_recipe
from linnaeus.recipe.keys import SYNONYMS, full_keys


def written(folder: Path, *phases: str) -> str:
    path = folder / "r.toml"
    tables = "\n".join(f"[[phase]]\n{phase}" for phase in phases)
    path.write_text(f'[model]\nname = "mini_resnet"\n[data]\nresize = 32\nsize = 28\n{tables}\n')
    return str(path)


def test_a_key_of_a_phase_stands_for_every_phase_that_uses_it(tmp_path: Path):
    recipe = written(tmp_path, 'train = ["head"]\nhead = "auto"', "epochs = 2\nlr = 0.1", "epochs = 3\nlr = 0.2")
    assert [p.lr for p in load_recipe(recipe, {"lr": 0.5}).phase[1:]] == [0.5, 0.5]
    assert [p.lr for p in load_recipe(recipe, {"lr": [0.5, "auto"]}).phase[1:]] == [0.5, "auto"]
    assert [p.batch for p in load_recipe(recipe, {"batch": 7}).phase] == [7, 7, 7]
    assert load_recipe(recipe, {"lr": 0.5, "phase.3.lr": 0.25}).phase[2].lr == 0.25, "a later one wins"
    with pytest.raises(UserError, match=r"has 2 phases for it"):
        load_recipe(recipe, {"lr": [1, 2, 3]})


@pytest.mark.parametrize("key", ["lr", "batch", "optimizer", "schedule.warmup"])
def test_a_key_that_a_solved_head_would_ignore_is_refused(key: str):
    """Every value would give the same model, and a sweep would select the best of equals."""
    with pytest.raises(UserError, match=rf"--set phase.1.{key}: recipe photos solves the head, which needs no "):
        load_recipe("photos", {f"phase.1.{key}": 0.5})


def test_a_key_may_be_set_together_with_the_head_that_uses_it():
    assert load_recipe("photos", {"phase.1.head": "train", "phase.1.lr": 0.5, "phase.1.epochs": 2}).phase[0].lr == 0.5
    assert load_recipe("photos", {"phase.1.lr": 0.5, "phase.1.head": "auto"}).phase[0].head == "auto", "a sweep over it"


def test_the_size_of_images_keeps_the_proportion_of_what_they_are_resized_to(tmp_path: Path):
    data = load_recipe(written(tmp_path, "epochs = 1\nlr = 0.1"), {"size": 56}).data
    assert (data.resize, data.size) == (64, 56)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"bs": 3}, "bs: unknown key (did you mean batch?)"),
        ({"phase.1.learning_rate": 3}, "phase.1.learning_rate: unknown key (did you mean lr?)"),
        ({"mixup_alpha": 3}, "(did you mean phase.1.mixup?)"),
        ({"num_workers": 3}, "no number of workers is needed"),
        ({"phase.1.epochs": "x"}, "phase.1.epochs = 'x': expected a whole number"),
        ({"data.fit": "crp"}, "data.fit = 'crp': expected"),
        ({"seed": -1}, "seed = -1: expected 0 or more"),
    ],
)
def test_a_mistake_leads_to_the_right_key(overrides: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(UserError) as caught:
        load_recipe(written(tmp_path, "epochs = 1\nlr = 0.1"), overrides)
    assert message in str(caught.value)


@pytest.mark.parametrize("key", SYNONYMS)
def test_every_suggested_key_exists(key: str):
    name = key.rpartition(".")[2]
    assert key in (*full_keys(name), name)
    assert full_keys(name)
