"""Loading trained weights, by name or from a file, into a new network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.models import constructor, create
from linnaeus.models.adapt import adapt_tensors, check_shortcut, recognize_model, trained_arguments
from linnaeus.models.network import Network
from linnaeus.models.pretrained import IMAGENET_MEAN, IMAGENET_STD, PRETRAINED
from linnaeus.models.timm_backbone import PREFIX, body_tensors
from linnaeus.models.weight_files import WeightsInfo, read_weights
from linnaeus.models.weight_store import Fetch, Progress, find, lookup, pull, sha256_of, verify


@dataclass
class LoadedWeights:
    """A network with trained weights, and how to use it."""

    model: Network
    source: str
    """The name of pretrained weights, or the path of a file."""
    notes: list[str]
    """One line for each adaptation and each assumption."""
    normalization: dict[str, Any]
    """`mean` and `std`, one value per channel; `resize`, `size` and `interpolation`, None if unknown."""
    license: str = ""
    """License of the weights, such as `apache-2.0`; empty if unknown."""


def load_weights(
    model: str,
    weights: str,
    *,
    classes: int,
    channels: int = 3,
    arguments: Mapping[str, Any] | None = None,
    fetch: Fetch | None = None,
    progress: Progress | None = None,
) -> LoadedWeights:
    """Create the network `model` for (classes, channels) and load trained weights into it.

    `weights` is "imagenet" (the preferred pretrained weights of the network; a local file before a download), the name
    of pretrained weights, a weights file, or a run folder. Nothing is downloaded without `fetch`. `arguments` are the
    network's arguments that the user chose; those that the weights were trained with are added to them.
    Raises UserError if the weights are unknown, missing or damaged, or do not fit the network or its arguments.
    """
    arguments = dict(arguments or {})
    constructor(model)  # raises a UserError with a suggestion for an unknown name
    path, info, source = _resolve(model, weights, fetch, progress)
    tensors, info_in_file = read_weights(path)
    info = info if info is not None else info_in_file
    if model.startswith(PREFIX) and not any(name.startswith("body.") for name in tensors):
        tensors, info = _timm_weights(model, tensors, info, source)
    if info.model is not None and info.model != model:
        raise UserError(f"{source}: these weights are for {info.model}, not for {model}")
    notes = [f"{source}: {path}" if source != str(path) else source]
    trained, argument_notes = trained_arguments(info, tensors, model, arguments, source)
    network = create(model, classes, channels, **(arguments | trained))
    tensors, changes = adapt_tensors(tensors, network, source)
    check_shortcut(arguments | trained, network, source)
    network.load_state_dict(tensors)
    notes += argument_notes + changes
    if info.mean is None:
        notes.append("the file does not say how its images were normalized: assuming ImageNet's mean and std")
        info = replace(info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    published = model if model.startswith(PREFIX) else source if source in PRETRAINED else None
    license = "" if published is None else lookup(published).license
    if license:
        notes.append(f"license {license}")
    network.license = license
    return LoadedWeights(network, source, notes, _normalization(info, channels), license)


def describe_weights(weights: str, model: str | None = None) -> WeightsInfo:
    """What is known about weights, named as in `load_weights`, without loading or downloading them.

    The network of a file that does not name it is recognized by the names and shapes of its tensors.
    Raises UserError if the weights are unknown or missing.
    """
    if weights in ("imagenet", "pretrained"):
        return WeightsInfo(model)
    file = _file_of(weights)
    if file is None:
        return WeightsInfo.of(lookup(weights))
    info = _recognize(file)[0]
    if info is None:
        tensors, info = read_weights(file)
        info = info if info.model is not None else replace(info, model=recognize_model(tensors))
    return info


def _file_of(weights: str) -> Path | None:
    """The file that `weights` refers to, perhaps in a run folder; None for the name of pretrained weights."""
    file = Path(weights).expanduser()
    file = file / "model.safetensors" if file.is_dir() else file
    named = weights in PRETRAINED or not (file.is_file() or file.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    return None if named else file


def _resolve(
    model: str, weights: str, fetch: Fetch | None, progress: Progress | None
) -> tuple[Path, WeightsInfo | None, str]:
    """(file, information from the table, name) that `weights` refers to.

    The information is None, and the name the path, for a file that is not in the table.
    """
    file = _file_of(weights)
    if file is not None:
        return (file, *_recognize(file))
    if weights in ("imagenet", "pretrained"):
        weights = _preferred(model)
    entry = lookup(weights)
    if entry.model != model:
        raise UserError(f"{weights}: these weights are for {entry.model}, not for {model}")
    path = find(weights)
    if path:
        return verify(entry, path), WeightsInfo.of(entry), weights
    if fetch is None or not entry.url:
        command = f"pull {weights}" if entry.url else f"import {weights} FILE"
        raise UserError(f"{weights}: there is no local file; run: linnaeus weights {command}")
    return pull(weights, fetch=fetch, progress=progress), WeightsInfo.of(entry), weights


def _timm_weights(
    model: str, tensors: dict[str, Tensor], info: WeightsInfo, source: str
) -> tuple[dict[str, Tensor], WeightsInfo]:
    """Tensors under timm's names as those of a `TimmBackbone`, with the preprocessing of timm's configuration."""
    if info.model not in (None, model, model.removeprefix(PREFIX)):
        raise UserError(f"{source}: these weights are for {info.model}, not for {model}")
    return body_tensors(model, tensors), WeightsInfo.of(lookup(model))


def _preferred(model: str) -> str:
    """The pretrained weights that "imagenet" means: the first with a local file, otherwise the first in the table."""
    if model.startswith(PREFIX):
        return model
    names = [name for name, entry in PRETRAINED.items() if entry.model == model]
    if not names:
        models = ", ".join(dict.fromkeys(entry.model for entry in PRETRAINED.values()))
        raise UserError(f"{model}: there are no pretrained weights for it, only for {models}; set weights = none")
    return next((name for name in names if find(name)), names[0])


def _recognize(file: Path) -> tuple[WeightsInfo | None, str]:
    """(information, name) of a file that has the checksum of pretrained weights; (None, path) of any other."""
    if file.is_file():
        checksum = sha256_of(file)
        for entry in PRETRAINED.values():
            if checksum.startswith(entry.sha256):
                return WeightsInfo.of(entry), entry.name
    return None, str(file)


def _normalization(info: WeightsInfo, channels: int) -> dict[str, Any]:
    """Mean and std with one value per channel, and the sizes.

    A network with one channel that starts from weights for color images gets the average over the colors.
    """
    assert info.mean is not None
    assert info.std is not None
    values: dict[str, Any] = {"mean": info.mean, "std": info.std}
    if channels == 1 and len(info.mean) == 3:
        values = {key: (round(sum(value) / 3, 6),) for key, value in values.items()}
    return values | {"resize": info.resize, "size": info.size, "interpolation": info.interpolation}
