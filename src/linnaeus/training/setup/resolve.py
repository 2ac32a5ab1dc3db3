"""Resolve a request: which recipe, with which overrides, on which table, divided into which splits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from linnaeus.check.inspection import group_copies
from linnaeus.console import Console
from linnaeus.data.split import split_table
from linnaeus.data.table import NEAR_DUPLICATES, Table
from linnaeus.errors import UserError
from linnaeus.inference.source import open_for_recipe
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.weights.loading import describe_weights
from linnaeus.models.weights.store import weights_at_hand
from linnaeus.recipe import Recipe, load_recipe, override, parse_epochs, without_recipe
from linnaeus.recipe.keys import refuse_twice
from linnaeus.training.setup.choice import choose_recipe, training_conflict
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.task import for_task


def resolve_recipe(request: Request, console: Console) -> tuple[Recipe, Table]:
    """The recipe with the overrides of the request, and the table of the source, not split yet."""
    recipe, overrides, epochs = request.recipe, _overrides(request), parse_epochs(request.epochs)
    table: Table | None = None
    if recipe is None:  # the images choose the recipe, so the table is opened first
        table = open_table(request)
        choice = choose_recipe(table, overrides, weights_at_hand())
        # What the user sets wins over what was chosen.
        recipe, overrides = choice.recipe, choice.settings | overrides
        console.say(f"recipe    {recipe}: {choice.reason}")
    elif overrides.get("model.weights") is not None:
        warning = training_conflict(_overridden(recipe, overrides, epochs), _overridden(recipe, {}, None))
        if warning is not None:
            console.warn(warning)
    try:
        resolved = _overridden(recipe, overrides, epochs)
    except UserError as error:
        if request.recipe is not None:
            raise
        raise UserError(f"{without_recipe(error, str(recipe))} (recipe {recipe} was chosen for these images)") from None
    if table is None:
        table = _open_table(request, resolved.data.model_dump())
    return for_task(resolved, table, console), table


def refuse_split_settings(settings: Mapping[str, Any] | None, recipe: Recipe, table: Table) -> None:
    """Raise UserError for settings of the random split where nothing is drawn at random."""
    if (table.split == "").any():
        return
    drawn = not len(table.where("valid")) and recipe.data.valid != "test"  # from the training images
    used = ("data.split.groups", *(("data.split.valid", "data.split.seed") if drawn else ()))
    for key in settings or {}:
        if key.startswith("data.split.") and key not in used:
            raise UserError(
                f"{table.source}: --set {key} has no effect, because the source defines its own splits; leave it out, "
                "or give the images as one folder or CSV without splits"
            )


def open_table(request: Request) -> Table:
    """The table of the source, where no recipe says how it is to be read."""
    overrides = request.settings or {}
    keys = ("train", "valid", "test", "task", "separator")
    data = {key: overrides.get(f"data.{key}") for key in keys}
    return _open_table(request, data | {"split": {"groups": overrides.get("data.split.groups")}})


def _overridden(recipe: str | Recipe, overrides: dict[str, Any], epochs: list[int] | None) -> Recipe:
    """The recipe with dotted overrides and the epochs of each phase."""
    if isinstance(recipe, Recipe):
        return override(recipe.model_dump(mode="json", exclude_none=True), recipe.name, overrides, epochs)
    return load_recipe(recipe, overrides, epochs)


def open_split(table: Table, recipe: Recipe, console: Console, trained: np.ndarray | None = None) -> Table:
    """Assign every sample to a split, by the recipe's shares and seed; groups stay together.

    Samples that the initial weights were `trained` on, (n,) bool, are not drawn for validation and test.
    """
    split = recipe.data.split
    for note in table.notes:
        console.say(f"data      {note}")
    # Groups would silently have no effect, where the user counts on them.
    if split.groups and not (table.split == "").any() and (len(table.where("valid")) or recipe.data.valid == "test"):
        raise UserError(
            f"{table.source}: data.split.groups = {split.groups!r} has no effect, because the source defines its own "
            "splits; leave it out, or give the images as one folder or CSV without splits"
        )
    if split.groups == NEAR_DUPLICATES:
        table = group_copies(table, console)
    elif table.offer:
        console.say(f"groups    {table.offer}")
    return split_table(
        table,
        valid=split.valid,
        test=split.test,
        seed=split.seed,
        valid_is_test=recipe.data.valid == "test",
        trained=trained,
    )


def _overrides(request: Request) -> dict[str, Any]:
    """The settings of the request by dotted recipe key; --model, --weights and --seed are such settings too."""
    overrides, model = dict(request.settings or {}), request.model
    refuse_twice(overrides, model=model, weights=request.weights, seed=request.seed, epochs=request.epochs)
    if model is not None:
        overrides["model.name"] = model if isinstance(model, str) else "custom"
    if model is not None and (not isinstance(model, str) or ".py:" in model):
        # Arguments and head of the recipe's network mean nothing to another network.
        overrides |= {"model.arguments": {}, "model.head": None}
        overrides.setdefault("model.weights", "none")
    elif model is not None and library_of(model) is not None:
        weights = request.weights or overrides.get("model.weights") or "pretrained"
        # The size must suit the weights, unless the user sets another.
        size = _image_size(model, weights, overrides)
        overrides = {"model.arguments": {}, "model.head": None} | size | overrides
    if request.weights is not None:
        overrides["model.weights"] = request.weights
    if request.seed is not None:
        overrides["seed"] = request.seed
    return overrides


def _image_size(model: str, weights: str, overrides: dict[str, Any]) -> dict[str, Any]:
    """The image size and interpolation that the weights of `model` were trained with, unless the user chose a size."""
    if not {"data.size", "data.resize"}.isdisjoint(overrides):
        return {}
    info = describe_weights("pretrained" if weights == "none" else weights, model)
    values = {"size": info.size, "resize": info.resize, "interpolation": info.interpolation, "fit": info.fit}
    return {f"data.{key}": value for key, value in values.items() if value is not None}


def _open_table(request: Request, data: dict[str, Any]) -> Table:
    if isinstance(request.source, Table):
        return request.source
    return open_for_recipe(request.source, data)
