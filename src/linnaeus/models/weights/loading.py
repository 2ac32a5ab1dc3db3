"""Loading trained weights, by name or from a file, into a new network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from linnaeus.errors import UserError
from linnaeus.models import arguments_of, constructor, create
from linnaeus.models.backbones.hub_files import Fetch, Progress
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.network import Network
from linnaeus.models.weights.adapt import adapt_tensors, check_shortcut, recognize_model, trained_arguments
from linnaeus.models.weights.files import WeightsInfo, read_weights
from linnaeus.models.weights.pretrained import IMAGENET_MEAN, IMAGENET_STD, PRETRAINED
from linnaeus.models.weights.sharded import weights_in
from linnaeus.models.weights.store import find, lookup, pull, sha256_of, verify


@dataclass
class LoadedWeights:
    """A network with trained weights, and how to use it."""

    model: Network
    source: str  # the name of pretrained weights, or the path of a file
    notes: list[str]  # one line for each adaptation and each assumption
    # `mean` and `std`, one value per channel; `resize`, `size` and `interpolation`, None if unknown.
    normalization: dict[str, Any]
    license: str = ""  # license of the weights, such as `apache-2.0`; empty if unknown
    gated: bool = False  # whether the authors ask for consent before a download


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
    library = library_of(model)
    if library is not None and library.convert is None:
        return _own_weights(model, weights, create(model, classes, channels, **arguments))
    path, info, source = _resolve(model, weights, fetch, progress)
    tensors, header = read_weights(path)
    # The table is right about our own networks; in a file of a library the owner states what is right about it.
    if info is None:
        info = header
    else:
        info = _merged(header, info) if library else replace(info, license=header.license or info.license)
    if info.model is not None and info.model not in (model, library and model.removeprefix(library.prefix)):
        raise UserError(f"{source}: these weights are for {info.model}, not for {model}")
    if library is not None and library.convert is not None and not any(name.startswith("body.") for name in tensors):
        info = _merged(info, WeightsInfo.of(library.weights(model, path.parent)))
        tensors, changed = library.convert(model, tensors, {**arguments, **info.arguments}, source)
        info = replace(info, arguments={**info.arguments, **changed})
    notes = [f"{source}: {path}" if source != str(path) else source]
    trained, argument_notes = trained_arguments(info, tensors, model, arguments, source)
    network = create(model, classes, channels, **(arguments | trained))
    tensors, changes = adapt_tensors(tensors, network, source)
    check_shortcut(arguments | trained, network, source)
    network.load_state_dict(tensors)
    return _loaded(network, source, notes + argument_notes + changes, info)


def _loaded(network: Network, source: str, notes: list[str], info: WeightsInfo) -> LoadedWeights:
    """The network with what is known about its weights; notes on what had to be assumed are added."""
    if info.mean is None:
        notes.append("the file does not say how its images were normalized: assuming ImageNet's mean and std")
        info = replace(info, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if info.license:
        notes.append(f"license {info.license}")
    network.license = info.license
    normalization = _normalization(info, network.arch["channels"])
    return LoadedWeights(network, source, notes, normalization, info.license, info.gated)


def _own_weights(model: str, weights: str, network: Network) -> LoadedWeights:
    """A network that comes with its weights, and the preprocessing that its arguments state."""
    if weights not in ("imagenet", "pretrained", model):
        raise UserError(f"{weights}: {model} contains its weights; leave out the option weights")
    info, stated = WeightsInfo.of(lookup(model)), network.arch["arguments"]["normalize"]
    notes = [f"{model}: frozen, {network.head_input} features"]
    if stated is None:
        notes.append(
            "the graph does not say how its images are normalized: assuming ImageNet's; set arguments.normalize"
        )
    else:
        info = replace(info, mean=tuple(stated["mean"]), std=tuple(stated["std"]))
    return _loaded(network, model, notes, info)


def network_arguments(model: str, weights: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """`arguments` with the configuration that the weights state, without which no `hf/REPO` can be created."""
    if weights == "none" or "config" in arguments or "config" not in arguments_of(model):
        return dict(arguments)
    return {**arguments, "config": describe_weights(weights, model).arguments["config"]}


def describe_weights(weights: str, model: str | None = None) -> WeightsInfo:
    """What is known about weights, named as in `load_weights`, without loading or downloading them.

    The network of a file that does not name it is recognized by the names and shapes of its tensors.
    Raises UserError if the weights are unknown or missing.
    """
    if weights in ("imagenet", "pretrained"):
        external = model is not None and library_of(model) is not None
        return WeightsInfo.of(lookup(str(model))) if external else WeightsInfo(model)
    file = file_of(weights)
    if file is None:
        return WeightsInfo.of(lookup(weights))
    info = _recognize(file)[0]
    if info is None:
        tensors, info = read_weights(file)
        # The tensors themselves tell the network where the header does not.
        info = info if info.model is not None else replace(info, model=model or recognize_model(tensors))
    model = model or info.model
    library = library_of(model or "")
    # The configuration beside the file completes what the header lacks.
    if library is not None and model is not None and (info.size is None or "config" not in info.arguments):
        info = _merged(info, WeightsInfo.of(library.weights(model, file.parent)))
    return info


def _merged(info: WeightsInfo, other: WeightsInfo) -> WeightsInfo:
    """`info`, with what it does not say from `other`."""
    known = {key: value for key, value in vars(info).items() if value and key != "arguments"}
    return replace(other, **known, arguments={**other.arguments, **info.arguments})


def file_of(weights: str) -> Path | None:
    """The file that `weights` refers to, perhaps in a run folder; None for the name of pretrained weights."""
    file = Path(weights).expanduser()
    file = weights_in(file) if file.is_dir() else file
    named = weights in PRETRAINED or not (file.is_file() or file.suffix in (".safetensors", ".pth", ".pt", ".bin"))
    return None if named else file


def _resolve(
    model: str, weights: str, fetch: Fetch | None, progress: Progress | None
) -> tuple[Path, WeightsInfo | None, str]:
    """(file, information from the table, name) that `weights` refers to.

    The information is None, and the name the path, for a file that is not in the table.
    """
    file = file_of(weights)
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


def _preferred(model: str) -> str:
    """The pretrained weights that "imagenet" means: the first with a local file, otherwise the first in the table."""
    if library_of(model) is not None:
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
