"""A linear probe: multinomial logistic regression on stored features of a frozen backbone.

With features z_i, standardized to mean 0 and variance 1, labels y_i and sample weights w_i that sum to 1, the probe
minimizes over W (classes, features) and b (classes,)

    sum_i w_i * cross_entropy(W z_i + b, y_i)  +  penalty / 2 * |W|^2

in nats; the bias is not penalized. The objective is convex, so there is one solution and no learning rate. It is solved
with L-BFGS (Liu and Nocedal 1989, "On the limited memory BFGS method for large scale optimization"), in seconds where
training the same head takes minutes. The penalty is chosen from the grid PENALTIES by stratified cross-validation with
FOLDS folds: each image is judged by a probe that has not seen it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.errors import JobError

PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
"""The grid, strongest first: the solution for one penalty is the starting point for the next."""

FOLDS = 5
STEPS = 25  # L-BFGS iterations for each penalty, from the solution of the stronger one
FINAL_STEPS = 100  # L-BFGS iterations of the final fit, which starts at zero
OVERFITTED = 1.5  # the grid ends where the held-out loss exceeds the best one by this factor


@dataclass(frozen=True)
class LinearProbe:
    """A linear head, and its quality on samples that were held out."""

    weight: Tensor
    """(classes, features), for features that are not standardized."""
    bias: Tensor
    """(classes,)"""
    penalty: float
    losses: dict[float, float]
    """Penalty -> mean cross-entropy on the held-out folds in nats, with the sample weights of the fit."""
    probabilities: np.ndarray
    """(n, classes): each sample judged by the probe of the fold that held it out, at the chosen penalty."""


@dataclass(frozen=True)
class _Fit:
    """The data of a fit."""

    x: Tensor
    """(n, d) standardized features, rotated into the subspace of the samples if that is smaller."""
    y: Tensor
    """(n,) int64 labels."""
    weights: Tensor
    """(n,) sample weights, not normalized."""
    classes: int

    def normalized_weights(self) -> Tensor:
        """(n, 1): the sample weights of a single problem on all samples."""
        return (self.weights / self.weights.sum())[:, None]

    def zeros(self, problems: int) -> Tensor:
        """(problems * classes, d + 1): the starting point of `_solve`."""
        return torch.zeros(problems * self.classes, self.x.shape[1] + 1, device=self.x.device)


def fit_linear_probe(
    features: Tensor,
    labels: np.ndarray,
    classes: int,
    *,
    weights: Tensor | None = None,
    views: int = 1,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> LinearProbe:
    """Fit a linear probe to `features` (n, d) with `labels` (n,) int64; the penalty is chosen by cross-validation.

    `weights` (classes,) are weights of the samples of each class, in the fit and in the held-out loss.
    `views` is the number of augmented versions of each sample: the n features are that many consecutive passes over the
    same n / views samples. All views of a sample are in the same fold, and so are the samples of a group if `groups`
    (n / views,) int64 is given. A class with only one sample, or only one group, is never held out.
    `seed` determines the folds. Raises JobError if a feature is not finite.
    """
    x = features.float()
    mean, std = x.mean(0), x.std(0, correction=0)
    # A constant feature carries no information; dividing by its tiny deviation would blow up rounding errors.
    std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))
    x = (x - mean) / std
    if not torch.isfinite(x).all():
        raise JobError("the features of the backbone are not finite: check its weights")
    # n samples span at most n dimensions, and rotations change neither logits nor penalty: n coordinates are enough.
    rotation = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
    x = x if rotation is None else x @ rotation

    y = torch.from_numpy(labels).to(x.device)
    samples = len(labels) // views
    folds = stratified_folds(labels[:samples], FOLDS, seed, groups)
    sample_weights = torch.ones(len(x), device=x.device) if weights is None else weights.to(x)[y]
    data = _Fit(x, y, sample_weights, classes)
    penalty, losses, probabilities = _cross_validate(data, torch.from_numpy(np.tile(folds, views)).to(x.device))

    solution = _solve(x, y, data.normalized_weights(), penalty, data.zeros(1), FINAL_STEPS)
    # Undo rotation and standardization: W z + b with z = (f - mean) / std becomes weight f + bias.
    weight = (solution[:, :-1] if rotation is None else solution[:, :-1] @ rotation.T) / std
    return LinearProbe(weight, solution[:, -1] - weight @ mean, penalty, losses, probabilities.cpu().numpy())


def _cross_validate(data: _Fit, fold: Tensor) -> tuple[float, dict[float, float], Tensor]:
    """(best penalty, penalty -> held-out loss, held-out probabilities (n, classes)).

    `fold` (n,) int64 is the fold that holds each sample out, -1 for samples that are always trained on.
    """
    x, y, weights = data.x, data.y, data.weights
    # The folds are solved as one problem, so that a single matrix product serves all of them.
    training = torch.stack([fold != k for k in range(FOLDS)], 1) * weights[:, None]  # (n, folds)
    training = training / training.sum(0)
    held_out = torch.where(fold >= 0, weights, torch.zeros_like(weights)).double()
    held_out = held_out / held_out.sum()
    judge = fold.clamp(min=0)
    solution = data.zeros(FOLDS)
    losses: dict[float, float] = {}
    best: tuple[float, float, Tensor] | None = None  # loss, penalty, probabilities
    for penalty in PENALTIES:
        solution = _solve(x, y, training, penalty, solution, STEPS)
        logits = _logits(x, solution).view(len(x), FOLDS, data.classes)
        log_p = F.log_softmax(logits[torch.arange(len(x), device=x.device), judge].double(), 1)
        losses[penalty] = float(-(log_p[torch.arange(len(x)), y] * held_out).sum())
        if best is None or losses[penalty] < best[0]:
            best = (losses[penalty], penalty, log_p.exp())
        elif losses[penalty] > OVERFITTED * best[0]:
            break  # weaker penalties only overfit more
    assert best is not None
    return best[1], losses, best[2]


def stratified_folds(labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """(n,) int64: the fold that holds each sample out, classes spread evenly; -1 for the only sample of a class.

    With `groups` (n,) int64, all samples of a group have the same fold: -1 if the group holds all samples of a class.
    """
    generator = np.random.default_rng([seed, 0xF01D])
    if groups is not None:
        return _group_folds(labels, folds, generator, groups)
    fold = np.full(len(labels), -1, np.int64)
    start = 0  # each class continues at the next fold; otherwise all small classes would share the first folds
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            fold[members] = (start + np.arange(len(members))) % folds
            start += len(members)
    return fold


def _group_folds(labels: np.ndarray, folds: int, generator: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """Assign groups to folds greedily, the largest first: each to the fold with the fewest samples of its classes.

    Ties go to the smallest fold. Scikit-learn's StratifiedGroupKFold has no fold for "never held out".
    """
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), np.int64)  # (groups, classes)
    np.add.at(counts, (group, labels), 1)
    totals = counts.sum(0)
    fold_of_group = np.full(len(counts), -1, np.int64)
    filled = np.zeros((folds, len(totals)), np.int64)
    order = generator.permutation(len(counts))
    for g in order[np.argsort(-counts[order].sum(1), kind="stable")].tolist():
        if ((counts[g] == totals) & (counts[g] > 0)).any():
            continue  # holding this group out would leave a class without training samples
        crowded = filled @ (counts[g] / np.maximum(totals, 1))  # per fold, in shares of the classes of this group
        fold_of_group[g] = min(range(folds), key=lambda k: (crowded[k], filled[k].sum()))
        filled[fold_of_group[g]] += counts[g]
    return fold_of_group[group]


def _logits(x: Tensor, solution: Tensor) -> Tensor:
    """x (n, d), solution (m, d + 1) with the bias in the last column -> (n, m)."""
    return torch.addmm(solution[:, -1], x, solution[:, :-1].T)


def _solve(x: Tensor, y: Tensor, weights: Tensor, penalty: float, start: Tensor, steps: int) -> Tensor:
    """Minimize the sum over several problems on the same samples, which differ in their sample weights.

    x (n, d), y (n,), weights (n, problems) with columns that sum to 1, start (problems * classes, d + 1) with the bias
    in the last column -> a solution of the same shape.
    """
    problems = weights.shape[1]
    solution = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([solution], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
    targets = y[:, None].expand(-1, problems).reshape(-1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = _logits(x, solution).view(len(x) * problems, -1)
        losses = F.cross_entropy(logits, targets, reduction="none").view(len(x), problems)
        objective = (losses * weights).sum() + penalty / 2 * solution[:, :-1].square().sum()
        objective.backward()
        return objective

    optimizer.step(closure)
    return solution.detach()
