"""Logistic regression, multinomial or for each class, with L-BFGS for several weightings of the same samples at once.

For features x_i, labels y_i and sample weights w_i that sum to 1, the solution minimizes over W (classes, features) and
b (classes,)

    sum_i w_i * cross_entropy(W x_i + b, y_i)  +  penalty / 2 * |W|^2

in nats; the bias is not penalized. Where a sample may have several labels, y_i (classes,) has a 1 for each of them, and
the loss is the sum of the binary cross-entropies, so that the classes are independent regressions with one penalty.
With several windows of each sample, the labels are those of `models/windows.py`, and the objective is not convex.

Otherwise it is. L-BFGS: Nocedal and Wright 2006, "Numerical Optimization", algorithms 3.1 and 7.4.
(`torch.optim.LBFGS` joins all problems into one, and takes a second to import its compiler.)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.models.lbfgs import DiagonalHessian, Pair, dot, inverse_hessian_product
from linnaeus.models.windows import SURE, evidence, label_logits, window_probabilities

CPU_CHUNK = 4 << 20  # bytes of logits computed at a time: softmax and gradient find them in the cache
DEVICE_CHUNK = 512 << 20
HISTORY = 10  # vector pairs of L-BFGS
MEMORY = 0.8  # of that of the features: history and WORKING vectors take more only with fewer than LEAST_HISTORY pairs
MOST_MEMORY = 1 << 28  # numbers (1 GB) that history and working vectors take at most, however many the features are
WORKING = 8  # vectors with the shape of a solution that exist at once besides the history
LEAST_HISTORY = 2
SUFFICIENT_DECREASE = 1e-4
HALVINGS = 12  # of a step; after them rounding hides any further descent
PATIENCE = 3  # iterations over which the decrease is measured


@dataclass(frozen=True)
class Problems:
    """P logistic regressions on the same samples that differ in their sample weights."""

    x: Tensor  # (n * windows, d) features, those of a sample one after the other
    y: Tensor  # (n,) int64 labels; or (n, classes) float where a sample may have several
    weights: Tensor  # (n, P) sample weights; each column sums to 1
    classes: int
    # (2, classes): weight of a sample without and with each of several labels; None: 1.
    class_weights: Tensor | None = None
    # Called after each evaluation of the objective, which is one pass over the features.
    evaluated: Callable[[], None] | None = None
    windows: int = 1  # rows of `x` for each sample, which may have several labels if there is more than one
    # (d,) of the columns of `x`, if these are uncorrelated: `solve` then starts with an estimate of the Hessian.
    variances: Tensor | None = None

    def __len__(self) -> int:
        return self.weights.shape[1]

    @property
    def memory(self) -> float:
        """How many solutions of one problem the history and the WORKING vectors of `solve` may take."""
        return min(MEMORY * self.x.numel(), MOST_MEMORY) / (self.classes * (self.x.shape[1] + 1))

    def logits(self, x: Tensor, solution: Tensor) -> Tensor:
        """Features x (m * windows, d), solution (classes, d + 1) with the bias in the last column -> (m, classes)."""
        z = logits(x, solution)
        return (
            z if self.windows == 1 else label_logits(evidence(window_probabilities(z.unflatten(0, (-1, self.windows)))))
        )

    def parts(self) -> list[Problems]:
        """The problems, divided where the vectors of all of them would take more memory than the features."""
        together = max(1, int(self.memory / (WORKING + 2 * LEAST_HISTORY)))
        return [replace(self, weights=part) for part in self.weights.split(together, 1)]

    def zeros(self) -> Tensor:
        """(P, classes, d + 1): a starting point of `solve`, with the bias in the last column."""
        return torch.zeros(len(self), self.classes, self.x.shape[1] + 1, device=self.x.device)


def logits(x: Tensor, solution: Tensor) -> Tensor:
    """x (n, d), solution (m, d + 1) with the bias in the last column -> (n, m)."""
    return torch.addmm(solution[:, -1], x, solution[:, :-1].T)


def objective(problems: Problems, penalty: float, solution: Tensor) -> tuple[Tensor, Tensor]:
    """Objectives (P,) of a solution (P, classes, d + 1), and their gradients with the shape of `solution`.

    The gradient is written out instead of left to autograd: rows are processed in chunks and in place, which takes a
    third of the time and no memory beyond a chunk of logits.
    """
    x, y, weights = problems.x, problems.y, problems.weights
    flat = solution.flatten(0, 1)
    losses = penalty / 2 * torch.linalg.vector_norm(solution[..., :-1], dim=(1, 2)).square()
    gradient = penalty * flat
    # The bias is not penalized.
    gradient[:, -1] = 0
    weight = flat[:, :-1].T.contiguous()  # the product is up to a fifth faster than with rows of d + 1 numbers
    windows = problems.windows
    step = max(64, (CPU_CHUNK if x.device.type == "cpu" else DEVICE_CHUNK) // (4 * len(flat)))
    step = max(1, step // windows)
    for start in range(0, len(y), step):
        rows, w = x[start * windows : (start + step) * windows], weights[start : start + step]
        z = torch.addmm(flat[:, -1], rows, weight).view(len(rows), len(problems), problems.classes)
        part = _multinomial if y.ndim == 1 else _independent
        if windows > 1:
            z, part = z.unflatten(0, (-1, windows)), _in_windows
        chunk_losses, error = part(z, y[start : start + step], w, problems.class_weights)
        losses = losses + chunk_losses
        error = error.view(len(rows), -1)
        gradient[:, :-1].addmm_(error.T, rows)
        gradient[:, -1] += error.sum(0)
    if problems.evaluated is not None:
        problems.evaluated()
    return losses, gradient.view_as(solution)


def _multinomial(z: Tensor, y: Tensor, w: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses (P,) of logits z (n, P, classes), and their gradient w * (softmax(z) - onehot(y))."""
    target = y[:, None, None].expand(-1, z.shape[1], 1)
    log_p = z.log_softmax(2)
    losses = -(log_p.gather(2, target)[..., 0] * w).sum(0)
    error = log_p.exp_().scatter_add_(2, target, torch.full_like(w, -1.0)[..., None]).mul_(w[..., None])
    return losses, error


def _independent(z: Tensor, y: Tensor, w: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same for several labels, y (n, classes): the gradient is w * (sigmoid(z) - y), times the class weights."""
    y = y[:, None]
    losses, error = F.softplus(z) - y * z, torch.sigmoid(z) - y
    if class_weights is not None:
        of_pairs = torch.where(y > 0.5, class_weights[1], class_weights[0])
        losses, error = losses * of_pairs, error * of_pairs
    return (losses.sum(2) * w).sum(0), error.mul_(w[..., None])


def _in_windows(z: Tensor, y: Tensor, w: Tensor, class_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same for logits z (n, windows, P, classes) of windows."""
    p, y = window_probabilities(z), y[:, None]
    total = evidence(p)
    logit = label_logits(total)
    # By the evidence, -1 / expm1 for a label of the sample; by the logits of a window through its softmax.
    losses, slope = F.softplus(logit) - y * logit, 1 - y - y / torch.expm1(total)
    if class_weights is not None:
        of_pairs = torch.where(y > 0.5, class_weights[1], class_weights[0])
        losses, slope = losses * of_pairs, slope * of_pairs
    error = (slope * w[..., None])[:, None] * (SURE * p / (1 - SURE * p))
    return (losses.sum(2) * w).sum(0), error.sub_(p * error.sum(3, keepdim=True)).flatten(0, 1)


@dataclass(frozen=True)
class Solution:
    """Solutions of all problems, and what is known of the curvature of their objectives."""

    values: Tensor  # (P, classes, d + 1)
    penalty: float
    history: deque[Pair]

    def mean(self) -> Solution:
        """Of all problems as one, which is close to the solution where their weights are close."""
        pairs = (Pair.of(*(v.mean(0, keepdim=True) for v in (pair.step, pair.change))) for pair in self.history)
        history = deque((pair for pair in pairs if pair.inverse > 0), maxlen=self.history.maxlen)
        return Solution(self.values.mean(0, keepdim=True), self.penalty, history)


def solve(
    problems: Problems, penalty: float, start: Tensor, *, steps: int, tolerance: float, before: Solution | None = None
) -> Solution:
    """Minimize the objective of each problem from `start` (P, classes, d + 1).

    Ends after `steps` iterations, or when PATIENCE of them reduce no objective by more than the share `tolerance`. With
    `problems.variances` it ends earlier, when the next one is expected to reduce no objective by a tenth of that.
    `before` is a solution for another penalty, whose history is reused, and empty afterwards.
    """
    solution = start
    hessian = _hessian(problems, penalty)
    losses, gradient = objective(problems, penalty, solution)
    history = _history(problems, penalty, before)
    course = [losses]
    for _ in range(steps):
        direction = inverse_hessian_product(history, gradient, hessian).neg_()
        slope = dot(direction, gradient)
        # A Newton step would gain half the slope; with an estimate of the Hessian up to ten times that is left to gain.
        if hessian is not None and len(course) > 1 and (-slope / 2 < tolerance / 10 * losses).all():
            break
        # Without a history the scale of a step is unknown: the first moves each problem by at most 1.
        size = torch.ones_like(slope) if history or hessian is not None else (-slope).rsqrt().clamp(max=1.0)
        for _ in range(HALVINGS):
            trial = torch.addcmul(solution, size[:, None, None], direction)
            trial_losses, trial_gradient = objective(problems, penalty, trial)
            descended = trial_losses <= losses + SUFFICIENT_DECREASE * size * slope
            if descended.all():
                break
            size = torch.where(descended, size, size / 2)
        else:
            # Rounding hides the descent of some problems: those stay where they are.
            keep = descended[:, None, None]
            trial, trial_gradient = torch.where(keep, trial, solution), torch.where(keep, trial_gradient, gradient)
            trial_losses = torch.where(descended, trial_losses, losses)
            if not descended.any():
                break
        change = torch.sub(trial_gradient, gradient, out=gradient)
        history.append(Pair.of(torch.sub(trial, solution, out=direction), change))
        solution, losses, gradient = trial, trial_losses, trial_gradient
        course.append(losses)
        if len(course) > PATIENCE and ((course[-1 - PATIENCE] - losses) < tolerance * losses).all():
            break
    return Solution(solution, penalty, history)


def _history(problems: Problems, penalty: float, before: Solution | None) -> deque[Pair]:
    """The pairs of `before` for this penalty, which changes the Hessian by a multiple of the identity."""
    room = int((problems.memory / len(problems) - WORKING) / 2)
    history: deque[Pair] = deque(maxlen=min(HISTORY, max(LEAST_HISTORY, room)))
    while before is not None and before.history:
        pair = before.history.popleft()  # so that its memory is free once newer pairs replace it
        pair.change[..., :-1].add_(pair.step[..., :-1], alpha=penalty - before.penalty)
        history.append(Pair.of(pair.step, pair.change))
    return history


def _hessian(problems: Problems, penalty: float) -> DiagonalHessian | None:
    """For class k and feature j the mean of p_k (1 - p_k) x_j^2, in which p_k is taken as the share of the class.

    None if the features are correlated. The softmax couples the classes, which is left to the history.
    """
    if problems.variances is None:
        return None
    y, weights = problems.y, problems.weights.T
    if y.ndim == 2:
        shares = weights @ y
    else:
        shares = weights.new_zeros(len(problems), problems.classes).index_add_(1, y, weights)
    squares = torch.cat([problems.variances, shares.new_ones(1)])  # that of the bias is 1
    return DiagonalHessian((shares * (1 - shares)).clamp(min=1e-9)[..., None] * squares, penalty)
