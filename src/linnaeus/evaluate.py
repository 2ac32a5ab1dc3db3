"""Figures that hold: every sample counted once, every proportion with its count and its interval."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from linnaeus.data.batches import Batch, Batches, Rows
from linnaeus.heap import steady_heap
from linnaeus.preprocess import Preprocessing
from linnaeus.shares import interval


@dataclass(frozen=True)
class Outputs:
    """What a network answered, in the order of the samples."""

    labels: np.ndarray
    """(n,) int64."""
    logits: np.ndarray
    """(n, classes) float32, or float64 where a temperature divided them."""
    groups: np.ndarray | None = None
    """(n,) int64: which pictures belong together, of one patient perhaps; None where each stands alone."""

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
        """How many groups there are, each picture without one among them; None where there are none."""
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


@dataclass(frozen=True)
class Figures:
    """How good the answers are. Shares are in 0..1."""

    n: int
    correct: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    """Wilson's interval; with groups, of as many pictures as these are worth (`shares.interval`)."""
    top5: float | None
    """Share with the right class among the five most likely; None with five classes or fewer."""
    balanced_accuracy: float
    """Mean recall over the classes that occur."""
    loss: float
    """Mean cross-entropy in nats."""
    groups: int | None = None
    """How many groups the pictures come in; None where each stands alone."""

    def to_dict(self) -> dict[str, Any]:
        found = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        if self.groups is None:
            del found["groups"]
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Figures:
        """What `to_dict` gave, perhaps among others, as JSON gives it back."""
        values = {field.name: found[field.name] for field in fields(cls) if field.name != "groups"}
        return cls(**{**values, "accuracy_ci95": tuple(values["accuracy_ci95"]), "groups": found.get("groups")})

    def __str__(self) -> str:
        low, high = self.accuracy_ci95
        of = f"{self.n}" if self.groups is None else f"{self.n} in {self.groups} groups"
        return f"{self.accuracy:.2%} ({self.correct} of {of}, 95 % interval {low:.1%} to {high:.1%})"


Answered = list[tuple[np.ndarray, np.ndarray, np.ndarray]]
"""For some batches: (N,) number, (N,) label and (N, classes) logits of each sample."""


@torch.inference_mode()
def answers(
    net: nn.Module,
    batches: Batches,
    prepare: Callable[[Batch], Tensor],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    collect: Callable[[Answered], list[Answered]] = lambda mine: [mine],
) -> Outputs:
    """Run `net`, in evaluation mode, over `batches`. Every sample is counted once, or it is an AssertionError.

    Where `batches` are a process's part, `collect` gives what every process has answered to its own. `net` is not
    wrapped: nobody waits for a process that has nothing to answer.
    """
    net.eval()

    def logits(batch: Batch) -> np.ndarray:
        with autocast():
            out = net(prepare(batch))
        return out.float().cpu().numpy()

    return gather(batches, logits, collect)


def gather(
    batches: Batches,
    logits: Callable[[Batch], np.ndarray],
    collect: Callable[[Answered], list[Answered]] = lambda mine: [mine],
) -> Outputs:
    """What `logits` gives for `batches`; as `answers`, every sample is counted once."""
    own: Answered = []
    with steady_heap():
        for batch in batches.epoch():
            if len(batch) > batch.lead:  # else it is there in place of nothing
                own.append((batch.indices, batch.labels.cpu().numpy(), logits(batch)))
    seen, labels, found = zip(*[answer for part in collect(own) for answer in part], strict=True)
    order = np.concatenate(seen)
    assert np.array_equal(np.sort(order), np.arange(batches.samples)), "every sample must be counted exactly once"
    back = np.argsort(order)
    return Outputs(np.concatenate(labels)[back], np.concatenate(found)[back])


def answer_pixels(
    network: nn.Module,
    preprocessing: Preprocessing,
    rows: Rows,
    labels: np.ndarray,
    *,
    batch: int,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    rank: int = 0,
    world: int = 1,
    collect: Callable[[Answered], list[Answered]] = lambda mine: [mine],
) -> Outputs:
    """What the whole network answers to decoded pictures: the preprocessing of evaluation, then `network`.

    With `world` processes each answers its part, of which `collect` makes the whole on all of them.
    """
    batches = Batches(rows, labels, batch=batch * world, device=device, rank=rank, world=world)
    return answers(network, batches, lambda b: preprocessing(b.pixels, b.shapes), autocast, collect)


def figures(outputs: Outputs) -> Figures:
    """The figures of a set of answers; at least one."""
    labels = outputs.labels
    n, k = outputs.logits.shape
    right = outputs.predicted == labels
    top5 = float(outputs.in_top(5).mean()) if k > 5 else None
    support = np.bincount(labels, minlength=k)
    recall = np.bincount(labels[right], minlength=k)[support > 0] / support[support > 0]
    correct = int(right.sum())
    within, loss = interval(right, outputs.groups), float(outputs.losses.mean())
    return Figures(n, correct, correct / n, within, top5, float(recall.mean()), loss, outputs.group_count)


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
