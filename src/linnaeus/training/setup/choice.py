"""Choose a recipe if the user names none: by the images, the network and the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.resnet import RESNETS
from linnaeus.models.weights.files import WeightsInfo
from linnaeus.models.weights.loading import describe_weights
from linnaeus.models.weights.pretrained import PRETRAINED
from linnaeus.recipe import Recipe

SMALL = 64
"""Pixels. Up to this size, images need no stem that reduces them to a quarter of their width."""

TRANSFER, SCRATCH = "photos", "scratch"  # packaged recipes for photographs: with trained weights, and without

TRANSFER_MODEL = "resnet50"
"""The network whose weights are preferred where several are on this machine. A head on its last two stages gave 96.4 %
on 16 flowers (n = 1,330) and 74.8 % on 10 dishes (n = 400), one on timm/tf_efficientnet_lite0 94.7 and 73.5 %, by
five folds of `linnaeus probe`: docs/results/backbones.md."""

STRONG = 75.0  # accuracy (%) on ImageNet from which on a network of ours is preferred to an unknown one of a library


@dataclass(frozen=True)
class Choice:
    """A packaged recipe, and how the network, the weights or the images change it."""

    recipe: str
    reason: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Dotted recipe key -> value; settings of the user come after them."""


def choose_recipe(table: Table, overrides: dict[str, Any], local: Sequence[str]) -> Choice:
    """Choose a packaged recipe for a source and the user's overrides, of which `model.name` and `model.weights` matter.

    `local`: names of the weights on this machine, those of libraries (`timm/NAME`) in the order in which they are to be
    preferred. Weights that the user names are kept: the recipe then trains a new head on them. Raises UserError if
    weights are unknown, missing, or for another network.
    """
    model, weights = overrides.get("model.name"), overrides.get("model.weights")
    # A network of a library comes with its own weights.
    if weights is None and model is not None and library_of(model) is not None:
        choice = _choose_for_weights("pretrained", model, table)
        return replace(choice, settings=choice.settings | {"model.weights": "pretrained"})
    if weights not in (None, "none"):
        return _choose_for_weights(str(weights), model, table)
    # Small images gain nothing from networks that were trained at 224 pixels.
    small = _small_images(table)
    if small is not None:
        return small
    n = len(table)
    if weights == "none":
        return Choice(SCRATCH, f"{n} photographs, and a network without pretrained weights")
    # Reversed, so that of several weights for one network the first in the list wins.
    by_model = {PRETRAINED[name].model: name for name in reversed(local) if name in PRETRAINED}
    for name in [model] if model else preferred_backbones(local):
        if name in by_model:
            reason = f"{n} photographs, and ImageNet weights of {name} are available on this machine"
            return Choice(TRANSFER, reason, _settings(name, WeightsInfo()))
        if library_of(name) is None:
            continue  # the user's own choice, without weights
        with suppress(UserError):  # the weights are here, but not the library
            reason = f"{n} photographs, and pretrained weights of {name} are available on this machine"
            settings = _settings(name, describe_weights("pretrained", name))
            return Choice(TRANSFER, reason, settings | {"model.weights": "pretrained"})
    published = [entry.name for entry in PRETRAINED.values() if entry.model == (model or TRANSFER_MODEL)]
    if model is not None and not published:
        return Choice(SCRATCH, f"{n} photographs, and there are no ImageNet weights for {model}")
    return Choice(
        SCRATCH,
        f"{n} photographs, and no ImageNet weights{f' of {model}' if model else ''} on this machine, which would "
        f"give a far better model from few images: linnaeus weights pull {published[0]}, or --weights FILE",
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
            f"recipe {before.name} is for networks without pretrained weights: it trains all stages with lr = "
            f"{first.lr} from the first step, which overwrites much of {weights}; without --recipe, linnaeus chooses "
            "one that keeps them"
        )
    if before.model.weights != "none" == weights and "all" not in first.train:
        return (
            f"recipe {before.name} is for networks with pretrained weights: without them, the stages below "
            f"{first.train[0]} stay random; use --recipe {SCRATCH}"
        )
    return None


def _choose_for_weights(weights: str, model: str | None, table: Table) -> Choice:
    """The recipe that trains a head on the weights that the user names."""
    info = describe_weights(weights, model)
    if model is not None and info.model is not None and info.model != model:
        raise UserError(f"{weights}: these weights are for {info.model}, not for {model}; leave out --model")
    name = model or info.model or TRANSFER_MODEL
    reason = f"{len(table)} images, and weights {weights} for {name}, with a new head"
    return Choice(TRANSFER, reason, _settings(name, info))


def _settings(model: str, info: WeightsInfo) -> dict[str, Any]:
    """The network of the transfer recipe, and the size of the images that its weights were trained with."""
    settings: dict[str, Any] = {"model.name": model}
    if model not in RESNETS:  # the recipe's head uses stages of a ResNet
        settings["model.head"] = None
    if info.size is not None and info.resize is not None:
        settings |= {"data.size": info.size, "data.resize": info.resize}
    if library_of(model) is not None:
        more = {"data.interpolation": info.interpolation, "data.fit": info.fit}
        settings |= {key: value for key, value in more.items() if value is not None}
    return settings


def _small_images(table: Table) -> Choice | None:
    """The recipe for images of a few pixels; None for photographs."""
    if table.images is None or max(table.images.shape[1:3]) > SMALL:
        return None
    n, side = len(table), max(table.images.shape[1:3])
    if table.channels == 1:
        return Choice("digits" if n < 10_000 else "mnist", f"{n} gray images of {side} pixels")
    return Choice("small", f"{n} color images of {side} pixels")


def preferred_backbones(local: Sequence[str]) -> list[str]:
    """The networks of local weights in the order in which `train` prefers them.

    TRANSFER_MODEL; then those of ours that are STRONG on ImageNet, the most accurate first; then those of libraries;
    then the rest of ours. `linnaeus probe` finds the best one for given images.
    """
    ours = sorted((PRETRAINED[name] for name in local if name in PRETRAINED), key=lambda entry: -entry.top1)
    first = [entry.model for entry in ours if entry.model == TRANSFER_MODEL]
    strong = [entry.model for entry in ours if entry.top1 >= STRONG]
    libraries = [name for name in local if library_of(name) is not None]
    return list(dict.fromkeys([*first, *strong, *libraries, *(entry.model for entry in ours)]))
