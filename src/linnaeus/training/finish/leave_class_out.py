"""How well a model would recognize images of a class that it was not trained on: each class is left out in turn.

The head is solved again without the class, on features that exist already, so that a turn takes a fraction of a second.
No images beside the training images are needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from linnaeus.metrics.intervals import student_quantile
from linnaeus.metrics.ood import auroc, choose_thresholds, combined_scores, distances
from linnaeus.metrics.outputs import softmax
from linnaeus.metrics.reference_vectors import reference_vectors
from linnaeus.metrics.stratification import stratified_folds
from linnaeus.models.logistic_regression import Problems, logits, solve
from linnaeus.models.penalty_search import FIRST_PENALTY

MOST_CLASSES = 50  # classes that take part; of more, a random choice
MOST_TURNS = 8  # classes that are left out, one in each turn
DIMENSIONS = 256  # of the features for the head: the principal components
STEPS, TOLERANCE = 60, 1e-3  # of the solver
TEST_EVERY = 4  # one in four known images is held out of the head and the references
FEWEST = 4  # images of a class that takes part


@dataclass(frozen=True)
class LeftOut:
    """Of each turn: the share of the left-out class that passes as known, and areas under the ROC curve against the
    known images."""

    classes: list[int]  # the classes that were left out, by index
    of: int  # number of classes that took part
    probability: np.ndarray
    distance: np.ndarray  # with the compact references
    combined: np.ndarray  # of the two scores together, as the model uses them, without thumbnails
    # Share of the images of the left-out class that thresholds accept as known, in 0..1: those that accept 95 % of the
    # test images of the other classes, chosen as the model's own.
    accepted: np.ndarray
    known: int  # test images of known classes, over all turns
    unknown: int  # images of the classes that were left out, over all turns

    def to_dict(self, names: tuple[str, ...]) -> dict[str, Any]:
        """For JSON; `names` are those of all classes."""
        areas = {"probability": self.probability, "distance": self.distance, "combined": self.combined}
        return {
            "classes": [names[label] for label in self.classes],
            "of": self.of,
            "known": self.known,
            "unknown": self.unknown,
            "accepted": float(self.accepted.mean()),
            "accepted_ci95": list(mean_interval(self.accepted)),
            "accepted_by_class": self.accepted.tolist(),
            "auroc": {name: float(values.mean()) for name, values in areas.items()},
            "auroc_ci95": list(mean_interval(self.combined)),
            "auroc_by_class": self.combined.tolist(),
        }


def mean_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of k values in 0..1, by Student's t; (0, 1) for a single one.

    If all are 0 or all are 1, it is the exact interval of a share of 0 or 1 of k (Clopper and Pearson 1934).
    """
    if len(values) < 2:
        return 0.0, 1.0
    if values.max() == 0 or values.min() == 1:
        bound = 0.025 ** (1 / len(values))
        return (bound, 1.0) if values.min() == 1 else (0.0, 1 - bound)
    half = student_quantile(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return max(0.0, float(values.mean()) - half), min(1.0, float(values.mean()) + half)


def leave_classes_out(features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None) -> LeftOut | None:
    """Leave each class out in turn, by the features (n, d) of training images with their labels (n,).

    Images of one of the `groups` (n,), such as copies, are held out together: an image like one of the references
    would look known. Of many classes a random choice takes part. None where fewer than three classes have enough
    images, where fewer than two can be held out, and where a feature is not finite.
    """
    generator = np.random.default_rng(0)
    present, counts = np.unique(labels, return_counts=True)
    present = present[counts >= FEWEST]
    if len(present) < 3:
        return None
    present = np.sort(generator.permutation(present)[:MOST_CLASSES])
    rows = np.flatnonzero(np.isin(labels, present))
    features, labels = features[rows], np.searchsorted(present, labels[rows])
    if not np.isfinite(features).all():
        return None
    order = generator.permutation(len(labels))
    if groups is None:
        # Stable, so that the images of each class stay in random order.
        order = order[np.argsort(labels[order], kind="stable")]
        test = np.zeros(len(labels), bool)
        test[order[::TEST_EVERY]] = True  # every fourth image of each class, up to rounding
    else:
        test = stratified_folds(labels, TEST_EVERY, groups=groups[rows]) == 0
        if len(np.unique(labels[test])) < 2:
            return None
    # At most some turns: each one costs a solved head.
    left = np.sort(generator.permutation(len(present))[:MOST_TURNS])
    z = _class_logits(features, labels, test, left)
    turns = [_turn(features, labels, test, int(c), z[:, i]) for i, c in enumerate(left)]
    probability, distance, combined, accepted = np.array([turn[0] for turn in turns]).T
    known, unknown = np.array([turn[1] for turn in turns]).sum(0).tolist()
    return LeftOut(present[left].tolist(), len(present), probability, distance, combined, accepted, known, unknown)


def _class_logits(features: np.ndarray, labels: np.ndarray, test: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(n, turns, classes): logits of all images by a head for each turn, solved without the class that is left out."""
    x = torch.from_numpy(features.astype(np.float32))
    fit = torch.from_numpy(~test)
    mean, std = x[fit].mean(0), x[fit].std(0)
    x = (x - mean) / torch.where(std > 1e-6 * std.max().clamp(min=1e-12), std, torch.ones_like(std))
    if x.shape[1] > DIMENSIONS:
        x = x @ _principal_directions(x[fit])
    y = torch.from_numpy(labels)
    weights = torch.stack([(y[fit] != int(c)).float() for c in left], 1)
    problems = Problems(x[fit], y[fit], weights / weights.sum(0), int(labels.max()) + 1)
    solution = solve(problems, FIRST_PENALTY, problems.zeros(), steps=STEPS, tolerance=TOLERANCE).values
    return torch.stack([logits(x, solution_of_class) for solution_of_class in solution], 1).numpy()


def _principal_directions(x: torch.Tensor) -> torch.Tensor:
    """(d, DIMENSIONS or fewer): orthonormal directions that hold most of the variance of `x` (n, d)."""
    # Fewer images than features span a smaller space, in which the matrix has no repeated eigenvalue 0: with hundreds
    # of them float32 does not converge.
    basis = torch.linalg.qr(x.T).Q if len(x) < x.shape[1] else None
    inside = x if basis is None else x @ basis
    scatter = inside.T @ inside
    try:
        vectors = torch.linalg.eigh(scatter).eigenvectors
    except torch.linalg.LinAlgError:  # constant features, for example
        vectors = torch.linalg.eigh(scatter.double()).eigenvectors.float()
    vectors = vectors[:, -DIMENSIONS:]
    return vectors if basis is None else basis @ vectors


def _turn(
    features: np.ndarray, labels: np.ndarray, test: np.ndarray, left: int, z: np.ndarray
) -> tuple[list[float], tuple[int, int]]:
    """(AUROC by probability, distance and both, share of unknown images accepted; numbers of known and unknown)."""
    inside, known, unknown = ~test & (labels != left), test & (labels != left), labels == left
    confidence = softmax(np.delete(z, left, 1)).max(1)
    compact = reference_vectors(features[inside], labels[inside])
    distance = distances(features, compact)
    scores = [(-confidence[part], distance[part]) for part in (known, unknown)]
    limits = choose_thresholds(distance[known], confidence[known])
    areas = [
        auroc(scores[0][0], scores[1][0])[0],
        auroc(scores[0][1], scores[1][1])[0],
        auroc(combined_scores(scores[0], scores[0]), combined_scores(scores[0], scores[1]))[0],
        float((~limits.unknown(distance[unknown], confidence[unknown])).mean()),
    ]
    return areas, (int(known.sum()), int(unknown.sum()))
