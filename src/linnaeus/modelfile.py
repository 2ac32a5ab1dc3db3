"""model.safetensors: all that is needed to predict, in one file that holds no code.

The file is plain safetensors. Its metadata has one entry, `linnaeus`, a JSON text; format 1 holds

    format          1
    arch            {"name", "classes", "channels", "arguments"}: what models.create() takes
    classes, names  class names in index order, and how to show them
    preprocessing   resize, size, fit, interpolation, channels, mean, std
    calibration     null, or what evaluation fitted
    metrics         figures with their counts, by split
    data            source, kind, counts by split, fingerprint
    recipe          the recipe as resolved
    versions        of linnaeus, torch, python
    sha256          of the tensors: names, types, shapes and bytes in name order
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.files import atomic
from linnaeus.models import Network, create
from linnaeus.preprocess import Preprocessing

FORMAT = 1
MODEL = "model.safetensors"  # its name in a run folder
AUXILIARY = ("aux1.", "aux2.")


@dataclass
class ModelFile:
    """What a model file says, beside its weights."""

    arch: dict[str, Any]
    classes: tuple[str, ...]
    names: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: dict[str, Any] | None = None
    metrics: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def write_model(path: Path, state: Mapping[str, Tensor], about: ModelFile) -> None:
    """Write weights and description, whole or not at all. Auxiliary heads, which only training needs, stay behind."""
    # Tensors are copied to plain contiguous memory: safetensors takes neither channels-last nor shared storage.
    tensors = {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in state.items()
        if not name.startswith(AUXILIARY)
    }
    header = {
        "format": FORMAT,
        "arch": about.arch,
        "classes": list(about.classes),
        "names": list(about.names),
        "preprocessing": about.preprocessing.to_dict(),
        "calibration": about.calibration,
        "metrics": about.metrics,
        "data": about.data,
        "recipe": about.recipe,
        "versions": versions(),
        "sha256": _digest(tensors),
    }
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"linnaeus": json.dumps(header, ensure_ascii=False, allow_nan=False)})


def read_model(path: Path, model: Network | None = None) -> tuple[Network, ModelFile]:
    """Read a model file: the network in evaluation mode, and what the file says of it.

    `model` is needed only where the file was trained from a network of the user's own, whose code it does not hold.
    Raises UserError, naming the file, where it is no model file, cut short, altered, or of an unknown format.
    """
    header, tensors = _read(path)
    about = _parse(path, header)
    if _digest(tensors) != header.get("sha256"):
        raise UserError(f"{path}: the weights do not match their checksum, so the file was altered; get a fresh copy")
    if model is None:
        if about.arch["name"] == "custom":
            raise UserError(
                f"{path}: its network is your own code ({about.arch['arguments'].get('source')}), which a model file never holds; "
                "give it with --model FILE.py:FUNCTION, or linnaeus.load(path, model=module)"
            )
        model = create(**_arguments(path, about.arch))
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path}: the weights do not fit the network {about.arch['name']} ({reason})") from None
    return model.eval().to(memory_format=torch.channels_last), about  # type: ignore[call-overload]


def model_path(given: str | Path) -> Path:
    """MODEL of the command line: a run folder, or a model file."""
    path = Path(given)
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise UserError(f"{path}: holds no {MODEL}; give a run folder, or train one with `linnaeus train`")
        return path / MODEL
    return path


def read_header(path: Path) -> ModelFile:
    """What the file says, without reading its weights."""
    return _parse(path, _open(path)[0])


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from linnaeus import __version__

    return {"linnaeus": __version__, "torch": torch.__version__, "python": platform.python_version()}


def _open(path: Path) -> tuple[dict[str, Any], Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such model file; give a run folder or a model.safetensors")
    try:
        handle = safe_open(path, framework="pt")
        text = (handle.metadata() or {}).get("linnaeus")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cut short, or not a model file ({error}); get a fresh copy") from None
    if text is None:
        raise UserError(
            f"{path}: safetensors, but not a model that linnaeus wrote; its weights can be imported instead"
        )
    try:
        header = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: its description is not JSON ({error}); get a fresh copy") from None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        found = header.get("format") if isinstance(header, dict) else header
        raise UserError(
            f"{path}: model file format {found!r}, and this version reads format {FORMAT}; upgrade linnaeus"
        )
    return header, handle


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    header, handle = _open(path)
    with handle as file:
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping


def _parse(path: Path, header: dict[str, Any]) -> ModelFile:
    """The header, checked as far as what follows relies on it: it may come from anybody."""
    try:
        about = ModelFile(
            arch=dict(header["arch"]),
            classes=tuple(map(str, header["classes"])),
            names=tuple(map(str, header["names"])),
            preprocessing=Preprocessing.from_dict(header["preprocessing"]),
            calibration=header.get("calibration"),
            metrics=dict(header.get("metrics") or {}),
            data=dict(header.get("data") or {}),
            recipe=dict(header.get("recipe") or {}),
            versions=dict(header.get("versions") or {}),
        )
        fits = len(about.classes) == len(about.names) == about.arch["classes"]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: its description lacks something ({reason}); get a fresh copy") from None
    if not fits:
        raise UserError(f"{path}: {len(about.classes)} class names for {about.arch['classes']} outputs")
    return about


def _arguments(path: Path, arch: dict[str, Any]) -> dict[str, Any]:
    """arch as models.create() takes it; the names in it come from the file, so nothing else is passed on."""
    try:
        return {
            "name": str(arch["name"]),
            "classes": int(arch["classes"]),
            "channels": int(arch["channels"]),
            **dict(arch.get("arguments") or {}),
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: does not say which network it holds ({error})") from None


def _digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in name order: the same for the same weights wherever written."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy() if tensor.numel() else b"")
    return digest.hexdigest()
