"""Whether a file that the user has can be stored as published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from linnaeus.errors import UserError
from linnaeus.models import create
from linnaeus.models.backbones.libraries import library_of
from linnaeus.models.weights.adapt import adapt_tensors
from linnaeus.models.weights.files import WeightsInfo, read_weights
from linnaeus.models.weights.pretrained import PRETRAINED, PretrainedWeights


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
    if library is not None and library.convert is None:
        raise UserError(f"{entry.name}: contains its weights; use it with --model {entry.name}")
    if library is not None and library.convert is not None:
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
