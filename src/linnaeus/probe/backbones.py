"""The backbones that a probe compares: what `--backbones` may name, and what `auto` stands for."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnaeus.console import Console
from linnaeus.data.table import Table
from linnaeus.environment import offline
from linnaeus.errors import UnknownNameError, UserError, install
from linnaeus.models import MODELS, Network
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.backbones.timm_backbone import PREFIX
from linnaeus.models.weights.loading import describe_weights
from linnaeus.models.weights.pretrained import PRETRAINED
from linnaeus.models.weights.store import lookup
from linnaeus.network_names import did_you_mean_network, unknown_network
from linnaeus.preprocess import Preprocessing
from linnaeus.training.setup.network import build_network, check_size, preprocessing_of
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.resolve import resolve_recipe

AUTO = "auto"

RECOMMENDED = {
    "cpu": (
        "timm/mobilenetv4_conv_small.e2400_r224_in1k",
        "timm/tf_efficientnet_lite0.in1k",
        "timm/convnext_nano.in12k_ft_in1k",
        "timm/vit_small_patch16_224.augreg_in21k",
    ),
    "gpu": (
        "timm/convnext_base.fb_in22k",
        "timm/vit_base_patch14_dinov2.lvd142m",
        "timm/vit_base_patch16_siglip_224.webli",
    ),
}
"""What `auto` adds to the weights on this machine: on a CPU networks of at most 5 billion multiply-adds, on a GPU
larger ones that were trained on more images. All have licenses that permit any use."""


@dataclass(frozen=True)
class Backbone:
    """A pretrained network."""

    model: str  # as `model.name` in a recipe
    weights: str  # as `model.weights` in a recipe: a name, `pretrained`, or a file

    @property
    def arguments(self) -> str:
        """The arguments of `linnaeus train` for this backbone."""
        return f"--model {shlex.quote(self.model)} --weights {shlex.quote(self.weights)}"


@dataclass(frozen=True)
class Candidate:
    """One backbone, or several whose features are concatenated for one head."""

    name: str  # as the user wrote it
    backbones: tuple[Backbone, ...]

    @property
    def short_name(self) -> str:
        """The name without the folders of its weights files: `resnet18=a/b.pth` becomes `resnet18=b.pth`."""
        parts = zip(self.name.split("+"), self.backbones, strict=True)
        return "+".join(part.replace(backbone.weights, Path(backbone.weights).name) for part, backbone in parts)


@dataclass(frozen=True)
class Candidates:
    """What is to be compared."""

    chosen: tuple[Candidate, ...]
    notes: tuple[str, ...]  # what `auto` left out, and what was named twice


def parse_backbones(text: str, local: Mapping[str, str], device: str, option: str = "--backbones") -> Candidates:
    """The candidates of a list such as `auto,resnet18,timm/convnext_atto=FILE,resnet50+timm/convnext_atto`.

    A backbone is a network with pretrained weights, the name of weights, a weights file that names its network, or
    NETWORK=FILE. `local` are those on this machine (network -> weights), `device` is `cpu` or another one; messages
    begin with `option`.
    Raises UserError for a name that nothing has, with suggestions, and for an empty list.
    """
    candidates: dict[frozenset[Backbone], Candidate] = {}
    notes: list[str] = []
    for name in filter(None, (part.strip() for part in text.split(","))):
        if name == AUTO:
            automatic, left_out = _automatic(local, device)
            notes += left_out
            for candidate in automatic:
                candidates.setdefault(frozenset(candidate.backbones), candidate)
            continue
        parts = tuple(_backbone(part.strip(), local, option) for part in name.split("+"))
        if len(set(parts)) < len(parts):
            raise UserError(f"{option} {name}: joins a backbone with itself, which adds nothing; name it once")
        # As a set: A+B and B+A have the same features.
        if frozenset(parts) in candidates:
            notes.append(f"{name}: is the same as {candidates[frozenset(parts)].name}; compared once")
        candidates.setdefault(frozenset(parts), Candidate(name, parts))
    if not candidates:
        raise UserError(
            f"{option} {text!r}: names no backbone; give names such as resnet50,timm/tf_efficientnet_lite0, or auto"
        )
    return Candidates(tuple(candidates.values()), tuple(notes))


def _backbone(name: str, local: Mapping[str, str], option: str) -> Backbone:
    if not name:
        raise UserError(f"{option}: a name is missing beside a plus sign; write A+B")
    # NETWORK=FILE comes first, since a file name may resemble any of the others.
    model, equals, file = name.partition("=")
    if equals:
        if not file or not Path(file).expanduser().exists():
            raise UserError(f"{option} {name}: there is no file {file or '(empty)'}; give NETWORK=FILE")
        return Backbone(_known_network(model), file)
    if library_of(name) is not None:
        return Backbone(_known_network(name), "pretrained")
    if name in PRETRAINED:
        return Backbone(PRETRAINED[name].model, name)
    if name in MODELS:
        published = [entry.name for entry in PRETRAINED.values() if entry.model == name]
        if not published:
            raise UserError(f"{option} {name}: there are no pretrained weights for this network; give {name}=FILE")
        # Weights that are already on this machine are preferred to a download.
        return Backbone(name, local.get(name, published[0]))
    if Path(name).expanduser().exists():
        network = describe_weights(name).model
        if network is None:
            raise UserError(f"{option} {name}: the file does not say which network it is for; give NETWORK={name}")
        return Backbone(network, name)
    raise UnknownNameError(
        f"{option} {name}: no such network, weights or file{did_you_mean_network(name, _all_names(local))}; `linnaeus "
        "weights list` shows ours, and timm/NAME and hf/OWNER/NAME take those of timm and of the Hugging Face hub"
    )


def _known_network(name: str) -> str:
    """`name`. Raises UnknownNameError for a name that none of our networks has, nor timm's where it is installed."""
    if name.startswith(PREFIX):
        try:
            lookup(name)
        except UnknownNameError:
            raise
        except UserError:
            pass  # told when its turn comes, so that the other backbones are not lost
    elif library_of(name) is None and name not in MODELS:
        raise unknown_network(name)
    return name


def _all_names(local: Mapping[str, str]) -> Iterable[str]:
    with_weights = {entry.model for entry in PRETRAINED.values()}
    return dict.fromkeys((*with_weights, *PRETRAINED, *local, AUTO))


def _automatic(local: Mapping[str, str], device: str) -> tuple[list[Candidate], list[str]]:
    """The backbones on this machine and those recommended for the machine, with a note of what was left out."""
    at_hand = [Backbone(model, weights) for model, weights in local.items()]
    candidates = [Candidate(b.weights if b.weights in PRETRAINED else b.model, (b,)) for b in at_hand]
    more = [name for name in RECOMMENDED["cpu" if device == "cpu" else "gpu"] if name not in local]
    if importlib.util.find_spec("timm") is None:
        return candidates, [f"auto: {', '.join(more)} left out: {install('timm')}"]
    if offline():
        return candidates, [f"auto: {', '.join(more)} left out, because LINNAEUS_OFFLINE is set"] if more else []
    return [*candidates, *(Candidate(name, (Backbone(name, "pretrained"),)) for name in more)], []


@dataclass(frozen=True)
class LoadedBackbone:
    """A network with pretrained weights."""

    network: Network
    preprocessing: Preprocessing
    measures_pixels: bool
    """Whether mean and std are to be measured on the training pixels, as `data.normalize = "data"` asks."""


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
    return LoadedBackbone(network, preprocessing_of(recipe, channels, normalization), recipe.data.normalize == "data")
