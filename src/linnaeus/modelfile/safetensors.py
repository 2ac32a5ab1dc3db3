"""model.safetensors: everything that prediction needs, in one file without code.

The file is plain safetensors. Its metadata has one entry, `linnaeus`, a JSON text; format 1 holds

    format          1
    arch            {"name", "classes", "channels", "arguments"}: what models.create() takes
    classes, names  class names in index order, and how to show them
    preprocessing   resize, size, fit, interpolation, channels, mean, std
    task            "multi-label" where an image may have several labels, or none; without it each has one
    calibration     null, or what was fitted on validation:
                        temperature   what logits are divided by; it changes no answer
                        split         on which it was fitted
                        abstention    target_risk and confidence of the test, n, smallest_n (images that the test
                                      takes), grouped (whether they came in groups), candidates (epochs from which
                                      these images chose the model; null or missing: unknown), estimated, tested and
                                      uncorrected (each threshold, answered, wrong; or null), and threshold: below this
                                      probability the model is unsure; null where none helps
                        curve         rows of threshold, answered, wrong, from which another error's is chosen
                    of a multi-label model: split, n, precision (null: thresholds maximize F1) and `labels`, for each
                    class scale and offset of its logit, and the threshold from which on it is given (null: never)
    unknown         null, or how unknown images are recognized: metric and k of the distance, references and features
                    (shape of the tensor `unknown.references`, float16), thresholds (distance, probability, and n,
                    accepted and target of the images that chose them, cross_validated of which trained the model), and
                    what was measured then; of small images thumbnails (rows of the tensor `unknown.thumbnails`) and
                    thumbnail_scale
    metrics         figures with their counts, by split
    data            source, kind, counts by split, fingerprint; forgotten: what `linnaeus forget` removed, a list of
                    images (number), counts by split, and the SHA-256 of their hashes; no names
    recipe          the recipe as resolved
    versions        of linnaeus, torch, python, and the library that the network is of
    tensors         SHA-256 of the tensors: names, types, shapes and bytes in name order
    sha256          of all other entries as canonical JSON (sorted keys, ASCII, no blanks), and so of the tensors too;
                    files without `tensors`, which earlier versions wrote, have here the value of `tensors`

`schema.py` says which values an entry may have, and where entries can be added.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from linnaeus.errors import MODEL, UserError, no_model, one_line, refuse_name, refuse_unreadable
from linnaeus.files import atomic
from linnaeus.modelfile.build import UNREADABLE, build, check_finite, check_output, check_weights
from linnaeus.modelfile.hub_models import fetch_model
from linnaeus.modelfile.schema import check_description
from linnaeus.modelfile.unknown import PREFIX as UNKNOWN
from linnaeus.modelfile.unknown import check_tensors
from linnaeus.models import Network, allocate
from linnaeus.models.backbones.hub import MODEL_PREFIX
from linnaeus.models.backbones.libraries import library_of
from linnaeus.preprocess import Preprocessing

FORMAT = 1
TRIED = 512
"""Largest side of a trial image of real zeros. A larger one has no values: it costs no memory, but makes torch import
its compiler, which takes more than a second."""
AUXILIARY = ("aux1.", "aux2.")


@dataclass
class ModelFile:
    """The description in a model file, without the weights."""

    arch: dict[str, Any]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: dict[str, Any] | None = None
    unknown: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    task: str = "single-label"  # `single-label`, or `multi-label`: probabilities are independent, and sum to anything
    digest: str = ""  # `sha256` of the file that this was read from
    # What `unknown` needs beside the weights; empty where only the description was read.
    unknown_tensors: dict[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


def write_model(path: Path, state: dict[str, Tensor], about: ModelFile) -> str:
    """Write weights and description, atomically. Auxiliary heads, used only in training, are omitted.

    Returns the SHA-256 of the tensors, which `ModelFile.digest` has where the file is read.
    """
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)}
    tensors = {name: tensor.detach().cpu() for name, tensor in (kept | about.unknown_tensors).items()}
    header = describe(about) | {"versions": versions(about.arch["name"]), "tensors": _digest(tensors)}
    header["sha256"] = description_digest(header)
    check_description(str(path), header)  # a file that no version would read must not be written
    text = json.dumps(header, ensure_ascii=False, allow_nan=False)
    with atomic(path) as temporary:
        save_tensors(tensors, temporary, {"linnaeus": text})
    return header["sha256"]


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors as safetensors. Raises OSError if the disk does not take them."""
    # safetensors takes neither channels-last nor shared storage, so such tensors are copied to plain memory.
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if place in seen else tensor
        seen.add(place)
    try:
        save_file(plain, path, metadata=metadata)
    except SafetensorError as error:  # also raised for a full disk; only its text has the OS error number
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


def describe(about: ModelFile) -> dict[str, Any]:
    """The description as JSON values; `parse` reads it."""
    return {
        "format": FORMAT,
        "arch": about.arch,
        "classes": list(about.classes),
        "names": list(about.names),
        "preprocessing": about.preprocessing.to_dict(),
        "calibration": about.calibration,
        "unknown": about.unknown,
        "metrics": about.metrics,
        "data": about.data,
        "recipe": about.recipe,
        "versions": about.versions,
        "sha256": about.digest,
    } | ({} if about.task == "single-label" else {"task": about.task})


def read_model(path: Path, model: Network | None = None) -> tuple[Network, ModelFile]:
    """Read a model file: the network in evaluation mode, and what the file says of it.

    `model` is needed only where the file was trained from a network of the user's own, whose code it does not hold.
    Raises UserError, naming the file, if it is not a model file, cut short, altered, or of an unknown format.
    """
    header, tensors = _read(path)
    about = parse(path, header)
    if _digest(tensors) != header.get("tensors", header.get("sha256")):
        raise UserError(f"{path}: the weights do not match their checksum, so the file was altered; get a fresh copy")
    # A value that is not finite makes every answer NaN, without an error.
    check_finite(path, tensors)
    # Copies, as the network gets: `cp` over a file that is mapped would change them, or end the process by SIGBUS.
    about.unknown_tensors = {name: tensors.pop(name).clone() for name in [*tensors] if name.startswith(UNKNOWN)}
    check_tensors(path, about.unknown, about.unknown_tensors, about.preprocessing.channels)
    if model is not None:
        check_weights(path, about, model, tensors)
        check_output(path, about, model.eval())
    elif about.arch["name"] == "custom":
        raise UserError(
            f"{path}: its network is your own code ({about.arch['arguments'].get('source')}), which a model file never "
            "contains; give it with --model FILE.py:FUNCTION, or linnaeus.load(path, model=module)"
        )
    else:
        # Build on the meta device: a forged description must not allocate memory before the weights are checked.
        with torch.device("meta"):
            model = build(path, about.arch)
            check_weights(path, about, model, tensors)
            # Very large images are tried without memory, on the meta device.
            if about.preprocessing.size > TRIED:
                check_output(path, about, model.eval())
        if {name for name, _ in model.named_buffers()} - set(model.state_dict()):
            model = build(path, about.arch)  # buffers that no file holds are computed by the constructor
        else:
            allocate(model, torch.device("cpu"))
    model.load_state_dict(tensors)
    if about.arch["name"] != "custom" and about.preprocessing.size <= TRIED:
        check_output(path, about, model.eval())
    return model.eval().to(memory_format=torch.channels_last), about  # type: ignore[call-overload]


def model_path(model: str | Path) -> Path:
    """MODEL of the command line: a run folder, a model file, or `hf:OWNER/NAME` on the hub, which is fetched."""
    if str(model).startswith(MODEL_PREFIX):
        return fetch_model(str(model))
    refuse_name(model)
    path = Path(model)
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise no_model(path)
        return path / MODEL
    return path


def read_header(path: Path) -> ModelFile:
    """Read the description without the weights."""
    return parse(path, _read(path, weights=False)[0])


def versions(network: str = "") -> dict[str, str]:
    """The versions of the software that a result depends on, with that of the library that `network` comes from."""
    from linnaeus._version import __version__

    library = library_of(network)
    package = {} if library is None else {library.package: importlib.metadata.version(library.package)}
    return {"linnaeus": __version__, "torch": torch.__version__, "python": platform.python_version()} | package


def _read(path: Path, *, weights: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header, and with `weights` the tensors."""
    if not path.is_file():
        raise no_model(path)
    tensors: dict[str, Tensor] = {}
    refuse_unreadable(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("linnaeus")
            if text is not None and weights:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except UNREADABLE as error:
        raise UserError(f"{path}: cut short, or not a model file ({one_line(error)}); get a fresh copy") from None
    if text is None:
        raise UserError(
            f"{path}: safetensors, but not a model that linnaeus wrote; its weights can be imported instead"
        )
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its description is not JSON ({one_line(error)}); get a fresh copy") from None
    check_format(path, header)
    # Files of earlier versions have no `tensors`; their checksum is compared with the weights, in `read_model`.
    if "tensors" in header and header.get("sha256") != description_digest(header):
        raise UserError(
            f"{path}: its description does not match its checksum, so the file was altered; get a fresh copy"
        )
    return header, tensors


def check_format(path: Path, header: Any) -> None:
    """Raise UserError unless a description is of the format that this version reads."""
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        version = one_line(repr(header.get("format") if isinstance(header, dict) else header))
        raise UserError(
            f"{path}: model file format {version}, and this version reads format {FORMAT}; upgrade linnaeus"
        )


def parse(path: Path, header: dict[str, Any]) -> ModelFile:
    """The description, with every value checked by the schema. Raises UserError: it may come from anybody."""
    check_description(str(path), header)
    arch = header["arch"]
    try:
        preprocessing = Preprocessing.from_dict(header["preprocessing"])
    except UserError as error:
        raise UserError(f"{path}: {error}; get a fresh copy") from None
    return ModelFile(
        arch={**arch, "arguments": dict(arch.get("arguments", {}))},
        classes=tuple(header["classes"]),
        names=tuple(header["names"]),
        preprocessing=preprocessing,
        calibration=header.get("calibration"),
        unknown=header.get("unknown"),
        metrics=header.get("metrics", {}),
        data=header.get("data", {}),
        recipe=header.get("recipe", {}),
        versions=header.get("versions", {}),
        task=header.get("task", "single-label"),
        digest=header.get("sha256", ""),
    )


def description_digest(header: dict[str, Any]) -> str:
    """SHA-256 over all entries but `sha256` as canonical JSON; empty where a value is no JSON."""
    covered = {key: value for key, value in header.items() if key != "sha256"}
    try:
        text = json.dumps(covered, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        return ""
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in name order: the same for the same weights wherever written."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
