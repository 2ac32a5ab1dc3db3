"""The training loss, class weights, and the loss and accuracy of an epoch so far."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.errors import JobError
from linnaeus.recipe import Phase


def balanced_weights(labels: np.ndarray, classes: int) -> Tensor:
    """(classes,) float32: weights inversely proportional to the class counts, with mean 1 over the samples.

    With several labels, (n, classes) bool, they are (2, classes): of the samples without and with each label.
    """
    if labels.ndim == 2:
        positives = labels.sum(0)
        counts = np.stack([len(labels) - positives, positives])
        return torch.tensor(np.where(counts > 0, len(labels) / (2 * np.maximum(counts, 1)), 0.0), dtype=torch.float32)
    counts = np.bincount(labels, minlength=classes)
    weights = np.where(counts > 0, len(labels) / (np.maximum(counts, 1) * (counts > 0).sum()), 0.0)
    return torch.tensor(weights, dtype=torch.float32)


class Criterion:
    """Cross-entropy on logits, summed over the batch, with label smoothing and class weights.

    With several labels it is the sum of the binary cross-entropies. The gradient of a logit is then probability minus
    target, as it is for one label, so the same learning rate fits.

    Class weights have mean 1 over the training samples, so they do not change the scale of the loss, and the same
    learning rate fits.
    """

    def __init__(self, phase: Phase, labels: np.ndarray, classes: int, device: torch.device):
        self.smoothing, self.classes = phase.label_smoothing, classes
        self.several = labels.ndim == 2
        self.weights: Tensor | None = None
        if phase.class_weights == "balanced":
            self.weights = balanced_weights(labels, classes).to(device)

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the summed loss. `targets`: (N,) classes, or (N, classes) labels, or class shares of mixed images."""
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.several:
            return self._binary(logits, targets.to(logits))
        targets = targets.to(logits) if targets.is_floating_point() else targets
        losses = F.cross_entropy(logits, targets, label_smoothing=self.smoothing, reduction="none")
        if self.weights is None:
            return losses.sum()
        weights = self.weights[targets] if targets.ndim == 1 else targets @ self.weights.to(targets)
        return (losses * weights).sum()

    def _binary(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss for several labels; `targets` (N, classes) in 0..1. Smoothing moves them towards 1/2."""
        weights = None
        if self.weights is not None:
            without, with_label = self.weights.to(targets)
            weights = without + targets * (with_label - without)
        smoothed = targets * (1 - self.smoothing) + self.smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, weights, reduction="sum")


class EpochTotals:
    """Running loss and accuracy of an epoch, summed on the device."""

    CHECK_EVERY = 50
    """Steps between two checks of the loss on a GPU. A check reads what the one before has copied."""

    def __init__(self, device: torch.device):
        # MPS has no float64.
        self.loss = torch.zeros((), dtype=torch.float64, device="cpu" if device.type == "mps" else device)
        self.correct: Tensor | None = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = 0
        self.check_every = 1 if device.type == "cpu" else self.CHECK_EVERY
        self._means: tuple[float, float | None] | None = None
        # A number of a GPU is copied to the host here, and read at the next check: nothing waits for it.
        self._copied = torch.zeros((), dtype=torch.float64).pin_memory() if device.type == "cuda" else None

    def add(self, loss: Tensor, correct: Tensor | None, samples: int) -> None:
        """Add the sums of one step. `correct` is None if images are mixed and have no single label."""
        self.loss = self.loss + loss.to(self.loss)
        self.correct = None if correct is None or self.correct is None else self.correct + correct.long()
        self.samples += samples
        self._means = None

    def restore(self, loss: Tensor, correct: Tensor | None, samples: int) -> None:
        """Continue from the sums of an interrupted epoch."""
        self.loss = loss.to(self.loss)
        self.correct = None if correct is None or self.correct is None else correct.to(self.correct)
        self.samples, self._means = samples, None

    def means(self) -> tuple[float, float | None]:
        """Return (mean loss, accuracy or None) so far. On a GPU this waits for the device."""
        if self._means is None:
            accuracy = None if self.correct is None else float(self.correct) / self.samples
            self._means = float(self.loss) / self.samples, accuracy
        return self._means

    def check_finite(self, epoch: int, step: int, lr: float, *, always: bool = False) -> None:
        """Raise JobError if the loss is NaN or infinite; looks every `check_every` steps, or `always`."""
        if not always and (step + 1) % self.check_every:
            return
        # The copy of the loss is one interval old, so that reading it does not wait for the device.
        if always or self._copied is None:
            finite = math.isfinite(self.means()[0])
        else:
            finite = math.isfinite(self._copied)
            self._copied.copy_(self.loss, non_blocking=True)
        if not finite:
            place = f"epoch {epoch + 1}, step {step + 1}"
            if self.check_every > 1:
                place += f" or one of the {2 * self.check_every} steps before"
            raise not_finite(float(self.loss), place, lr)


def not_finite(loss: float, place: str, lr: float) -> JobError:
    """The error for a loss that is NaN or infinite."""
    return JobError(
        f"the loss is not finite ({loss:g}) at {place}, with learning rate {lr:g}; "
        f"try a lower one (--lr {lr / 10:g}) or clip the gradient (--set clip=1)"
    )
