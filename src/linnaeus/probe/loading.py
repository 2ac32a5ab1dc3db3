"""A backbone as `train` would use it: its network with weights, and the preprocessing that belongs to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.probe.backbones import Backbone
from linnaeus.training.setup.network import build_network, check_size, preprocessing_of
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.resolve import resolve_recipe


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with pretrained weights."""

    network: Network
    preprocessing: Preprocessing
    measures_pixels: bool
    """Whether mean and std are to be measured on the training pixels, as `data.normalise = "data"` asks."""


def load_backbone(backbone: Backbone, table: Table, settings: dict[str, Any], console: Console) -> LoadedBackbone:
    """The network and preprocessing that `train` has for this backbone, these images and these settings.

    Weights are downloaded where they are missing. Raises UserError or JobError if they cannot be had or do not fit.
    """
    quiet = Console(quiet=True)
    request = Request(table, None, backbone.model, backbone.weights, settings=settings)
    recipe, _ = resolve_recipe(request, quiet)
    channels = (table.channels or 3) if recipe.data.channels == "auto" else recipe.data.channels
    network, normalization = build_network(recipe, len(table.classes), channels, None, console)
    check_size(network, recipe, channels)
    return LoadedBackbone(network, preprocessing_of(recipe, channels, normalization), recipe.data.normalise == "data")
