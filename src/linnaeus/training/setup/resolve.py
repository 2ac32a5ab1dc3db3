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
from linnaeus.recipe import Phase, Recipe, load_recipe, override, parse_epochs, without_recipe
from linnaeus.recipe.keys import refuse_twice
from linnaeus.training.setup.choice import choose_recipe, training_conflict
from linnaeus.training.setup.request import Request

SMALLEST = 8  # pixels: the side of the digits of scikit-learn
LARGEST_RATE = {"sgd": 100.0, "adam": 1.0, "adamw": 1.0}
WHY = "needs one label per image, and these images may have several (data.task = multi-label)"


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
    for line in unlikely_values(resolved):
        console.warn(line)
    if table is None:
        table = _open_table(request, resolved.data.model_dump())
    return for_task(resolved, table, console), table


def unlikely_values(recipe: Recipe) -> list[str]:
    """Lines about values with which hardly any network learns: mistyped, or meant for something else."""
    size, lines = recipe.data.size, []
    if size < SMALLEST:
        lines.append(f"size = {size}: hardly anything is visible in {size} x {size} pixels; raise it (--size 32)")
    for number, phase in enumerate(recipe.phase, 1):
        if isinstance(phase.lr, float) and phase.lr > (limit := LARGEST_RATE[phase.optimizer]):
            lines.append(
                f"phase {number}: lr = {phase.lr:g} is above {limit:g}, where training with {phase.optimizer} almost "
                f"always diverges; lower it (--set phase.{number}.lr=1e-3)"
            )
    return lines


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
    """The settings of the request by dotted recipe key; --model, --weights and --seed are such settings too,
    and --set model.name does the same as --model."""
    overrides, model = dict(request.settings or {}), request.model
    refuse_twice(overrides, model=model, weights=request.weights, seed=request.seed, epochs=request.epochs)
    if model is not None:
        overrides["model.name"] = model if isinstance(model, str) else "custom"
    if model is not None and (not isinstance(model, str) or ".py:" in model):
        # Arguments and head of the recipe's network mean nothing to another network.
        overrides |= {"model.arguments": {}, "model.head": None}
        overrides.setdefault("model.weights", "none")
    elif isinstance(named := overrides.get("model.name"), str) and library_of(named) is not None:
        weights = request.weights or overrides.get("model.weights") or "pretrained"
        # The size must suit the weights, unless the user sets another.
        size = _image_size(named, weights, overrides)
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


def for_task(recipe: Recipe, table: Table, console: Console) -> Recipe:
    """The recipe with the task that the table has; says what changes. Raises UserError for settings that do not fit."""
    if not table.several:
        if recipe.best == "map" or recipe.label_precision is not None:
            key = 'best = "map"' if recipe.best == "map" else f"label_precision = {recipe.label_precision}"
            raise UserError(f"{key}: needs images that may have several labels, and {table.source} has one per image")
        if recipe.model.head is not None and recipe.model.head.windows > 1:
            raise UserError(
                f"model.head.windows = {recipe.model.head.windows}: needs images that may have several labels, and "
                f"{table.source} has one per image; leave it out"
            )
        return recipe
    if recipe.error is not None:
        raise UserError(f"error = {recipe.error:g} {WHY}; label_precision sets how often each label is right")
    if recipe.best == "balanced_accuracy":
        raise UserError(f'best = "balanced_accuracy" {WHY}; use map or loss')
    for number, phase in enumerate(recipe.phase, start=1):
        _refuse(phase, number)
    none = int((~table.labels.any(1)).sum())
    console.say(
        f"task      multi-label: each of {len(table.classes)} labels is decided separately; {none:,} of "
        f"{len(table):,} images have none"
    )
    update = {"data": recipe.data.model_copy(update={"task": "multi-label"})}
    # With several labels there is no single right class to be accurate about.
    if recipe.best == "accuracy":
        console.say("best      map, the mean average precision, since an image may have several labels")
        return recipe.model_copy(update=update | {"best": "map"})
    return recipe.model_copy(update=update)


def _refuse(phase: Phase, number: int) -> None:
    """Raise UserError for settings that mean nothing where images may have several labels."""
    if phase.cutmix > 0:
        raise UserError(
            f"phase.{number}.cutmix = {phase.cutmix:g} {WHY}: whether the pasted part has a label is unknown; use mixup"
        )
    if phase.sampling == "balanced":
        raise UserError(f'phase.{number}.sampling = "balanced" {WHY}; use class_weights = "balanced"')
    monitor = getattr(phase.schedule, "monitor", "")
    if monitor.endswith("accuracy"):
        raise UserError(f"phase.{number}.schedule.monitor = {monitor!r} {WHY}; use valid_loss or train_loss")
