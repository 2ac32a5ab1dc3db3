"""The choice of a recipe knows all options: model, weights, images, and what is on this machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import write_tiny_model

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.models import create
from linnaeus.models.weights.adapt import recognize_model
from linnaeus.models.weights.files import WeightsInfo
from linnaeus.recipe import load_recipe, override
from linnaeus.training.setup import choice
from linnaeus.training.setup.choice import choose_recipe, preferred_backbones, training_conflict
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.resolve import resolve_recipe

V1 = "resnet50-torchvision-v1"


def photographs(n: int = 100) -> Table:
    paths, names = tuple(f"/{i}.jpg" for i in range(n)), ("a", "b")
    return Table("photos", "folder", names, names, np.arange(n) % 2, np.full(n, "", "<U5"), paths)


def chosen(local: list[str] | None = None, **overrides: str) -> tuple[str, str, str]:
    """(recipe, its network, its weights) after the overrides `model`, `weights`."""
    settings = {f"model.{'name' if key == 'model' else key}": value for key, value in overrides.items()}
    found = choose_recipe(photographs(), settings, local or [])
    recipe = load_recipe(found.recipe, found.settings | settings)
    return found.recipe, recipe.model.name, recipe.model.weights


def test_weights_that_the_user_names_are_kept():
    """Also without any on this machine. `scratch` would overwrite them in 40 epochs at 1e-3."""
    assert chosen(weights=V1) == ("photos", "resnet50", V1)
    assert chosen(weights="resnet18-timm-a1") == ("photos", "resnet18", "resnet18-timm-a1")
    assert chosen(weights="imagenet") == ("photos", "resnet50", "imagenet")
    assert chosen(weights="imagenet", model="resnet34") == ("photos", "resnet34", "imagenet")
    assert chosen(weights="inception_v1-torchvision-v1")[:2] == ("photos", "inception_v1")


@pytest.mark.parametrize("name", ["resnet18", "resnet152", "inception_v1", "resnet56"])
def test_a_weights_file_tells_its_network(name: str, tmp_path: Path):
    file = tmp_path / "w.pth"
    torch.save(create(name, 1000).state_dict(), file)
    assert chosen(weights=str(file)) == ("photos", name, str(file))


def test_a_model_of_ours_tells_its_network_and_its_size(tmp_path: Path):
    found = choose_recipe(photographs(), {"model.weights": str(write_tiny_model(tmp_path / "model.safetensors"))}, [])
    assert (found.recipe, found.settings["model.name"], found.settings["data.size"]) == ("photos", "mini_resnet", 28)
    assert choose_recipe(photographs(), {"model.weights": str(tmp_path)}, []).settings == found.settings


def test_weights_that_cannot_be_used_are_refused_before_anything_is_read(tmp_path: Path):
    with pytest.raises(UserError, match="are for resnet50, not for resnet18; leave out --model"):
        chosen(weights=V1, model="resnet18")
    with pytest.raises(UserError, match="no such weights file"):
        chosen(weights=str(tmp_path / "missing.pth"))
    with pytest.raises(UserError, match="did you mean"):
        chosen(weights="resnet50-torchvision-v7")


def test_without_named_weights_those_on_this_machine_decide():
    assert chosen() == ("scratch", "resnet18", "none")
    assert chosen([V1]) == ("photos", "resnet50", "imagenet")
    assert chosen(["resnet18-torchvision-v1", V1], model="resnet18") == ("photos", "resnet18", "imagenet")
    assert chosen([V1], model="resnet18") == ("scratch", "resnet18", "none")
    assert chosen(["resnet18-torchvision-v1"]) == ("photos", "resnet18", "imagenet")
    assert chosen([V1], weights="none") == ("scratch", "resnet18", "none")
    assert "weights pull resnet101-" in choose_recipe(photographs(), {"model.name": "resnet101"}, []).reason


@pytest.mark.parametrize(
    ("local", "network"),
    [
        (["timm/a", V1], "resnet50"),
        (["resnet101-torchvision-v1", "timm/a"], "resnet101"),
        (["resnet18-torchvision-v1", "timm/a", "timm/b"], "timm/a"),
        (["resnet101-torchvision-v1", "resnet152-torchvision-v1"], "resnet152"),
        ([], None),
    ],
)
def test_the_order_of_the_backbones_at_hand(local: list[str], network: str | None):
    assert next(iter(preferred_backbones(local)), None) == network


def test_weights_of_a_library_are_used_where_they_are_the_only_ones(monkeypatch: pytest.MonkeyPatch):
    """They used to be ignored: a network was then trained from random weights."""
    info = WeightsInfo("timm/a", size=240, resize=256, interpolation="bicubic")
    monkeypatch.setattr(choice, "describe_weights", lambda weights, model: info)
    found = choose_recipe(photographs(), {}, ["timm/a"])
    recipe = load_recipe(found.recipe, found.settings)
    assert (recipe.model.name, recipe.model.weights, recipe.model.head) == ("timm/a", "pretrained", None)
    assert (recipe.data.size, recipe.data.resize, recipe.data.interpolation) == (240, 256, "bicubic")


def test_without_the_library_its_weights_are_passed_over(monkeypatch: pytest.MonkeyPatch):
    def missing(weights: str, model: str) -> WeightsInfo:
        raise UserError("needs the package timm")

    monkeypatch.setattr(choice, "describe_weights", missing)
    assert chosen(["timm/a"])[0] == "scratch"
    assert chosen(["timm/a", "resnet18-torchvision-v1"])[:2] == ("photos", "resnet18")


@pytest.mark.parametrize("name", ["inception_v1", "resnet18"])
def test_the_recipe_fits_the_network(name: str):
    """The head of `photos` uses stages that only a ResNet has."""
    found = choose_recipe(photographs(), {"model.weights": "imagenet", "model.name": name}, [])
    recipe = load_recipe(found.recipe, found.settings | {"model.weights": "imagenet"})
    create(name, 2, head_stages=recipe.model.head.stages if recipe.model.head else None)


def test_networks_are_recognized_by_all_of_their_tensors():
    tensors = create("resnet50", 7).state_dict()
    assert recognize_model(tensors) == "resnet50"
    assert recognize_model({key: value for key, value in tensors.items() if not key.startswith("layer4.2")}) is None
    assert recognize_model({}) is None


@pytest.mark.parametrize(
    ("recipe", "weights", "warning"),
    [
        ("scratch", "resnet18-torchvision-v1", "trains all stages with lr = 0.001 from the first step"),
        ("photos", "none", "the stages below head stay random"),
        ("photos", V1, None),
        ("scratch", "none", None),
    ],
)
def test_a_recipe_says_when_it_does_not_fit_the_weights(recipe: str, weights: str, warning: str | None):
    before = load_recipe(recipe)
    after = override(before.model_dump(mode="json", exclude_none=True), recipe, {"model.weights": weights}, None)
    found = training_conflict(after, before)
    assert found is None if warning is None else warning in (found or "")


def test_it_is_said_when_the_recipe_is_resolved(capsys: pytest.CaptureFixture[str]):
    request = Request(photographs(), "scratch", weights="resnet18-torchvision-v1")
    resolve_recipe(request, Console())
    assert "overwrites much of resnet18-torchvision-v1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "warning"),
    [
        ("phase.1.lr", 1000.0, "phase 1: lr = 1000 is above 1, where training with adam"),
        ("phase.1.lr", 1.0, ""),
        ("data.size", 3, "size = 3: hardly anything is visible in 3 x 3 pixels"),
        ("data.size", 8, ""),
    ],
)
def test_values_that_hardly_ever_work_are_warned_of(
    key: str, value: float, warning: str, capsys: pytest.CaptureFixture[str]
):
    resolve_recipe(Request(photographs(), "digits", settings={key: value}), Console())
    said = capsys.readouterr().err
    assert said.count("\n") == bool(warning)
    assert warning in said
