"""Memory layout of pixel batches, and operations that avoid copying them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

SMALL = 1 << 16  # bytes of float pixels: a CPU processes smaller samples together and larger ones one by one


def together(pixels: Tensor, size: int) -> bool:
    """Whether to process samples together: small ones, to save calls, and all on a GPU. pixels (N, H, W, C)."""
    return pixels.device.type != "cpu" or 4 * size * size * pixels.shape[-1] <= SMALL


def take(x: Tensor, which: slice | np.ndarray) -> Tensor:
    """Select the samples `which`: a view for a slice, otherwise a copy."""
    return x[which] if isinstance(which, slice) else x.index_select(0, torch.from_numpy(which).to(x.device))


def to_device(values: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).to(device)


class Scratch:
    """Buffers for temporaries of one micro-batch, reused for the next.

    Asked for afresh, every page of it may have to be mapped again, which costs more than the arithmetic on it.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.held: dict[str, Tensor] = {}

    def get(self, name: str, *shape: int) -> Tensor:
        """A contiguous float32 tensor with arbitrary content."""
        size = math.prod(shape)
        if name not in self.held or len(self.held[name]) < size:
            self.held[name] = torch.empty(size, device=self.device)
        return self.held[name][:size].view(shape)


def lines(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A view of `x` (K, C, H, W) with a long last axis, and a function that lays out values (K, C) for it.

    To broadcast along an innermost axis of three channels is some ten times slower.
    """
    k, c, h, w = x.shape
    if _interleaved(x):
        return x.permute(0, 2, 3, 1).reshape(k, h, w * c), lambda values: values.repeat(1, w)[:, None]
    return x.reshape(k, c, h * w), lambda values: values[:, :, None]


def over_pixels(x: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """Reduce (K, C, H, W) to (K, C) by torch.mean, amin or amax; interleaved pixels line by line first."""
    k, c, _, w = x.shape
    view = lines(x)[0]
    return reduce(reduce(view, dim=1).view(k, w, c), dim=1) if _interleaved(x) else reduce(view, dim=2)


def _interleaved(x: Tensor) -> bool:
    return x.shape[1] > 1 and x.stride(1) == 1
