"""The network of a model file: built from its description, and compared with its weights before they are loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from linnaeus.errors import UserError, one_line
from linnaeus.models import Network, create
from linnaeus.models.backbones.libraries import library_of

if TYPE_CHECKING:
    from linnaeus.modelfile.safetensors import ModelFile

# What safetensors and torch raise for files that are no model file, or were made to do harm.
UNREADABLE = (SafetensorError, OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError)


def build(path: Path, arch: dict[str, Any]) -> Network:
    """The network that the file names, by its four entries."""
    arguments = {**arch["arguments"], **{key: arch[key] for key in ("name", "classes", "channels")}}
    library = library_of(arch["name"])
    if library is not None:
        try:
            library.load()
        except UserError as error:  # the file is fine: what is missing is on this machine
            raise UserError(f"{path}: {one_line(error)}") from None
    try:
        return create(**arguments)
    except (*UNREADABLE, UserError) as error:
        raise UserError(f"{path}: names a network that cannot be made ({one_line(error)}); get a fresh copy") from None


def check_weights(path: Path, about: ModelFile, model: Network, tensors: dict[str, Tensor]) -> None:
    """Raise UserError unless the file has just the tensors of `model`, in name, shape and type."""
    expected = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    stored = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    for name in [*expected, *stored]:
        if expected.get(name) != stored.get(name):
            has, needs = (
                " ".join(map(str, entries[name])) if name in entries else "none" for entries in (stored, expected)
            )
            raise UserError(
                f"{path}: the weights do not fit the network {about.arch['name']}: "
                f"of {name} the file has {has}, the network {needs}"
            )


def check_finite(path: Path, tensors: dict[str, Tensor]) -> None:
    """Raise UserError if a weight is NaN or infinite: every answer would be the first class."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} has values that are not finite, so it cannot predict; train it again")


def check_output(path: Path, about: ModelFile, model: Network) -> None:
    """Raise UserError unless an image of the file's size becomes one logit per class."""
    size, channels, classes = about.preprocessing.size, about.preprocessing.channels, about.arch["classes"]
    references = about.unknown["features"] if about.unknown and about.unknown["references"] else 0
    # Only references that are compared with features must have their length.
    features = 0
    try:
        with torch.inference_mode():
            device = next((parameter.device for parameter in model.parameters()), None)
            x = torch.zeros(1, channels, size, size, device=device)
            if references and model.has_features:
                vectors, logits = model.features_and_logits(x)
                features = vectors.shape[1]
            else:
                logits = model(x)
            shape = tuple(logits.shape)
    except Exception as error:  # with a network of the user's own, anything
        raise UserError(
            f"{path}: the network {about.arch['name']} does not take images of {size} pixels ({one_line(error)}); "
            "get a fresh copy"
        ) from None
    if shape != (1, classes):
        raise UserError(f"{path}: the network {about.arch['name']} gives {shape} for an image, not (1, {classes})")
    if features != references:
        raise UserError(
            f"{path}: its references for unknown images have {references} features, and the network "
            f"{about.arch['name']} has {features}; get a fresh copy"
        )
