"""The networks, written from their papers, and their pretrained weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from linnaeus.errors import UserError, did_you_mean
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.custom import Custom, load_module, wrap
from linnaeus.models.inception import InceptionV1
from linnaeus.models.network import Network, allocate, pooled
from linnaeus.models.resnet import RESNETS, ResNet
from linnaeus.models.small import CIFAR_RESNETS, PLAIN_NETS, DigitResNet, MiniResNet, cifar_resnet, plain_net
from linnaeus.network_names import unknown_network

__all__ = ["MODELS", "Custom", "Network", "allocate", "create", "load_module", "pooled", "unset_twin", "wrap"]

MODELS: dict[str, Callable[..., Network]] = {
    **{name: partial(ResNet, name) for name in RESNETS},
    **{name: partial(cifar_resnet, name) for name in CIFAR_RESNETS},
    **{name: partial(plain_net, name) for name in PLAIN_NETS},
    "mini_resnet": MiniResNet,
    "digit_resnet": DigitResNet,
    "inception_v1": InceptionV1,
}
"""Name -> function of (classes, channels, *, arguments of this network) that creates the network."""

SMALL_SIZE = 64  # side in pixels of an image that all of MODELS for larger images can see

LARGE = 200_000_000  # values of a network that is not created for its shapes only; the largest of MODELS has 60 million


def constructor(name: str) -> Callable[..., Network]:
    """The function that creates a network: one of MODELS, or an adapter for a library. UserError if it is unknown."""
    if name in MODELS:
        return MODELS[name]
    library = library_of(name)
    if library is not None:
        return partial(library.create, name)
    raise unknown_network(name)


def create(
    name: str,
    classes: int,
    channels: int = 3,
    *,
    head_stages: Sequence[str] | None = None,
    head_windows: int = 1,
    **arguments: Any,
) -> Network:
    """Create a network by name, with random weights: `create("resnet50", 10, stem="small")`.

    `arch` of the result holds all arguments, so that the same network can be created again. With `head_stages` the head
    sees the pooled outputs of these stages, concatenated, instead of the output of the last stage; with `head_windows`
    it sees that many windows per side instead of the average.
    Raises UserError, with a suggestion, for an unknown name, argument or value.
    """
    if name == "custom":
        source = arguments.get("source", "a module")
        raise UserError(f"this network was made by your own code ({source}), which is never stored: pass it as model")
    make = constructor(name)
    known = arguments_of(name)
    # Checked here, because the error of Python would name a function that the user never called.
    for argument in arguments:
        if argument not in known:
            choices = f"it has {', '.join(known)}" if known else "it has none"
            raise UserError(f"{name} has no argument {argument!r}{did_you_mean(argument, known)}: {choices}")
    for quantity, number in (("classes", classes), ("channels", channels)):
        if number < 1:
            raise UserError(f"{name}: {quantity} = {number}, but must be at least 1")
    network = make(classes, channels, **arguments)
    if head_stages is not None:
        if name not in MODELS:
            raise UserError(f"{name}: model.head is available for the networks of `linnaeus models` only; leave it out")
        chosen = check_stages(network, head_stages)
        twin, device = unset_twin(partial(make, classes, channels, **arguments))
        twin.head_stages = chosen
        size = min(twin.usual_size, SMALL_SIZE)
        with torch.no_grad():
            features = twin.run(torch.zeros(1, channels, size, size, device=device), stop="head")
        network.set_head_stages(chosen, features.shape[1])
    if head_windows != 1:
        if head_stages is not None or not isinstance(head_windows, int) or head_windows < 1:
            raise UserError(f"{name}: head_windows = {head_windows!r} must be an integer above 0, without head_stages")
        if name not in MODELS and not name.startswith("timm/"):
            raise UserError(f"{name}: model.head.windows is available for our networks and those of timm; leave it out")
        network.set_windows(head_windows)
    return network


def unset_twin(make: Callable[[], Network]) -> tuple[Network, torch.device]:
    """The network that `make` creates, in evaluation mode, with weights that are not set, and its device: for shapes.

    No random number is drawn. It is on the CPU, since to compute on the meta device torch imports its compiler, which
    takes more than a second; a network too large for that, such as a forged description asks for, is on meta.
    """
    with torch.device("meta"):
        twin = make().eval()
    values = sum(tensor.numel() for tensor in twin.state_dict().values())
    device = torch.device("cpu" if values < LARGE else "meta")
    return (allocate(twin, device) if device.type == "cpu" else twin), device


def check_stages(network: Network, head_stages: Sequence[str]) -> tuple[str, ...]:
    """`head_stages` in the order of the network. Raises UserError if one is not a stage below the head."""
    known = network.stages[:-1]
    name = network.arch["name"]
    for stage in head_stages:
        if stage not in known:
            raise UserError(
                f"{name}: head_stages: {stage!r} is not a stage below the head{did_you_mean(stage, known)}; "
                f"choose from {', '.join(known)}"
            )
    if not head_stages:
        raise UserError(f"{name}: head_stages is empty: choose from {', '.join(known)}")
    return tuple(stage for stage in known if stage in head_stages)


def arguments_of(name: str) -> dict[str, Any]:
    """The arguments of a network by name, with their defaults: {"stem": "imagenet", …}."""
    parameters = inspect.signature(constructor(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
