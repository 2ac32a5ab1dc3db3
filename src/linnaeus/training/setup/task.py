"""The task of a run, one label per image or several, and the recipe keys that do not fit it."""

from __future__ import annotations

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.recipe import Phase, Recipe

WHY = "needs one label per image, and these images may have several (data.task = multi-label)"


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
