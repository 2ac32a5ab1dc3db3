"""Choice of a recipe where the user names none: by the images, and by the network and weights that the user names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.models.libraries import library_of
from linnaeus.models.pretrained import PRETRAINED
from linnaeus.models.resnet import RESNETS
from linnaeus.models.weight_files import WeightsInfo
from linnaeus.models.weights import describe_weights
from linnaeus.recipe import Recipe

SMALL = 64
"""Pixels. Up to this size, images need no stem that reduces them to a quarter of their width."""

TRANSFER, SCRATCH = "photos", "scratch"
"""Packaged recipes for photographs: with trained weights, and without."""

TRANSFER_MODEL = "resnet50"


@dataclass(frozen=True)
class Choice:
    """A packaged recipe, and how the network, the weights or the images change it."""

    recipe: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe key -> value; settings of the user come after them."""


def choose_recipe(table: Table, overrides: dict[str, Any], local: Sequence[str]) -> Choice:
    """Choose a packaged recipe for a source and the user's overrides, of which `model.name` and `model.weights` matter.

    `local`: names of the published weights on this machine. Weights that the user names are kept: the recipe then
    trains a new head on them. Raises UserError if weights are unknown, missing, or for another network.
    """
    model, weights = overrides.get("model.name"), overrides.get("model.weights")
    if weights is None and model is not None and library_of(model) is not None:
        choice = _choose_for_weights("pretrained", model, table)
        return replace(choice, settings=choice.settings | {"model.weights": "pretrained"})
    if weights not in (None, "none"):
        return _choose_for_weights(str(weights), model, table)
    small = _small_images(table)
    if small is not None:
        return small
    n = len(table)
    if weights == "none":
        return Choice(SCRATCH, f"{n} photographs, and a network without trained weights")
    by_model = {PRETRAINED[name].model: name for name in reversed(local)}
    chosen = model or (TRANSFER_MODEL if TRANSFER_MODEL in by_model else _most_accurate(local))
    if chosen in by_model:
        reason = f"{n} photographs, and ImageNet weights of {chosen} are available on this machine"
        return Choice(TRANSFER, reason, _settings(chosen, WeightsInfo()))
    published = [entry.name for entry in PRETRAINED.values() if entry.model == (model or TRANSFER_MODEL)]
    if model is not None and not published:
        return Choice(SCRATCH, f"{n} photographs, and there are no ImageNet weights for {model}")
    return Choice(
        SCRATCH,
        f"{n} photographs, and no ImageNet weights{f' of {model}' if model else ''} on this machine; with them, far "
        f"fewer images give a far better model: linnaeus weights pull {published[0]}",
    )


def training_conflict(recipe: Recipe, before: Recipe) -> str | None:
    """A warning where the weights that the user asks for do not fit the way in which a recipe trains.

    `before`: the recipe without the user's overrides.
    """
    weights, first = recipe.model.weights, recipe.phase[0]
    if ".py:" in recipe.model.name or recipe.model.name == "custom":
        return None  # such a network loads weights itself
    if before.model.weights == "none" != weights and "all" in first.train:
        return (
            f"recipe {before.name} is for networks without trained weights: it trains all stages with lr = {first.lr} "
            f"from the first step, which overwrites much of {weights}; without --recipe, linnaeus chooses one that "
            "keeps them"
        )
    if before.model.weights != "none" == weights and "all" not in first.train:
        return (
            f"recipe {before.name} is for networks with trained weights: without them, the stages below "
            f"{first.train[0]} stay random; use --recipe {SCRATCH}"
        )
    return None


def _choose_for_weights(weights: str, model: str | None, table: Table) -> Choice:
    """The recipe that trains a head on the weights that the user names."""
    info = describe_weights(weights, model)
    if model is not None and info.model is not None and info.model != model:
        raise UserError(f"{weights}: these weights are for {info.model}, not for {model}; leave out --model")
    name = model or info.model or TRANSFER_MODEL
    reason = f"{len(table)} images, and the weights {weights} for {name}, which a new head is trained on"
    return Choice(TRANSFER, reason, _settings(name, info))


def _settings(model: str, info: WeightsInfo) -> dict[str, Any]:
    """The network of the transfer recipe, and the size of the images that its weights were trained with."""
    settings: dict[str, Any] = {"model.name": model}
    if model not in RESNETS:  # the recipe's head uses stages of a ResNet
        settings["model.head"] = None
    if info.size is not None and info.resize is not None:
        settings |= {"data.size": info.size, "data.resize": info.resize}
    return settings


def _small_images(table: Table) -> Choice | None:
    """The recipe for images of a few pixels; None for photographs."""
    if table.images is None or max(table.images.shape[1:3]) > SMALL:
        return None
    n, side = len(table), max(table.images.shape[1:3])
    if table.channels == 1:
        return Choice("digits" if n < 10_000 else "mnist", f"{n} gray images of {side} pixels")
    return Choice("small", f"{n} color images of {side} pixels")


def _most_accurate(local: Sequence[str]) -> str | None:
    """The network with the most accurate of the local weights; None if there are none."""
    return max((PRETRAINED[name] for name in local), key=lambda entry: entry.top1).model if local else None
