"""Small trained weights, as tensors and as an entry in the table of pretrained weights."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from linnaeus.models import create
from linnaeus.models.weights.pretrained import PretrainedWeights

NAME = "resnet20-test"


def trained(name: str = "resnet20", classes: int = 1000, **arguments: Any) -> dict[str, Tensor]:
    """The tensors of a network, changed so that no freshly initialized network has them."""
    torch.manual_seed(7)
    state = create(name, classes, **arguments).state_dict()
    return {key: t + 0.1 * torch.rand_like(t) if t.is_floating_point() else t + 5 for key, t in state.items()}


def write_pretrained(folder: Path) -> tuple[PretrainedWeights, Path]:
    """A table entry for small weights, and its file, which is not in the store yet."""
    path = folder / "there" / "new.pth"
    path.parent.mkdir()
    torch.save(trained(), path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    path = path.rename(path.with_name(f"resnet20-{checksum}.pth"))
    url = f"http://localhost:1/{path.name}"
    return PretrainedWeights(NAME, "resnet20", url, checksum, 50.0, "none", {"shortcut": "A"}), path
