"""A linear probe: logistic regression on stored features of a frozen backbone.

It is multinomial, or where images may have several labels one independent regression for each label.

The features are standardized to mean 0 and variance 1. The penalty is chosen by stratified cross-validation: each image
is judged by a probe that has not seen it. It is solved in seconds where training the same head takes minutes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.console import Advance
from linnaeus.errors import JobError
from linnaeus.models.folds import FOLDS, stratified_folds
from linnaeus.models.logistic_regression import Problems, Solution, solve
from linnaeus.models.solver_progress import SearchProgress

FIRST_PENALTY = 0.1
VANISHING = 3.0  # for which the weights are taken as zero when those for FIRST_PENALTY / 10 are predicted
WEAKEST, STRONGEST = 1e-8, 1e3
"""Bounds of the search for the penalty."""

STEPS, TOLERANCE = 30, 3e-3  # of a fit during cross-validation, from the solution for a stronger penalty
FINAL_STEPS, FINAL_TOLERANCE = 300, 1e-4
FEWEST_PENALTIES = 4  # tried: the first, one on either side, and the refinement
CHUNK = 8 << 20  # bytes of features that are copied at a time


@dataclass(frozen=True)
class LinearProbe:
    """A linear head, and its quality on samples that were held out."""

    weight: Tensor
    """(classes, features), for features that are not standardized."""
    bias: Tensor
    """(classes,)"""
    penalty: float
    losses: dict[float, float]
    """Penalty -> mean cross-entropy on the held-out folds in nats, with the weights of the fit."""
    accuracies: dict[float, float]
    """Penalty -> share of the held-out samples that are judged right; empty where there may be several labels."""
    probabilities: np.ndarray
    """(n, classes): each sample judged by the probe of the fold that held it out, at the chosen penalty."""
    training_logits: Tensor
    """(n, classes): each sample judged by this head, which has seen it."""

    @property
    def at_bound(self) -> bool:
        """Whether the search for the penalty ended at WEAKEST or STRONGEST."""
        return self.penalty in (WEAKEST, STRONGEST)


def fit_linear_probe(
    features: Tensor,
    labels: np.ndarray,
    classes: int,
    *,
    fold: np.ndarray | None = None,
    weights: Tensor | None = None,
    advance: Advance | None = None,
) -> LinearProbe:
    """Fit a linear probe to `features` (n, d); the penalty is chosen by cross-validation.

    `labels` are (n,) int64, or (n, classes) bool where images may have several. Features (n, windows, d) are for a
    `WindowClassifier`.

    float32 `features` are overwritten, so that the peak of memory stays below twice their size.
    `fold` (n,) int64 is the fold that holds each sample out, -1 for none; by default `stratified_folds(labels)`.
    `weights` (classes,) are weights of the samples of each class, in the fit and in the held-out loss; with several
    labels (2, classes), of the samples without and with each label.
    `advance` is called after each pass over the features, with the passes so far and those expected in all.
    Raises JobError if a feature is not finite.
    """
    windows = features.shape[1] if features.ndim == 3 else 1
    x = features.float().flatten(0, -2)  # a row for each window
    mean, std = _standardize(x)
    # n rows span at most n dimensions, and rotations change neither logits nor penalty: n coordinates are enough.
    rotation = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
    x = x if rotation is None else x @ rotation

    y = torch.from_numpy(labels).to(x.device)
    several = labels.ndim == 2
    weights = None if weights is None else weights.to(x)
    sample_weights = torch.ones(len(y), device=x.device) if weights is None or several else weights[y]
    shares = (sample_weights / sample_weights.sum())[:, None]
    problem = Problems(x, y.to(x) if several else y, shares, classes, weights if several else None, windows=windows)
    fold = stratified_folds(labels) if fold is None else fold
    search = _PenaltySearch(problem, torch.from_numpy(fold).to(x.device), progress := SearchProgress(advance))
    best = search.run()
    progress.begin("all images", 0)
    # The mean over the folds is close to the solution on all samples.
    start, before = best.solution.mean(0, keepdim=True), None if search.last is None else search.last.mean()
    final = replace(problem, evaluated=progress.passed)
    solved = solve(final, best.penalty, start, steps=FINAL_STEPS, tolerance=FINAL_TOLERANCE, before=before)
    solution = solved.values[0]
    training_logits = problem.logits(x, solution)
    # Undo rotation and standardization: W z + b with z = (f - mean) / std becomes weight f + bias.
    weight = (solution[:, :-1] if rotation is None else solution[:, :-1] @ rotation.T) / std
    bias = solution[:, -1] - weight @ mean
    held_out = search.held_out_logits(best.solution)
    probabilities = (torch.sigmoid(held_out) if several else F.log_softmax(held_out, 1).exp()).cpu().numpy()
    return LinearProbe(weight, bias, best.penalty, search.losses, search.accuracies, probabilities, training_logits)


def _standardize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize features (n, d) in place. Returns their mean and standard deviation, each (d,)."""
    mean = x.mean(0)
    x.sub_(mean)
    # Squares in chunks: torch.std takes ten times as long over the first dimension.
    std = torch.stack([rows.square().sum(0) for rows in x.split(_chunk(x))]).sum(0).div_(len(x)).sqrt_()
    if not torch.isfinite(std).all():  # the deviation of a column with a NaN or an infinity is not finite
        raise JobError("the features of the backbone are not finite: check its weights")
    # A constant feature carries no information; dividing by its tiny deviation would blow up rounding errors.
    std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))
    x.div_(std)
    return mean, std


def _chunk(x: Tensor) -> int:
    """Rows of x (n, d) that are copied at a time."""
    return max(16, CHUNK // (4 * x.shape[1]))


@dataclass(frozen=True)
class _Candidate:
    """A penalty with the solutions of all folds."""

    penalty: float
    loss: float
    """Held-out cross-entropy in nats."""
    solution: Tensor
    """(folds, classes, d + 1)"""

    def decades(self, penalty: float) -> float:
        """The distance to another penalty on a logarithmic scale, positive for a stronger one."""
        return math.log10(penalty / self.penalty)


class _PenaltySearch:
    """Chooses the penalty with the smallest held-out loss.

    The penalty first changes by factors of ten until the loss rises on both sides of the best one. One refinement
    follows: the minimum of the parabola through the best penalty and its neighbors, on a logarithmic scale.

    The solution of a fold is nearly linear in the logarithm of the penalty. Therefore a fit starts on the line through
    the two nearest solutions, with the curvature pairs of the last fit, and most take 4 to 8 evaluations.
    """

    def __init__(self, problem: Problems, fold: Tensor, progress: SearchProgress):
        weights = problem.weights[:, 0]
        # The folds are solved as one problem, so that a single matrix product serves all of them.
        training = torch.stack([fold != k for k in range(FOLDS)], 1) * weights[:, None]  # (n, folds)
        self.problems = replace(problem, weights=training / training.sum(0), evaluated=progress.passed)
        # Where that would take more memory than the features, some of them at a time.
        self.parts = self.problems.parts()
        held_out = torch.where(fold >= 0, weights, torch.zeros_like(weights))
        self.held_out = held_out / held_out.sum()
        self.judge = fold.clamp(min=0)
        self.progress = progress
        # The last one and the two nearest to it; zeros are close to the solution for a very strong penalty.
        self.near = [_Candidate(VANISHING, math.inf, self.problems.zeros())]
        self.last: Solution | None = None
        self.losses: dict[float, float] = {}
        self.accuracies: dict[float, float] = {}

    def run(self) -> _Candidate:
        best = self._try(FIRST_PENALTY)
        while (weaker := self._neighbor(best, 0.1)) and weaker.loss < best.loss:
            best = weaker
        while best.penalty >= FIRST_PENALTY and (stronger := self._neighbor(best, 10.0)) and stronger.loss < best.loss:
            best = stronger
        refined = self._vertex(best.penalty)
        return best if refined is None else min(best, self._try(refined, last=True), key=lambda other: other.loss)

    def _neighbor(self, candidate: _Candidate, factor: float) -> _Candidate | None:
        """The candidate for a penalty ten times weaker or stronger; None beyond the bounds."""
        penalty = float(f"{candidate.penalty * factor:.6g}")
        return self._try(penalty) if WEAKEST <= penalty <= STRONGEST else None

    def _vertex(self, penalty: float) -> float | None:
        """Minimum of the parabola through the losses at `penalty` and its neighbors; None if one is missing."""
        neighbors = [self.losses.get(float(f"{penalty * factor:.6g}")) for factor in (0.1, 10.0)]
        if neighbors[0] is None or neighbors[1] is None:
            return None
        below, above, here = neighbors[0], neighbors[1], self.losses[penalty]
        curvature = below - 2 * here + above
        if curvature <= 0:
            return None
        return float(f"{penalty * math.pow(10, 0.5 * (below - above) / curvature):.2g}")

    def _try(self, penalty: float, *, last: bool = False) -> _Candidate:
        # At least one more neighbor and the refinement follow, unless this is the refinement.
        self.progress.begin(f"penalty {penalty:g}", 0 if last else max(2, FEWEST_PENALTIES - 1 - len(self.losses)))
        solution = self._solve(penalty)
        held_out = self.held_out_logits(solution)
        loss = self._losses(held_out) @ self.held_out
        self.losses[penalty] = float(loss)
        if self.problems.y.ndim == 1:
            right, judged = held_out.argmax(1) == self.problems.y, self.held_out > 0
            self.accuracies[penalty] = float(right[judged].float().mean())
        candidate = _Candidate(penalty, float(loss), solution)
        self.near = sorted([*self.near, candidate], key=lambda other: abs(other.decades(penalty)))[:3]
        return candidate

    def _solve(self, penalty: float) -> Tensor:
        """(folds, classes, d + 1)"""
        solution = self._start(penalty)
        if len(self.parts) == 1:
            self.last = solve(self.problems, penalty, solution, steps=STEPS, tolerance=TOLERANCE, before=self.last)
            return self.last.values
        done = 0
        for part in self.parts:
            rows = solution[done : done + len(part)]
            rows.copy_(solve(part, penalty, rows, steps=STEPS, tolerance=TOLERANCE).values)
            done += len(part)
        return solution

    def _start(self, penalty: float) -> Tensor:
        """The point for this penalty on the line through the two nearest solutions, or the only one."""
        near = sorted(self.near, key=lambda candidate: abs(candidate.decades(penalty)))
        if len(near) == 1:
            return near[0].solution.clone()
        share = near[0].decades(penalty) / near[0].decades(near[1].penalty)
        return torch.lerp(near[0].solution, near[1].solution, share)

    def _losses(self, z: Tensor) -> Tensor:
        """(n,): losses of logits z (n, classes)."""
        y, weights = self.problems.y, self.problems.class_weights
        if y.ndim == 1:
            return F.cross_entropy(z, y, reduction="none")
        of_pairs = None if weights is None else torch.where(y > 0.5, weights[1], weights[0])
        return F.binary_cross_entropy_with_logits(z, y, of_pairs, reduction="none").sum(1)

    def held_out_logits(self, solution: Tensor) -> Tensor:
        """(n, classes): logits of each sample by the probe of the fold that held it out."""
        z = torch.empty(len(self.judge), self.problems.classes, device=solution.device)
        for k in range(FOLDS):
            rows = torch.nonzero(self.judge == k)[:, 0]
            x = self.problems.x.unflatten(0, (len(self.judge), -1))
            for chunk in rows.split(_chunk(self.problems.x)):
                z[chunk] = self.problems.logits(x[chunk].flatten(0, 1), solution[k])
        return z
