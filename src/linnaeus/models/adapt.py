"""Weight files: reading them without running anything that they hold, and fitting them to a network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError  # the name of an error, nothing that reads
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models import MODELS, arguments_of, create
from linnaeus.models.network import Network
from linnaeus.models.published import HALF, IMAGENET_MEAN, IMAGENET_STD, Published

WRAPPERS = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the weights among other things."""

NORMALISATIONS = {
    "torchvision": (IMAGENET_MEAN, IMAGENET_STD),
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "half": (HALF, HALF),
}

FREE = ("zero_init", "dropout", "aux", "head_stages")
"""Arguments of a network that its trained tensors do not depend on."""

AUXILIARY = ("aux1.", "aux2.")


@dataclass(frozen=True)
class Facts:
    """What is known of a set of weights besides its tensors; None where nobody says."""

    model: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: int | None = None
    size: int | None = None
    interpolation: str | None = None


def facts_of(published: Published) -> Facts:
    """What the table says."""
    p = published
    return Facts(p.model, p.arguments, p.mean, p.std, p.resize, p.size, p.interpolation)


def read_weights(path: Path) -> tuple[dict[str, Tensor], Facts]:
    """Tensors by name, floating ones as float32, and what the file says of itself.

    Reads `.safetensors`, and anything else as a torch file in its tensors-only mode: nothing in it is executed. The
    weights may lie under a key such as `state_dict`, and their names may begin with `module.`.
    Raises UserError, naming the file, for anything else.
    """
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of weights")
    if path.suffix == ".safetensors":
        tensors, facts = read_safetensors(path)
    else:
        tensors, facts = read_torch(path), Facts()
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    if all(name.startswith("module.") for name in tensors):  # saved from inside a parallel wrapper
        tensors = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}, facts


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Facts]:
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, facts_in(path, file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({error}); fetch it again") from None


def read_torch(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:
        raise UserError(
            f"{path}: holds Python objects beside tensors, or is damaged; nothing in it was run. "
            "Where you have its program, save model.state_dict() alone"
        ) from None
    except Exception as error:  # bytes of any kind get here, and torch's readers fail on them in as many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: not a whole torch file ({reason}); fetch it again") from None
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, not tensors by name (a state_dict)")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name!r} is a {type(value).__name__}, not a tensor; save the state_dict alone")
    return dict(content)


def facts_in(path: Path, metadata: Mapping[str, str]) -> Facts:
    """What a safetensors header says: a model file's of ours, or `arch`, `stride_in`, `branch5x5`, `normalisation`."""
    try:
        if "linnaeus" in metadata:
            header = json.loads(metadata["linnaeus"])
            arch, images = header["arch"], header["preprocessing"]
            arguments = {k: v for k, v in arch["arguments"].items() if k not in FREE}
            mean, std = tuple(images["mean"]), tuple(images["std"])
            return Facts(arch["name"], arguments, mean, std, *(images[k] for k in ("resize", "size", "interpolation")))
        arguments = {key: metadata[key] for key in ("stride_in", "branch5x5") if key in metadata}
        mean_std = normalisation_in(metadata["normalisation"]) if "normalisation" in metadata else (None, None)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its header cannot be understood ({type(error).__name__}: {error})") from None
    return Facts(metadata.get("arch"), arguments, *mean_std)


def normalisation_in(text: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """'torchvision', or '{"mean": […], "std": […]}' -> mean and standard deviation."""
    if text in NORMALISATIONS:
        return NORMALISATIONS[text]
    values = json.loads(text) if text.startswith("{") else {}
    if not values:
        raise ValueError(f"normalisation {text!r} is none of {', '.join(NORMALISATIONS)}")
    return tuple(map(float, values["mean"])), tuple(map(float, values["std"]))


def dictated(
    facts: Facts,
    tensors: Mapping[str, Tensor],
    model_name: str,
    chosen: Mapping[str, Any],
    source: str,
    notes: list[str],
) -> dict[str, Any]:
    """The network's arguments that these weights were trained with; `notes` gets a line on each that matters.

    Raises UserError where the user chose otherwise: tensors fit either way, and accuracy is lost without an error.
    """
    known = arguments_of(model_name)
    found = {key: value for key, value in facts.arguments.items() if key in known}
    branch = tensors.get("inception3a.branch3.1.conv.weight")
    if "branch5x5" in known and branch is not None:
        found["branch5x5"] = f"{branch.shape[2]}x{branch.shape[3]}"  # this one the tensors do tell
    for key, value in found.items():
        if key in chosen and chosen[key] != value:
            raise UserError(f"{source}: trained with {key} = {value!r}, not {chosen[key]!r}; leave {key} out")
        if value != known[key]:
            notes.append(f"{key} = {value!r}, as the weights were trained with")
    bottlenecks = any(name.endswith(".conv3.weight") for name in tensors)
    if "stride_in" in known and bottlenecks and "stride_in" not in found and "stride_in" not in chosen:
        notes.append(
            f"the file does not say where its stride sits: {known['stride_in']} is assumed; set stride_in if not"
        )
    return found


def normalisation_for(channels: int, facts: Facts) -> dict[str, Any]:
    """Mean and std with a value a channel: for a gray network of color weights, the colors' average."""
    assert facts.mean is not None
    assert facts.std is not None
    values: dict[str, Any] = {"mean": facts.mean, "std": facts.std}
    if channels == 1 and len(facts.mean) == 3:
        values = {key: (round(sum(value) / 3, 6),) for key, value in values.items()}
    return values | {key: getattr(facts, key) for key in ("resize", "size", "interpolation")}


def fitted(tensors: dict[str, Tensor], network: Network, source: str) -> tuple[dict[str, Tensor], list[str]]:
    """`tensors` adapted to `network` where that is sound, ready to be loaded, and a line on each change.

    Another number of classes makes a new head; a network for one channel gets the sum of the first convolution's
    kernels; auxiliary heads start anew; counts of batches may be missing. Any other difference is refused by name.
    """
    own = network.state_dict()
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(AUXILIARY)}
    notes = fit_head(tensors, own, network.head_stages)
    notes += fit_channels(tensors, own, first_convolution(network))
    fresh = {name for name in own if name.startswith(AUXILIARY)}
    if fresh:
        notes.append("auxiliary heads start anew")
    fresh |= {name for name in own if name.endswith(".num_batches_tracked") and name not in tensors}
    tensors |= {name: own[name] for name in fresh}
    refuse_differences(tensors, own, source)
    return tensors, notes


def fit_head(tensors: dict[str, Tensor], own: dict[str, Tensor], widened: Sequence[str]) -> list[str]:
    """Put the network's own, new head into `tensors` where theirs has other classes or inputs, or is missing.

    `widened` names the stages that the network's head looks at, where it is not the last one alone.
    """
    weight = tensors.get("fc.weight")
    classes = len(own["fc.weight"])
    features = own["fc.weight"].shape[1]
    if weight is not None and (weight.ndim != 2 or (weight.shape[1] != features and not widened)):
        return []  # not the head of this network: refused with the other differences
    if weight is not None and weight.shape == own["fc.weight"].shape:
        return [f"head kept: {classes} classes, as the weights have"]
    tensors |= {name: own[name] for name in ("fc.weight", "fc.bias")}
    if widened:
        return [f"new head for {classes} classes, on {features} features of {', '.join(widened)}"]
    had = f"the weights have {len(weight)}" if weight is not None else "the weights have none"
    return [f"new head for {classes} classes ({had})"]


def fit_channels(tensors: dict[str, Tensor], own: dict[str, Tensor], first: str) -> list[str]:
    """Sum the first convolution's kernels over color where the network sees one channel: gray shown three times."""
    weight = tensors.get(first)
    if weight is None or own[first].shape[1] != 1 or weight.ndim != 4 or weight.shape[1] != 3:
        return []
    tensors[first] = weight.sum(1, keepdim=True)
    return [f"one channel: {first} is summed over the three colors"]


def first_convolution(network: nn.Module) -> str:
    """The name of the weight that sees the image."""
    return next(f"{name}.weight" for name, module in network.named_modules() if isinstance(module, nn.Conv2d))


def refuse_differences(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str) -> None:
    """Raise a UserError that names what is missing, unknown or of another shape, if anything is."""
    missing = [name for name in own if name not in tensors]
    unknown = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)} and should be {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    problems = [
        f"{what} {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"
        for what, names in (("missing:", missing), ("unknown:", unknown), ("shape:", shapes))
        if names
    ]
    if problems:
        other = fitting(tensors)
        hint = f"; they fit {other}" if other else ""
        raise UserError(f"{source}: these weights do not fit the network: {'; '.join(problems)}{hint}")


def fitting(tensors: Mapping[str, Tensor]) -> str:
    """The first model whose tensors have these names and shapes, whatever its head; "" where none has."""

    def shapes(found: Mapping[str, Tensor]) -> dict[str, torch.Size]:
        skipped = ("fc.", *AUXILIARY)
        return {
            name: tensor.shape
            for name, tensor in found.items()
            if not name.startswith(skipped) and not name.endswith(".num_batches_tracked")
        }

    own = shapes(tensors)
    for model in MODELS:
        with torch.device("meta"):  # the shapes without the work
            if shapes(create(model, classes=2).state_dict()) == own:
                return model
    return ""
