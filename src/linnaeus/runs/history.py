"""The rows of history.csv."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A line of history.csv: one epoch. Losses in nats, accuracies in 0..1; train_accuracy is None with mixing."""

    phase: int
    """From 1."""
    epoch: int
    """From 1 in each phase."""
    lr: float
    """The learning rate of the head."""
    train_loss: float
    """Mean over the images as training sees them, augmented, while the weights change."""
    train_accuracy: float | None
    """Of the same; empty where images are mixed."""
    valid_loss: float
    """Mean over all validation images after the epoch."""
    valid_accuracy: float
    """Share of them that is right."""
    seconds: float
    """Of the epoch, validation included."""
