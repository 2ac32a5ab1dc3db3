"""Influence: how an answer of a solved head changes if a training image is left out.

The head minimizes, over its parameters, sum_i w_i loss_i + penalty / 2 |W|^2 (models/logistic_regression.py). Without
image j, whose rows have the total weight w_j, the others are weighted by 1 / (1 - w_j), which is the same as

    sum_{i != j} w_i loss_i + (1 - w_j) penalty / 2 |W|^2

so the gradient at the solution changes from 0 to -sum_{i in j} w_i grad(loss_i) - w_j penalty W, and to first order the
parameters by H^-1 of its opposite (Koh and Liang 2017, arXiv:1703.04730, section 2.1; H is the Hessian). `first_order`
computes that for all training images at once; `without` solves again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from linnaeus.errors import JobError
from linnaeus.models.logistic_regression import Problems, logits, solve

STEPS, TOLERANCE = 300, 1e-10
ITERATIONS, RESIDUAL = 500, 1e-6
"""Of the conjugate gradients: the most, and the share of the right side at which they end."""


@dataclass(frozen=True, eq=False)
class SolvedHead:
    """A head at its minimum, in standardized features, with the rows that it was solved on. All tensors are float64."""

    problem: Problems  # one problem; the weights (m, 1) sum to 1
    penalty: float
    image: np.ndarray  # (m,) int64: the image of each row; an image has several rows where several views were stored
    solution: Tensor  # (classes, d + 1), with the bias in the last column
    mean: Tensor
    std: Tensor
    rotation: Tensor | None

    @classmethod
    def of(cls, problem: Problems, penalty: float, image: np.ndarray, head: Tensor) -> SolvedHead:
        """From a problem on features (m, d) as they are, which `head` (classes, d + 1) solves."""
        x = problem.x.double()
        mean, std = x.mean(0), x.std(0, correction=0)
        # A feature that never varies would be divided by zero.
        std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))
        x = (x - mean) / std
        rotation = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
        x = x if rotation is None else x @ rotation
        weight = head[:, :-1].double()
        # The head is converted to the standardized, rotated features, where the solver starts.
        bias = head[:, -1:].double() + weight @ mean[:, None]
        weight = weight * std if rotation is None else (weight * std) @ rotation
        y = problem.y if problem.y.ndim == 1 else problem.y.double()
        weights = None if problem.class_weights is None else problem.class_weights.double()
        problem = replace(problem, x=x, y=y, weights=problem.weights.double(), class_weights=weights)
        start = torch.cat([weight, bias], 1)[None]
        solution = solve(problem, penalty, start, steps=STEPS, tolerance=TOLERANCE).values[0]
        return cls(problem, penalty, image, solution, mean, std, rotation)

    def rows(self, features: Tensor) -> Tensor:
        """Features (k, d) as they are -> standardized, with a 1 in the last column."""
        x = (features.double() - self.mean) / self.std
        x = x if self.rotation is None else x @ self.rotation
        return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype, device=x.device)], 1)

    def logits(self, features: Tensor) -> Tensor:
        """(k, classes)"""
        return self.rows(features) @ self.solution.T

    def first_order(self, features: Tensor, slopes: Tensor) -> np.ndarray:
        """(k, images): the change of a score of each answer if an image is left out, to first order.

        `features` (k, d) of the answers; `slopes` (k, classes): the derivative of the score by the logits.
        """
        x = torch.cat([self.problem.x, torch.ones_like(self.problem.x[:, :1])], 1)
        curvature = Curvature(x, self.problem, self.solution, self.penalty)
        gradients = slopes[:, :, None] * self.rows(features)[:, None]  # (k, classes, d + 1)
        directions = _conjugate_gradients(curvature, gradients)
        shrinkage = self.penalty * (directions[..., :-1] * self.solution[:, :-1]).sum((1, 2))
        moved = (x @ directions.flatten(0, 1).T).view(len(x), *slopes.shape)
        by_row = self.problem.weights * ((curvature.errors[:, None] * moved).sum(2) + shrinkage)  # (m, k)
        changes = np.zeros((int(self.image.max()) + 1, len(slopes)))
        np.add.at(changes, self.image, by_row.cpu().numpy())
        return changes.T

    def without(self, features: Tensor, images: np.ndarray) -> np.ndarray:
        """(images, classes): the logits of one answer, whose features are (1, d), solved without each of the images."""
        columns = [self.problem.weights[:, 0] * torch.from_numpy(self.image != j) for j in images.tolist()]
        weights = torch.stack(columns, 1)
        problems = replace(self.problem, weights=weights / weights.sum(0))
        start = self.solution.expand(len(images), -1, -1).contiguous()
        solutions = solve(problems, self.penalty, start, steps=STEPS, tolerance=TOLERANCE).values
        return (solutions @ self.rows(features)[0]).cpu().numpy()


class Curvature:
    """The Hessian of the objective as a product with parameters (k, classes, d + 1)."""

    def __init__(self, x: Tensor, problem: Problems, solution: Tensor, penalty: float):
        z = logits(x[:, :-1], solution)
        self.x, self.penalty, self.several = x, penalty, problem.y.ndim == 2
        self.weights = problem.weights[:, :, None]  # (m, 1, 1)
        if self.several:
            self.shares = torch.sigmoid(z)
            of_pairs = torch.ones_like(z)
            if problem.class_weights is not None:
                of_pairs = torch.where(problem.y > 0.5, problem.class_weights[1], problem.class_weights[0])
            self.errors = of_pairs * (self.shares - problem.y)
            self.slope = of_pairs * self.shares * (1 - self.shares)
        else:
            self.shares = z.softmax(1)
            self.errors = self.shares - torch.nn.functional.one_hot(problem.y, z.shape[1])
            self.slope = self.shares
        # The diagonal, which makes the iterations few where the scales of features differ.
        spread = self.slope if self.several else self.shares * (1 - self.shares)
        diagonal = (problem.weights * spread).T @ x.square()
        diagonal[:, :-1] += penalty
        self.diagonal = diagonal.clamp(min=1e-12)

    def __call__(self, v: Tensor) -> Tensor:
        moved = (self.x @ v.flatten(0, 1).T).view(len(self.x), *v.shape[:2])  # (m, k, classes)
        moved = self.slope[:, None] * moved
        if not self.several:
            moved = moved - self.shares[:, None] * moved.sum(2, keepdim=True)
        product = ((self.weights * moved).flatten(1).T @ self.x).view_as(v)
        product[..., :-1] += self.penalty * v[..., :-1]
        return product


def _conjugate_gradients(curvature: Curvature, gradients: Tensor) -> Tensor:
    """H^-1 gradients, for (k, classes, d + 1) right sides at once. Raises JobError if it does not converge."""

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum((1, 2))[:, None, None]

    solution = torch.zeros_like(gradients)
    rest = gradients.clone()
    # The diagonal as preconditioner: the classes differ much in their curvature.
    scaled = rest / curvature.diagonal
    direction, size = scaled, dot(rest, scaled)
    target = RESIDUAL * dot(gradients, gradients).sqrt()
    for _ in range(ITERATIONS):
        product = curvature(direction)
        # The bound avoids 0 / 0 for right sides that are solved already.
        step = size / dot(direction, product).clamp(min=1e-300)
        solution = solution + step * direction
        rest = rest - step * product
        if (dot(rest, rest).sqrt() <= target).all():
            return solution
        scaled = rest / curvature.diagonal
        size, last = dot(rest, scaled), size
        direction = scaled + size / last.clamp(min=1e-300) * direction
    if not torch.isfinite(solution).all():
        raise JobError("the influence of training images cannot be computed: the features are not finite")
    return solution
