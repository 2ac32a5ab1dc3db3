"""The network of a run with its weights, and the preprocessing that goes with it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from linnaeus.console import Console
from linnaeus.data.download import fetch
from linnaeus.device import free_memory
from linnaeus.errors import UserError, one_line
from linnaeus.models import MODELS, Network, create, load_module, unset_twin, wrap
from linnaeus.models.weights.loading import load_weights, network_arguments
from linnaeus.models.weights.pretrained import license_warning
from linnaeus.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from linnaeus.recipe import Recipe

COPIES = 3  # copies of the weights that training holds at least: the network, its gradients, the best model
IMAGE_BYTES = 8  # bytes per value of an image that training holds at least: before and after augmentation, in float32
Normalization = tuple[tuple[float, ...], tuple[float, ...]]  # (mean, std), one value per channel, on the scale [0, 1]


def build_network(
    recipe: Recipe, classes: int, channels: int, module: nn.Module | None, console: Console
) -> tuple[Network, Normalization | None]:
    """The network with its weights, and the normalization that these were trained with; None without weights.

    `module`: the caller's own network, which replaces the recipe's.
    """
    name, arguments = recipe.model.name, dict(recipe.model.arguments)
    custom = module is not None or ".py:" in name
    if custom and recipe.model.weights != "none":
        raise UserError(f"weights = {recipe.model.weights!r}: a custom network loads its weights itself; use none")
    if recipe.model.head is not None:
        if custom:
            raise UserError("model.head: not available for a custom network; leave it out, and change the code instead")
        head = recipe.model.head
        arguments |= {"head_stages": head.stages} if head.stages is not None else {"head_windows": head.windows}
    if module is not None:
        return wrap(module, classes, channels), None
    if ".py:" in name:
        return load_module(name, classes, channels), None
    arguments = network_arguments(name, recipe.model.weights, arguments)
    # Before the allocation: the kernel would kill the process without a message.
    check_memory(recipe, classes, channels, arguments)
    if recipe.model.weights == "none":
        return create(name, classes, channels, **arguments), None
    with console.progress(f"weights {recipe.model.weights}", "bytes") as advance:
        loaded = load_weights(
            name,
            recipe.model.weights,
            classes=classes,
            channels=channels,
            arguments=arguments,
            fetch=fetch,
            progress=advance,
        )
    for note in loaded.notes:
        console.say(f"weights   {note}")
    resized = loaded.model.size_note(recipe.data.size)
    if resized:
        console.say(f"weights   {resized}")
    warning = license_warning(loaded.license, loaded.gated)
    if warning:
        console.warn(warning)
    return loaded.model, (tuple(loaded.normalization["mean"]), tuple(loaded.normalization["std"]))


def check_memory(recipe: Recipe, classes: int, channels: int, arguments: dict[str, Any]) -> None:
    """Raise UserError if network or images are larger than this machine's free memory, before any of it is taken.

    Linux grants more memory than there is, and kills the process that uses it.
    """
    name, data = recipe.model.name, recipe.data
    free = free_memory(torch.device("cpu"))
    try:
        # On the meta device shapes exist without memory.
        with torch.device("meta"):
            network = create(name, classes, channels, **arguments)
        needed = COPIES * sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    except (RuntimeError, OverflowError) as error:
        raise UserError(f"model.name = {name}: cannot be built ({one_line(error)}); check model.arguments") from None
    if needed > free:
        raise UserError(
            f"model.name = {name}: with gradients it takes at least {needed / 1e9:,.1f} GB, and {free / 1e9:,.1f} GB "
            "of memory are free; choose smaller values in model.arguments, or another network"
        )
    for key, side in (("size", data.size), ("resize", data.resize)):
        if side * side * channels * IMAGE_BYTES > free:
            raise UserError(
                f"data.{key} = {side}: a single image takes {side * side * channels * IMAGE_BYTES / 1e9:,.1f} GB of "
                f"memory, and {free / 1e9:,.1f} GB are free; choose a smaller one"
            )


def check_size(network: Network, recipe: Recipe, channels: int) -> None:
    """Raise UserError if the images do not suit the network: too small, or not divisible by the size of a patch."""
    size, arch = recipe.data.size, network.arch
    ours = arch["name"] in MODELS  # convolutions and poolings, which see larger images too
    usual = size == network.usual_size or (ours and size > network.usual_size)
    if arch["name"] == "custom" or (usual and network.windows == 1):
        return
    make = partial(create, arch["name"], arch["classes"], channels, **arch["arguments"])
    try:
        if ours:
            twin, device = unset_twin(make)
            with torch.no_grad():
                twin(torch.zeros(1, channels, size, size, device=device))
        else:  # on the meta device, without using memory or time
            with torch.device("meta"):
                twin = make().eval()
                if network.windows > 1 and twin.run(torch.empty(1, channels, size, size), stop="head").dim() != 4:
                    raise UserError(
                        f"model.head.windows: {arch['name']} has no feature map below its head; leave it out"
                    )
                twin(torch.empty(1, channels, size, size))
    except (RuntimeError, AssertionError, ValueError) as error:  # such as a size that is not divisible by the patch
        raise UserError(
            f"data.size = {size}: does not suit {arch['name']}, which is normally used with {network.usual_size} "
            f"({one_line(error)})"
        ) from None


def preprocessing_of(recipe: Recipe, channels: int, weights: Normalization | None) -> Preprocessing:
    """The preprocessing of evaluation. With `normalize = "data"`, mean and std are measured later, on the pixels."""
    data = recipe.data
    mean, std = (0.0,) * channels, (1.0,) * channels
    if data.normalize == "weights" and weights is not None:
        mean, std = weights
    elif data.normalize in ("weights", "imagenet"):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if len(mean) != channels:  # color statistics for gray images: their mean over the channels is close enough
        mean, std = (float(np.mean(mean)),) * channels, (float(np.mean(std)),) * channels
    return Preprocessing(data.resize, data.size, data.fit, data.interpolation, channels, mean, std, data.bits or 16)
