"""L-BFGS for several problems at once: the direction of a step from the steps before.

Nocedal and Wright 2006, "Numerical Optimization", algorithm 7.4. All tensors have the shape (P, ...) for P problems.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Pair:
    """A step and the change of the gradient along it."""

    step: Tensor
    change: Tensor
    inverse: Tensor
    """(P,): 1 / (step . change), or 0 for a problem that did not move."""

    @classmethod
    def of(cls, step: Tensor, change: Tensor) -> Pair:
        curvature = dot(step, change)
        return cls(step, change, torch.where(curvature > 0, 1 / curvature, torch.zeros_like(curvature)))


@dataclass(frozen=True)
class DiagonalHessian:
    """An estimate of the diagonals of the Hessians, up to a factor that the newest pair of the history gives."""

    unpenalized: Tensor  # (P, classes, d + 1)
    penalty: float

    def divide(self, result: Tensor, newest: Pair | None) -> Tensor:
        """`result`, divided by this diagonal in place."""
        diagonal = self.unpenalized
        if newest is not None:
            # So that the curvature along the last step is right. It falls while the probabilities approach 0 and 1.
            step = newest.step
            curvature = dot(step, newest.change) - self.penalty * dot(step[..., :-1], step[..., :-1])
            factor = (curvature / dot(step * diagonal, step)).nan_to_num(1.0).clamp(1e-6, 1.0)
            diagonal = factor[:, None, None] * diagonal
        else:
            diagonal = diagonal.clone()
        diagonal[..., :-1] += self.penalty
        result.div_(diagonal)
        return result if newest is None else _rescale(result, newest, diagonal.reciprocal_().mul_(newest.change))


def _rescale(result: Tensor, newest: Pair, change: Tensor) -> Tensor:
    """`result` times the scale of the newest pair (Nocedal and Wright, eq. 7.20).

    `change` is that of the pair, divided by the initial Hessian.
    """
    scale = 1 / (newest.inverse * dot(newest.change, change))
    return result.mul_(torch.where(torch.isfinite(scale), scale, torch.ones_like(scale))[:, None, None])


def inverse_hessian_product(history: deque[Pair], gradient: Tensor, hessian: DiagonalHessian | None) -> Tensor:
    """The two-loop recursion, for each problem on its own; `hessian` is the initial one, by default the identity."""
    result = gradient.clone()
    factors = []
    for pair in reversed(history):
        factor = pair.inverse * dot(pair.step, result)
        result.addcmul_(factor[:, None, None], pair.change, value=-1)
        factors.append(factor)
    newest = history[-1] if history else None
    if hessian is not None:
        hessian.divide(result, newest)
    elif newest is not None:
        _rescale(result, newest, newest.change)
    for pair, factor in zip(history, reversed(factors), strict=True):
        result.addcmul_((factor - pair.inverse * dot(pair.change, result))[:, None, None], pair.step)
    return result


def dot(a: Tensor, b: Tensor) -> Tensor:
    """(P, ...), (P, ...) -> (P,)"""
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))
