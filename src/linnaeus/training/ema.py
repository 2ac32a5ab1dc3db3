"""Exponential moving average of the weights (Polyak and Juditsky 1992; as used by Tan and Le 2019)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

Net = TypeVar("Net", bound=nn.Module)


Pairs = list[tuple[list[Tensor], list[Tensor]]]
"""Lists of one type each, in which tensors belong together: a GPU works on all tensors of a list by one kernel."""


def pairs_by_type(pairs: Iterable[tuple[Tensor, Tensor]]) -> Pairs:
    """Pairs of tensors of the same type, as lists for each type."""
    lists: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for first, second in pairs:
        firsts, seconds = lists.setdefault(first.dtype, ([], []))
        firsts.append(first)
        seconds.append(second)
    return list(lists.values())


class MovingAverage(Generic[Net]):
    """A copy of the network whose trained weights are averaged over the recent steps.

    The decay warms up as (1 + step) / (10 + step), so that the random initial weights are forgotten within a few steps.
    BatchNorm buffers are copied, since they are moving averages already. Frozen parts stay as they are.
    """

    def __init__(self, model: Net, decay: float):
        self.model: Net = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0
        # Listed once: listing the tensors of a network takes longer than averaging them on a GPU.
        weights = zip(self.model.parameters(), model.parameters(), strict=True)
        self._weights = pairs_by_type((average, weight) for average, weight in weights if weight.requires_grad)
        self._buffers = pairs_by_type(zip(self.model.buffers(), model.buffers(), strict=True))

    @torch.no_grad()
    def update(self) -> None:
        """Average in the weights of the network after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for averages, weights in self._weights:
            torch._foreach_lerp_(averages, weights, 1 - decay)
        for copies, buffers in self._buffers:
            torch._foreach_copy_(copies, buffers)
