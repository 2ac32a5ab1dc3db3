"""A linear probe: logistic regression on stored features of a frozen backbone.

It is multinomial, or where images may have several labels one independent regression for each label.

The features are standardized to mean 0 and variance 1. The penalty is chosen by stratified cross-validation: each image
is predicted by a probe that has not seen it. With many images and classes, one fold chooses the penalty (see LARGE). It
is solved in seconds where training the same head takes minutes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.console import Advance
from linnaeus.errors import JobError
from linnaeus.metrics.stratification import FOLDS, stratified_folds
from linnaeus.models.logistic_regression import Problems, solve
from linnaeus.models.penalty_search import (
    STEPS,
    STRONGEST,
    TOLERANCE,
    WEAKEST,
    Candidate,
    Folds,
    PenaltySearch,
    SearchProgress,
    chunk_of,
)

FINAL_STEPS, FINAL_TOLERANCE = 300, 1e-4
LARGE = 4_000_000
"""Samples times classes from which on one fold chooses the penalty, if it has MIN_HELD_OUT samples. The features are
then made uncorrelated, so that the Hessian can be estimated. 10,000 samples and 1,000 classes take an eighth of the
time."""
MIN_HELD_OUT = 1000  # the 95 % interval of an accuracy is at most 3 percentage points to each side


@dataclass(frozen=True)
class LinearProbe:
    """A linear head, and its quality on samples that were held out."""

    weight: Tensor  # (classes, features), for features that are not standardized
    bias: Tensor  # (classes,)
    penalty: float
    # Penalty -> mean cross-entropy on the held-out folds in nats, with the weights of the fit.
    losses: dict[float, float]
    # Penalty -> accuracy on the held-out samples; empty where there may be several labels.
    accuracies: dict[float, float]
    # (m,) int64, ascending: samples with a held-out prediction. All that some fold holds out, or the first fold.
    held_out: np.ndarray
    # (m, classes): their predictions by the probe of the fold that held them out, at the chosen penalty.
    probabilities: np.ndarray
    folds: int  # folds that were held out: FOLDS, or 1
    training_logits: Tensor  # (n, classes): logits of each sample by this head, which has seen it

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
    all_folds: bool = True,
    advance: Advance | None = None,
) -> LinearProbe:
    """Fit a linear probe to `features` (n, d); the penalty is chosen by cross-validation.

    `labels` are (n,) int64, or (n, classes) bool where images may have several. Features (n, windows, d) are for a
    `WindowClassifier`.

    float32 `features` are overwritten, so that the peak of memory stays below twice their size.
    `fold` (n,) int64 is the fold that holds each sample out, -1 for none; by default `stratified_folds(labels)`.
    `weights` (classes,) are weights of the samples of each class, in the fit and in the held-out loss; with several
    labels (2, classes), of the samples without and with each label.
    Without `all_folds` only the samples of one fold are predicted where that chooses the penalty (see LARGE).
    `advance` is called after each pass over the features, with the passes so far and those expected in all.
    Raises JobError if a feature is not finite.
    """
    windows = features.shape[1] if features.ndim == 3 else 1
    x = features.float().flatten(0, -2)  # a row for each window
    mean, std = _standardize(x)
    fold = stratified_folds(labels) if fold is None else fold
    large = windows == 1 and len(x) * classes >= LARGE and (fold == 0).sum() >= MIN_HELD_OUT
    x, rotation, variances = _rotate(x, large)
    problem = replace(problem_of(x, labels, classes, weights, windows), variances=variances)
    progress = SearchProgress(advance)
    together = [range(k, k + 1) for k in range(FOLDS)] if large else [range(FOLDS)]
    folds = [Folds.of(problem, torch.from_numpy(fold).to(x.device), numbers, progress) for numbers in together]
    search = PenaltySearch(folds[0], progress)
    best = search.run()
    held_out, probabilities = _held_out_probabilities(folds if all_folds else folds[:1], fold, best, progress)
    progress.begin("all images", 0)
    final = replace(problem, evaluated=progress.passed)
    # The mean over the folds is close to the solution on all samples. The curvature of one fold is of no use: where its
    # probe separates all samples that it has seen, the curvature vanishes, unlike that on all samples.
    start, before = best.solution.mean(0, keepdim=True), None if search.last is None or large else search.last.mean()
    search.last = None  # its curvature takes memory that the last fit needs
    solution = solve(final, best.penalty, start, steps=FINAL_STEPS, tolerance=FINAL_TOLERANCE, before=before).values[0]
    training_logits = problem.logits(x, solution)
    # Undo rotation and standardization: W z + b with z = (f - mean) / std becomes weight f + bias.
    weight = (solution[:, :-1] if rotation is None else solution[:, :-1] @ rotation.T) / std
    bias = solution[:, -1] - weight @ mean
    trials, predicted = (search.losses, search.accuracies), FOLDS if all_folds else len(together[0])
    return LinearProbe(weight, bias, best.penalty, *trials, held_out, probabilities, predicted, training_logits)


def problem_of(x: Tensor, labels: np.ndarray, classes: int, weights: Tensor | None, windows: int = 1) -> Problems:
    """One problem on all samples, with the labels and weights of `fit_linear_probe`."""
    y, several = torch.from_numpy(labels).to(x.device), labels.ndim == 2
    weights = None if weights is None else weights.to(x)
    sample_weights = torch.ones(len(y), device=x.device) if weights is None or several else weights[y]
    shares = (sample_weights / sample_weights.sum())[:, None]
    return Problems(
        x, y.to(x) if several else y, shares, classes, class_weights=weights if several else None, windows=windows
    )


def _held_out_probabilities(
    folds: list[Folds], fold: np.ndarray, best: Candidate, progress: SearchProgress
) -> tuple[np.ndarray, np.ndarray]:
    """(m,) samples of `folds`, ascending, and their probabilities (m, classes) by the probes that have not seen them.

    The first of `folds` are solved by `best`, the others here.
    """
    rows, z = [folds[0].rows], [folds[0].logits(best.solution)]
    for k, other in enumerate(folds[1:], 2):
        progress.begin(f"penalty {best.penalty:g}", len(folds) - k)
        # From zeros: the solution for the first fold has seen the samples that this one is evaluated on.
        start = other.problems.zeros()
        solution = solve(other.problems, best.penalty, start, steps=STEPS, tolerance=TOLERANCE).values
        rows.append(other.rows)
        z.append(other.logits(solution))
    samples, order = torch.cat(rows).sort()
    logits = torch.cat(z)[order]
    probabilities = torch.sigmoid(logits) if folds[0].labels.ndim == 2 else F.log_softmax(logits, 1).exp()
    unseen = fold[samples.cpu().numpy()] >= 0  # every probe has seen a sample that no fold holds out
    return samples.cpu().numpy()[unseen], probabilities.cpu().numpy()[unseen]


def _standardize(x: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize features (n, d) in place. Returns their mean and standard deviation, each (d,)."""
    mean = x.mean(0)
    x.sub_(mean)
    # Squares in chunks: torch.std takes ten times as long over the first dimension.
    std = torch.stack([rows.square().sum(0) for rows in x.split(chunk_of(x))]).sum(0).div_(len(x)).sqrt_()
    if not torch.isfinite(std).all():  # the deviation of a column with a NaN or an infinity is not finite
        raise JobError("the features of the backbone are not finite: check its weights")
    # A constant feature carries no information; dividing by its tiny deviation would blow up rounding errors.
    std = torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))
    x.div_(std)
    return mean, std


def _rotate(x: Tensor, large: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Rotate features (n, d), which changes neither logits nor penalty, to solve them faster.

    Returns the features, the rotation, and if they are uncorrelated their variances. `large` rotates in place.
    """
    if large:
        variances, rotation = torch.linalg.eigh(x.T @ x / len(x))
        for rows in x.split(chunk_of(x)):
            rows.copy_(rows @ rotation)
        return x, rotation, variances.clamp_(min=0)
    if len(x) < x.shape[1]:  # n rows span at most n dimensions: n coordinates are enough
        rotation = torch.linalg.qr(x.T).Q
        return x @ rotation, rotation, None
    return x, None, None
