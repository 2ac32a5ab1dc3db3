"""Reading weight files: tensors by name and the metadata about them. No code in a file is ever executed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from pickle import UnpicklingError  # only to catch the exception; nothing here unpickles
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from linnaeus.errors import UserError, first_line, refuse_unreadable
from linnaeus.models.weights.pretrained import HALF, IMAGENET_MEAN, IMAGENET_STD, PretrainedWeights
from linnaeus.models.weights.sharded import is_index, open_shards

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts store the weights in a checkpoint that holds other things too."""

NORMALIZATIONS = {
    "torchvision": (IMAGENET_MEAN, IMAGENET_STD),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": (HALF, HALF),
}
"""Name in a file's metadata -> (mean, standard deviation), one value per channel."""

BESIDE_WEIGHTS = "unknown."  # prefix of the tensors of our model files that are no weights of the network

INDEPENDENT_ARGUMENTS = ("zero_init", "dropout", "aux", "head_stages", "head_windows")
"""Arguments of a network that do not change what its trained tensors mean, so they are not taken from a model file."""


@dataclass(frozen=True)
class WeightsInfo:
    """What is known about a set of weights besides its tensors. None: unknown."""

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    size: int | None = None
    interpolation: str | None = None
    fit: str | None = None
    license: str = ""
    gated: bool = False

    @classmethod
    def of(cls, entry: PretrainedWeights) -> WeightsInfo:
        """The information that the table of pretrained weights has."""
        return cls(**{field.name: getattr(entry, field.name) for field in fields(cls)})


def read_weights(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Read the tensors of a file, floating-point ones as float32, and what the file says about them.

    `.safetensors` files are read as such, an index of them with its shards, all others as torch files in the
    tensors-only mode. The weights may be nested under a key such as `state_dict`, and their names may start with
    `module.`.
    Raises UserError, naming the file, if it is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such weights file; check the path, or see `linnaeus weights list`")
    refuse_unreadable(path)
    if is_index(path):
        tensors = {name: file.get_tensor(name) for name, file in open_shards(path).items()}
        info = WeightsInfo()
    elif path.suffix == ".safetensors":
        tensors, info = _read_safetensors(path)
    else:
        tensors, info = _read_torch(path), WeightsInfo()
    if not tensors:
        raise UserError(f"{path}: contains no tensors")
    if all(name.startswith("module.") for name in tensors):  # saved from inside DataParallel or DDP
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    tensors = _with_our_names(tensors)
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, info


def _with_our_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """ResNets that call the head `linear` and the projections `shortcut`, as many for CIFAR do, under our names."""
    if not {"conv1.weight", "layer1.0.conv1.weight", "linear.weight"} <= tensors.keys():
        return tensors
    return {
        re.sub(r"^linear\.", "fc.", name).replace(".shortcut.", ".downsample."): tensor
        for name, tensor in tensors.items()
    }


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], WeightsInfo]:
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if not name.startswith(BESIDE_WEIGHTS)]  # noqa: SIM118 - no mapping
            return {name: file.get_tensor(name) for name in names}, _info_from_metadata(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a complete safetensors file ({error}); download it again") from None


def _read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # arbitrary bytes make torch's readers fail with many different exceptions
        raise _not_read(path, error) from None
    # Training programs wrap the weights in a dict with optimizer and epoch.
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: contains a {type(content).__name__}, not a state_dict of named tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor; save only the state_dict")
    return dict(content)


def _not_read(path: Path, error: Exception) -> UserError:
    """The error for a file that torch cannot load."""
    with path.open("rb") as file:
        start = file.read(2)
    if start and start != b"PK" and start[:1] != b"\x80":  # neither a zip nor a pickle, as torch writes
        return UserError(f"{path}: neither a torch file nor safetensors; give a .pth or .safetensors file")
    if isinstance(error, UnpicklingError):
        return UserError(
            f"{path}: contains Python objects besides tensors, or is damaged; nothing in it was executed. "
            "If you have the program that wrote it, save model.state_dict() only"
        )
    return UserError(f"{path}: not a complete torch file ({first_line(error)}); download it again")


def _info_from_metadata(path: Path, metadata: Mapping[str, str]) -> WeightsInfo:
    """The information in a safetensors header.

    Model files of Linnaeus have it under `linnaeus`. Other files may have the keys `arch`, `stride_in`, `branch5x5`,
    `shortcut`, `normalization`, `resize`, `size`, `interpolation` and `license`.
    """
    try:
        if "linnaeus" in metadata:
            return _info_from_model_header(json.loads(metadata["linnaeus"]))
        arguments = {key: metadata[key] for key in ("stride_in", "branch5x5", "shortcut") if key in metadata}
        normalization = metadata.get("normalization") or metadata.get("normalisation")
        mean, std = (None, None) if normalization is None else _parse_normalization(normalization)
        resize, size = (int(metadata[key]) if key in metadata else None for key in ("resize", "size"))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: cannot interpret its header ({type(error).__name__}: {error})") from None
    return WeightsInfo(
        metadata.get("arch"),
        arguments,
        mean,
        std,
        resize,
        size,
        metadata.get("interpolation"),
        license=metadata.get("license", ""),
    )


def _info_from_model_header(header: dict[str, Any]) -> WeightsInfo:
    arch, preprocessing = header["arch"], header["preprocessing"]
    return WeightsInfo(
        model=arch["name"],
        arguments={key: value for key, value in arch["arguments"].items() if key not in INDEPENDENT_ARGUMENTS},
        mean=tuple(preprocessing["mean"]),
        std=tuple(preprocessing["std"]),
        resize=preprocessing["resize"],
        size=preprocessing["size"],
        interpolation=preprocessing["interpolation"],
        fit=preprocessing.get("fit"),
        license=str((header.get("data") or {}).get("weights_license", "")),
    )


def _parse_normalization(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """'torchvision', or '{"mean": […], "std": […]}' -> (mean, standard deviation)."""
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    values = json.loads(text) if text.startswith("{") else {}
    if not values:
        raise ValueError(f"unknown normalization {text!r}; choose from {', '.join(NORMALIZATIONS)}")
    return tuple(map(float, values["mean"])), tuple(map(float, values["std"]))
