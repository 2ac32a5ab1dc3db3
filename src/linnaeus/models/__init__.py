"""Networks, written out from the papers, and the weights published for them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

from linnaeus.errors import UserError
from linnaeus.models.custom import Custom, load_module, wrap
from linnaeus.models.inception import InceptionV1
from linnaeus.models.network import Network, pooled
from linnaeus.models.resnet import RESNETS, ResNet
from linnaeus.models.small import CIFAR_RESNETS, PLAIN_NETS, DigitResNet, MiniResNet, cifar_resnet, plain_net

__all__ = ["MODELS", "Custom", "Network", "create", "load_module", "pooled", "wrap"]

MODELS: dict[str, Callable[..., Network]] = {
    **{name: partial(ResNet, name) for name in RESNETS},
    **{name: partial(cifar_resnet, name) for name in CIFAR_RESNETS},
    **{name: partial(plain_net, name) for name in PLAIN_NETS},
    "mini_resnet": MiniResNet,
    "digit_resnet": DigitResNet,
    "inception_v1": InceptionV1,
}
"""Name -> function of (classes, channels, and arguments of its own by name) that makes the network."""


def create(
    name: str, classes: int, channels: int = 3, *, head_stages: Sequence[str] | None = None, **arguments: Any
) -> Network:
    """A new network, by name, with fresh weights: `create("resnet50", 10, stem="small")`.

    `create(**network.arch)`, with the arguments spread, makes the same one again. `head_stages` lets the head see the
    pooled outputs of several stages instead of the last one's.
    Raises UserError for an unknown name, argument or value, with what was probably meant.
    """
    if name == "custom":
        source = arguments.get("source", "a module")
        raise UserError(f"this network was your own ({source}), and code is never kept: pass it again as model")
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}{did_you_mean(name, MODELS)}: `linnaeus models` lists them")
    known = arguments_of(name)
    for argument in arguments:
        if argument not in known:
            choices = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{name} has no argument {argument!r}{did_you_mean(argument, known)}: {choices}")
    for what, number in (("classes", classes), ("channels", channels)):
        if number < 1:
            raise UserError(f"{name}: {what} = {number}: at least 1")
    network = MODELS[name](classes, channels, **arguments)
    if head_stages is not None:
        chosen = check_stages(network, head_stages)
        with torch.device("meta"):  # the shapes without the work
            twin = MODELS[name](classes, channels, **arguments).eval()
            twin.head_stages = chosen
            vector = twin.run(torch.empty(1, channels, twin.usual_size, twin.usual_size), stop="head")
        network.look_at(chosen, vector.shape[1])
    return network


def check_stages(network: Network, head_stages: Sequence[str]) -> tuple[str, ...]:
    """`head_stages` in the network's order. Raises UserError for what is no stage below the head."""
    known = network.stages[:-1]
    for stage in head_stages:
        if stage not in known:
            near, choices = did_you_mean(stage, known), ", ".join(known)
            raise UserError(f"{network.arch['name']}: the head cannot look at {stage!r}{near}: it has {choices}")
    if not head_stages:
        raise UserError(f"{network.arch['name']}: head_stages is empty: choose from {', '.join(known)}")
    return tuple(stage for stage in known if stage in head_stages)


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of a model's own and their defaults: {"stem": "imagenet", …}."""
    parameters = inspect.signature(MODELS[name]).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' (did you mean resnet50?)' for a close match, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=3)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
