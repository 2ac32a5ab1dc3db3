"""A linear head on stored vectors, chosen by cross-validation: seconds, where training it by the epoch takes minutes.

Multinomial logistic regression with an L2 penalty, solved by L-BFGS on standardised vectors (Liu and Nocedal 1989). It
is convex: there is one answer and no learning rate, and the penalty is chosen on images that the answer has not seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.errors import JobError

PENALTIES = (0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4)
"""Weights of half the squared norm against the mean cross-entropy, the strongest first: each answer starts the next."""

STEPS = 25  # of L-BFGS for each penalty, from the solution of the stronger one
FINAL_STEPS = 100


@dataclass(frozen=True)
class Head:
    """A linear head, and how good it is on what it has not seen."""

    weight: Tensor
    """(classes, features), for vectors as they are: the standardisation is folded in."""
    bias: Tensor
    """(classes,)"""
    penalty: float
    losses: dict[float, float]
    """Penalty -> mean cross-entropy on the held-out folds, in nats, weighted as the samples are."""
    probabilities: np.ndarray
    """(n, classes) of each vector by the head of the fold that did not see it, at the chosen penalty."""


def fit_head(
    vectors: Tensor, labels: np.ndarray, classes: int, *, weights: Tensor | None = None, views: int = 1,
    folds: int = 5, seed: int = 0, groups: np.ndarray | None = None,
) -> Head:  # fmt: skip
    """Fit a head to `vectors` (n, features) with `labels` (n,), the penalty chosen by stratified cross-validation.

    `weights` (classes,) are what a sample of each class counts in the loss, by which the penalty is chosen too.
    With `views`, the n vectors are that many rounds through the same samples, and a sample's views share a fold, as
    do the samples of a group where `groups` (samples,) int64 says which belong together. A class with a single sample,
    or in a single group, is never held out. Raises JobError where the vectors are not finite.
    """
    x = vectors.float()
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))  # a dead feature says nothing
    x = (x - mean) / std
    if not torch.isfinite(x).all():
        raise JobError("the vectors below the head are not finite; are the network's weights sound?")
    # The penalty does not change when the features are rotated, so no more of them are needed than there are vectors.
    rotation = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
    x = x if rotation is None else x @ rotation
    y = torch.from_numpy(labels).to(x.device)
    samples = len(labels) // views
    fold = torch.from_numpy(np.tile(stratified_folds(labels[:samples], folds, seed, groups), views)).to(x.device)
    counts = torch.ones(len(x), device=x.device) if weights is None else weights.to(x)[y]
    # All folds are solved at once: one matrix product serves them all.
    trains = torch.stack([fold != k for k in range(folds)], 1) * counts[:, None]  # (n, folds)
    trains = trains / trains.sum(0)
    measured = torch.where(fold >= 0, counts, torch.zeros_like(counts)).double()
    measured = measured / measured.sum()
    held_out = fold.clamp(min=0)
    solution = torch.zeros(folds * classes, x.shape[1] + 1, device=x.device)
    losses: dict[float, float] = {}
    best: tuple[float, float, Tensor] | None = None
    for penalty in PENALTIES:
        solution = _solve(x, y, trains, penalty, solution, STEPS)
        logits = _logits(x, solution).view(len(x), folds, classes)
        own = logits[torch.arange(len(x), device=x.device), held_out]
        log_p = F.log_softmax(own.double(), 1)
        losses[penalty] = float(-(log_p[torch.arange(len(x)), y] * measured).sum())
        if best is None or losses[penalty] < best[0]:
            best = (losses[penalty], penalty, log_p.exp())
        elif losses[penalty] > 1.5 * best[0]:
            break  # weaker penalties only overfit more
    assert best is not None
    _, penalty, probabilities = best
    everything = (counts / counts.sum())[:, None]
    final = _solve(x, y, everything, penalty, torch.zeros(classes, x.shape[1] + 1, device=x.device), FINAL_STEPS)
    weight = (final[:, :-1] if rotation is None else final[:, :-1] @ rotation.T) / std
    return Head(weight, final[:, -1] - weight @ mean, penalty, losses, probabilities.cpu().numpy())


def stratified_folds(labels: np.ndarray, folds: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """(n,) int64: the fold that holds each sample out, classes spread evenly; -1 for the only sample of a class.

    With `groups` (n,) int64 a group shares a fold, and it is -1 for a group that has all of a class.
    """
    generator = np.random.default_rng([seed, 0xF01D])
    if groups is not None:
        return _group_folds(labels, folds, generator, groups)
    found = np.full(len(labels), -1, np.int64)
    start = 0  # classes begin in turn at each fold, so that small classes do not all fill the first
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        if len(members) > 1:
            found[members] = (start + np.arange(len(members))) % folds
            start += len(members)
    return found


def _group_folds(labels: np.ndarray, folds: int, generator: np.random.Generator, groups: np.ndarray) -> np.ndarray:
    """The largest group first, each into the fold that has least of its classes yet; of equal folds, the smallest."""
    _, group = np.unique(groups, return_inverse=True)
    counts = np.zeros((int(group.max()) + 1, int(labels.max()) + 1), np.int64)  # (groups, classes)
    np.add.at(counts, (group, labels), 1)
    totals = counts.sum(0)
    found = np.full(len(counts), -1, np.int64)
    filled = np.zeros((folds, len(totals)), np.int64)
    order = generator.permutation(len(counts))
    for g in order[np.argsort(-counts[order].sum(1), kind="stable")].tolist():
        own = counts[g]
        if ((own == totals) & (own > 0)).any():
            continue
        crowded = filled @ (own / np.maximum(totals, 1))
        found[g] = min(range(folds), key=lambda k: (crowded[k], filled[k].sum()))
        filled[found[g]] += own
    return found[group]


def _logits(x: Tensor, solution: Tensor) -> Tensor:
    return torch.addmm(solution[:, -1], x, solution[:, :-1].T)


def _solve(x: Tensor, y: Tensor, shares: Tensor, penalty: float, start: Tensor, steps: int) -> Tensor:
    """Minimise the sum over problems of mean cross-entropy + penalty / 2 * |W|^2. The bias is not penalised.

    x (n, d), y (n,), shares (n, problems) with columns summing to 1, start (problems * classes, d + 1) -> as start.
    """
    problems = shares.shape[1]
    solution = start.clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS([solution], max_iter=steps, history_size=10, line_search_fn="strong_wolfe")
    targets = y[:, None].expand(-1, problems).reshape(-1)

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = _logits(x, solution).view(len(x) * problems, -1)
        each = F.cross_entropy(logits, targets, reduction="none").view(len(x), problems)
        value = (each * shares).sum() + penalty / 2 * solution[:, :-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return solution.detach()
