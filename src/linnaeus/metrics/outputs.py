"""Outputs of a classifier on a set of labelled images, and the terms that metrics are averaged from."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Outputs:
    """Logits of n images, with their labels.

    The properties below are computed on each access; keep them in a variable where they are used more than once.
    """

    labels: np.ndarray  # (n,) int64; or (n, classes) bool where an image may have several labels
    logits: np.ndarray  # (n, classes) float32, or float64 once divided by a temperature
    # (n,) int64: images with the same number belong together, such as the images of one patient. None: no groups.
    groups: np.ndarray | None = None
    # (n,) cosine distance from what the model was trained on; None where the model has no references.
    distances: np.ndarray | None = None

    @property
    def several(self) -> bool:
        """Whether an image may have several labels. Predicted class, confidence and what follows are then undefined."""
        return self.labels.ndim == 2

    def at(self, temperature: float) -> Outputs:
        """Outputs with the logits divided by `temperature`.

        The result is float64: in float32 a division can make two different logits equal, which would change the
        predicted class.
        """
        return self if temperature == 1 else replace(self, logits=self.logits.astype(np.float64) / temperature)

    def take(self, rows: np.ndarray) -> Outputs:
        """Outputs of some images, selected by index or by a boolean mask (n,)."""
        groups = None if self.groups is None else self.groups[rows]
        distances = None if self.distances is None else self.distances[rows]
        return replace(self, labels=self.labels[rows], logits=self.logits[rows], groups=groups, distances=distances)

    @property
    def group_count(self) -> int | None:
        """Number of groups, where an image in no group counts as a group of its own; None without groups."""
        return None if self.groups is None else len(np.unique(self.groups))

    @property
    def probabilities(self) -> np.ndarray:
        """(n, classes) float64; each row sums to 1, but not where images may have several labels."""
        return sigmoid(self.logits) if self.several else softmax(self.logits)

    @property
    def predicted(self) -> np.ndarray:
        """(n,) int64: the class with the largest logit; the first of equal ones."""
        self._require_one_label()
        return self.logits.argmax(1)

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: whether the predicted class is the label."""
        return self.predicted == self.labels

    @property
    def confidence(self) -> np.ndarray:
        """(n,) float64: probability of the predicted class."""
        self._require_one_label()
        return self.probabilities.max(1)

    @property
    def losses(self) -> np.ndarray:
        """(n,) float64: cross-entropy in nats, from the exact log-probability (not from a clipped probability).

        With several labels: the sum of the binary cross-entropies.
        """
        if self.several:
            logits = self.logits.astype(np.float64)
            return (np.logaddexp(0, logits) - np.where(self.labels, logits, 0)).sum(1)
        return -log_softmax(self.logits)[np.arange(len(self.labels)), self.labels]

    @property
    def brier_scores(self) -> np.ndarray:
        """(n,) float64: squared distance between the probabilities and the one-hot label (Brier 1950).

        The range is 0..2. With two classes half of the distance is used, as is customary, so that the range is 0..1.
        """
        self._require_one_label()
        probabilities = self.probabilities
        of_label = probabilities[np.arange(len(probabilities)), self.labels]
        squares = (probabilities**2).sum(1) - 2 * of_label + 1
        return squares / 2 if probabilities.shape[1] == 2 else squares

    def in_top(self, k: int) -> np.ndarray:
        """(n,) bool: whether the label is among the k largest logits; of equal logits the lower class ranks first."""
        self._require_one_label()
        of_label = self.logits[np.arange(len(self.labels)), self.labels][:, None]
        lower_class = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > of_label) | ((self.logits == of_label) & lower_class)).sum(1) < k

    def _require_one_label(self) -> None:
        """A mistake of ours, never of the user: a metric of one label per image would be wrong, and look right."""
        assert not self.several, "images with several labels have no predicted class"


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64 of each label on its own."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64, along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, along the last axis."""
    return np.exp(log_softmax(logits))
