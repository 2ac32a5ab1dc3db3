"""The libraries that provide backbones, by the prefix of a model name, such as `timm/`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.models.backbones import (
    hub,
    hub_weights,
    onnx_backbone,
    onnx_features,
    timm_backbone,
    transformers_library,
)
from linnaeus.models.backbones.onnx_backbone import OnnxBackbone
from linnaeus.models.backbones.timm_backbone import TimmBackbone
from linnaeus.models.backbones.transformers_backbone import TransformersBackbone
from linnaeus.models.network import Network
from linnaeus.models.weights.pretrained import PretrainedWeights

Converter = Callable[[str, dict[str, Tensor], dict[str, Any], str], tuple[dict[str, Tensor], dict[str, Any]]]
"""(name, a state dict of the library, arguments of the network, its source) -> (tensors of our network, arguments)."""


@dataclass(frozen=True)
class Library:
    """How networks of a library are made and how their published weights are used."""

    prefix: str
    package: str  # its name in the package index
    # Imports it. Raises UserError, with the command that installs it, if that fails.
    load: Callable[[], Any]
    create: Callable[..., Network]
    # (name, a folder that may hold a copy of the repository) -> the entry for its pretrained weights.
    weights: Callable[[str, Path | None], PretrainedWeights]
    convert: Converter | None = None  # None where a network comes with its weights


LIBRARIES = (
    Library(
        timm_backbone.PREFIX,
        "timm",
        timm_backbone.library,
        TimmBackbone,
        timm_backbone.pretrained_weights,
        timm_backbone.body_tensors,
    ),
    Library(
        hub.PREFIX,
        "transformers",
        transformers_library.load,
        TransformersBackbone,
        hub_weights.pretrained_weights,
        transformers_library.body_tensors,
    ),
    Library(
        onnx_backbone.PREFIX,
        "onnxruntime",
        onnx_features.require,
        OnnxBackbone,
        onnx_backbone.pretrained_weights,
    ),
)


def library_of(name: str) -> Library | None:
    """The library that a network's name refers to; None for our own networks. UserError for `A+B`."""
    # The path of an ONNX graph may contain a plus.
    if "+" in name and all(part.isidentifier() or library_of(part) for part in name.split("+")):
        raise UserError(f"model {name!r}: several networks, which only `linnaeus probe` compares; name one")
    return next((library for library in LIBRARIES if name.startswith(library.prefix)), None)
