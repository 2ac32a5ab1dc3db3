"""How batches of pixels lie in memory, and how to work on them without moving them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 16  # bytes of float pixels: up to here a CPU works on many samples at once, above it on one by one


def together(pixels: Tensor, size: int) -> bool:
    """Whether samples are worked on together: small ones for the calls' sake, and on a GPU all; pixels (N, H, W, C)."""
    return pixels.device.type != "cpu" or 4 * size * size * pixels.shape[-1] <= SMALL


def take(x: Tensor, which: slice | np.ndarray) -> Tensor:
    """The samples `which`: a view for a slice, else a copy."""
    return x[which] if isinstance(which, slice) else x.index_select(0, torch.from_numpy(which).to(x.device))


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


class Scratch:
    """Memory for what lives no longer than a piece of a batch, used again for the next piece.

    Asked for afresh, every page of it may have to be mapped again, which costs more than the arithmetic on it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.held: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A float32 tensor with arbitrary content, contiguous."""
        size = math.prod(shape)
        if name not in self.held or len(self.held[name]) < size:
            self.held[name] = torch.empty(size, device=self.device)
        return self.held[name][:size].view(shape)


def lines(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A view of `x` (K, C, H, W), interleaved or in planes, with a long last axis; and values (K, C) laid out for it.

    To broadcast along an innermost axis of three channels is some ten times slower.
    """
    k, c, h, w = x.shape
    if _interleaved(x):
        return x.permute(0, 2, 3, 1).reshape(k, h, w * c), lambda values: values.repeat(1, w)[:, None]
    return x.reshape(k, c, h * w), lambda values: values[:, :, None]


def over_pixels(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """(K, C, H, W) -> (K, C), by torch.mean, amin or amax; of interleaved pixels whole lines first."""
    k, c, _, w = x.shape
    view = lines(x)[0]
    return reduce(reduce(view, dim=1).view(k, w, c), dim=1) if _interleaved(x) else reduce(view, dim=2)


def _interleaved(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.stride(1) == 1
