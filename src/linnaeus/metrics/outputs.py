"""Model outputs on a set of labelled samples: labels, logits, groups."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Outputs:
    """What a network answered, in the order of the samples."""

    labels: np.ndarray
    """(n,) int64."""
    logits: np.ndarray
    """(n, classes) float32, or float64 where a temperature divided them."""
    groups: np.ndarray | None = None
    """(n,) int64: which images belong together, of one patient perhaps; None where each stands alone."""

    def at(self, temperature: float) -> Outputs:
        """The same answers with their logits divided by `temperature`.

        In float64, where different float32 values stay different: no temperature changes which class comes first.
        """
        return self if temperature == 1 else replace(self, logits=self.logits.astype(np.float64) / temperature)

    @property
    def probabilities(self) -> np.ndarray:
        """(n, classes) float64, rows summing to 1."""
        return softmax(self.logits)

    def take(self, chosen: np.ndarray) -> Outputs:
        """Those of some samples: indices, or (n,) bool."""
        groups = None if self.groups is None else self.groups[chosen]
        return replace(self, labels=self.labels[chosen], logits=self.logits[chosen], groups=groups)

    @property
    def group_count(self) -> int | None:
        """How many groups there are, each image without one among them; None where there are none."""
        return None if self.groups is None else len(np.unique(self.groups))

    @property
    def predicted(self) -> np.ndarray:
        """(n,) int64; of equal logits the first."""
        return self.logits.argmax(1)

    @property
    def losses(self) -> np.ndarray:
        """(n,) float64: the cross-entropy of each sample in nats. Exact, where others clip the probability."""
        return -log_softmax(self.logits)[np.arange(len(self.labels)), self.labels]

    def in_top(self, k: int) -> np.ndarray:
        """(n,) bool: whether the right class is among the k most likely; of equal logits the first comes first."""
        true = self.logits[np.arange(len(self.labels)), self.labels][:, None]
        earlier = np.arange(self.logits.shape[1]) < self.labels[:, None]
        return ((self.logits > true) | ((self.logits == true) & earlier)).sum(1) < k


def confusion_matrix(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """(classes, classes) int64 counts: rows true, columns predicted."""
    return np.bincount(labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log-probabilities in float64, along the last axis."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities in float64, along the last axis."""
    return np.exp(log_softmax(logits))
