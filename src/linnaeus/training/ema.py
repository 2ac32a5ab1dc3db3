"""Exponential moving average of the weights (Polyak and Juditsky 1992; as used by Tan and Le 2019)."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Net = TypeVar("Net", bound=nn.Module)


class MovingAverage(Generic[Net]):
    """A copy of the network whose trained weights are averaged over the recent steps.

    The decay warms up as (1 + step) / (10 + step), so that the random initial weights are forgotten within a few steps.
    BatchNorm buffers are copied, since they are moving averages already. Frozen parts stay as they are.
    """

    def __init__(self, model: Net, decay: float):
        self.model: Net = copy.deepcopy(model).eval().requires_grad_(False)
        self.decay, self.steps = decay, 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Average in the weights of `model` after one more step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        for average, current in zip(self.model.parameters(), model.parameters(), strict=True):
            if current.requires_grad:
                average.lerp_(current, 1 - decay)
        for copied, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            copied.copy_(buffer)
