"""Adapting pretrained tensors to a network with other classes, channels or auxiliary heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models import MODELS, arguments_of, create
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.network import Network
from linnaeus.models.weights.files import WeightsInfo, read_weights
from linnaeus.models.weights.pretrained import PRETRAINED, PretrainedWeights
from linnaeus.text import first_few

AUXILIARY = ("aux1.", "aux2.")  # name prefixes of the auxiliary heads of Inception


def trained_arguments(
    info: WeightsInfo, tensors: Mapping[str, Tensor], model: str, chosen: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], list[str]]:
    """The arguments of network `model` that the weights were trained with, and one note on each that matters.

    `chosen` are the arguments that the user set, and `source` names the weights in messages. Raises UserError if the
    user chose another value: the tensors fit either way, and the accuracy would silently drop.
    """
    defaults = arguments_of(model)
    arguments = {key: value for key, value in info.arguments.items() if key in defaults}
    notes = []
    branch = tensors.get("inception3a.branch3.1.conv.weight")
    if "branch5x5" in defaults and branch is not None:
        arguments["branch5x5"] = f"{branch.shape[2]}x{branch.shape[3]}"  # the tensor shape tells the kernel size
    if "shortcut" in defaults and any(".downsample." in name for name in tensors):
        arguments["shortcut"] = "B"  # only projections have tensors
    for key, value in arguments.items():
        if key in chosen and chosen[key] != value:
            raise UserError(
                f"{source}: was trained with {key} = {value!r}, not {chosen[key]!r}; remove {key} from the arguments"
            )
        if value != defaults[key] and key != "config":
            notes.append(f"{key} = {value!r} is set to match the weights")
    # The tensors cannot tell where the stride sits: both kinds of bottleneck have the same shapes.
    bottlenecks = any(name.endswith(".conv3.weight") for name in tensors)
    if "stride_in" in defaults and bottlenecks and "stride_in" not in arguments and "stride_in" not in chosen:
        notes.append(
            f"the file does not say which convolution of a bottleneck has the stride; assuming "
            f"{defaults['stride_in']}; set stride_in if that is wrong"
        )
    return arguments, notes


def recognize_model(tensors: Mapping[str, Tensor]) -> str | None:
    """The first network whose tensors, apart from the head, have these names and shapes; None if there is none."""
    shapes = _shapes_below_the_head(tensors)
    for model in MODELS:
        with torch.device("meta"):  # shapes only: nothing is allocated or initialized
            if _shapes_below_the_head(create(model, classes=2).state_dict()) == shapes:
                return model
    return None


def check_shortcut(known: Mapping[str, Any], network: Network, source: str) -> None:
    """Raise a UserError if nothing tells how the shortcuts of a CIFAR ResNet were padded with zeros in training.

    The tensors fit both kinds of padding, and the wrong one leaves hardly any accuracy. `known` are the arguments that
    the weights or the user state.
    """
    if "shortcut" in network.arch["arguments"] and "shortcut" not in known:
        raise UserError(
            f"{source}: fits both kinds of zero-padded shortcuts, and the file does not say which it was trained with; "
            "set model.arguments.shortcut to A (zeros after the channels) or A-centered (half of them before)"
        )


def adapt_tensors(tensors: dict[str, Tensor], network: Network, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` changed to fit `network` where that is sound, ready for `load_state_dict`, and a note on each change.

    - Another number of classes: the network keeps its new head.
    - One input channel: the kernels of the first convolution are summed over the colors.
    - Auxiliary heads keep their fresh initialization.
    - Missing counters of BatchNorm (`num_batches_tracked`) keep their initial value.

    Raises UserError, naming the tensors, for any other difference.
    """
    initial = network.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(AUXILIARY)}
    notes = _adapt_head(tensors, initial, network.head_stages)
    first = next(name for name, module in network.named_modules() if isinstance(module, nn.Conv2d))
    notes += _adapt_channels(tensors, initial, f"{first}.weight")
    fresh = {name for name in initial if name.startswith(AUXILIARY)}
    if fresh:
        notes.append("the auxiliary heads are initialized from scratch")
    fresh |= {name for name in initial if name.endswith(".num_batches_tracked") and name not in tensors}
    tensors |= {name: initial[name] for name in fresh}
    _check_matches(tensors, initial, source)
    return tensors, notes


def check_importable(entry: PretrainedWeights, path: Path, checksum: str) -> None:
    """Raise a UserError if a file with another checksum than the published one cannot be the weights of `entry`."""
    # Under its published name the file can only be damaged.
    if path.name == entry.file and entry.url:
        raise UserError(
            f"{path}: its SHA-256 begins with {checksum[:8]}, but that of {entry.name} with {entry.sha256[:8]}; "
            "the file is incomplete or altered: download it again"
        )
    # Another published file under a wrong name would fit some networks and be wrong.
    other = next((e.name for e in PRETRAINED.values() if e.sha256 and checksum.startswith(e.sha256)), None)
    if other is not None:
        raise UserError(f"{path}: is the published file of {other}; run: linnaeus weights import {other} {path}")
    tensors, info = read_weights(path)
    library = library_of(entry.model)
    if library is not None:
        if library.convert is None:
            raise UserError(f"{entry.name}: contains its weights; use it with --model {entry.name}")
        tensors, changed = library.convert(entry.model, tensors, dict(entry.arguments), str(path))
        adapt_tensors(tensors, create(entry.model, 2, **{**entry.arguments, **changed}), str(path))
        return
    table = WeightsInfo.of(entry)
    claims: list[tuple[str, Any, Any]] = [("arch", info.model, table.model)]
    claims += [(key, value, table.arguments.get(key)) for key, value in info.arguments.items()]
    claims += [("mean", info.mean, table.mean), ("std", info.std, table.std)]
    # What the header claims is believed only where it agrees with the table.
    for key, value, expected in claims:
        if value is not None and expected is not None and value != expected:
            raise UserError(
                f"{path}: its header says {key} = {value}, but {entry.name} has {expected}; "
                "`linnaeus weights list` shows all names"
            )
    with torch.device("meta"):
        network = create(entry.model, classes=1000, **entry.arguments)
    if "fc.weight" not in tensors or len(tensors["fc.weight"]) != 1000:
        raise UserError(
            f"{path}: has no fc.weight for the 1000 classes of {entry.name}; use the file with --weights {path}"
        )
    adapt_tensors(tensors, network, str(path))  # for its checks of names and shapes


def _adapt_head(tensors: dict[str, Tensor], initial: dict[str, Tensor], head_stages: Sequence[str]) -> list[str]:
    """Put the network's new head into `tensors` if theirs is missing or has other classes or inputs.

    `head_stages` are the stages that the head sees, empty if it sees the last stage alone.
    """
    weight = tensors.get("fc.weight")
    classes, features = initial["fc.weight"].shape
    if weight is not None and (weight.ndim != 2 or (weight.shape[1] != features and not head_stages)):
        return []  # not a head of this network: `_check_matches` refuses it together with the other differences
    if weight is not None and weight.shape == initial["fc.weight"].shape:
        return [f"kept the head: the weights have the same {classes} classes"]
    tensors |= {name: initial[name] for name in ("fc.weight", "fc.bias")}
    if head_stages:
        return [f"new head for {classes} classes on {features} features of {', '.join(head_stages)}"]
    origin = f"the weights have {len(weight)}" if weight is not None else "the weights have no head"
    return [f"new head for {classes} classes ({origin})"]


def _adapt_channels(tensors: dict[str, Tensor], initial: dict[str, Tensor], first: str) -> list[str]:
    """Sum the kernels of the first convolution over the colors if the network has one input channel.

    The result equals showing the gray image to the color network in all three channels.
    """
    weight = tensors.get(first)
    if weight is None or initial[first].shape[1] != 1 or weight.ndim != 4 or weight.shape[1] != 3:
        return []
    tensors[first] = weight.sum(1, keepdim=True)
    return [f"one input channel: {first} is summed over the three colors"]


def _check_matches(tensors: Mapping[str, Tensor], initial: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names the missing and unknown tensors and those of another shape, if there are any."""
    missing = [name for name in initial if name not in tensors]
    unknown = [name for name in tensors if name not in initial]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(initial[name].shape)}"
        for name in initial
        if name in tensors and tensors[name].shape != initial[name].shape
    ]
    problems = [
        f"{label} {first_few(names)}"
        for label, names in (("missing:", missing), ("unknown:", unknown), ("shape:", shapes))
        if names
    ]
    if problems:
        # The most common cause is the wrong network, which the tensors give away.
        model = recognize_model(tensors)
        hint = f"; they fit {model}" if model else ""
        raise UserError(f"{source}: these weights do not fit the network: {'; '.join(problems)}{hint}")


def _shapes_below_the_head(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {
        name: tensor.shape
        for name, tensor in tensors.items()
        if not name.startswith(("fc.", *AUXILIARY)) and not name.endswith(".num_batches_tracked")
    }
