"""Which device a name stands for."""

from __future__ import annotations

import torch

from linnaeus.errors import UserError

DEVICES = ("auto", "cpu", "cuda", "mps")


def choose_device(name: str) -> torch.device:
    """`auto` is the fastest at hand. Raises UserError for a device that is not there, with what to do."""
    if name not in DEVICES:
        raise UserError(f"--device {name}: not one of {', '.join(DEVICES)}")
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "--device cuda: this torch sees no CUDA device; use --device cpu, or install a CUDA build of torch"
        )
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: there is no Apple GPU here; use --device cpu")
    return torch.device(name)
