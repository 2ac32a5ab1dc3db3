"""From labels to figures: the head, held-out predictions, accuracy with its interval, and metrics per class."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch

from linnaeus.check.labels import rank_labels
from linnaeus.label.estimate import Audit, Estimate, estimate
from linnaeus.label.features import Features
from linnaeus.label.head import Head, HeadSolver
from linnaeus.label.journal import UNKNOWN, Label
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.outputs import softmax
from linnaeus.models.network import Network

AT_ONCE = 4096  # images whose features are in float32 at a time
DOUBT = 0.4
"""Probability of another class from which on a label is a suspect.

With 5 wrong labels of 100 (8 seeds), 16 are suspects on food10 and 14 on flowers16, 3.5 and 3.4 of the wrong ones among
them; without the bound 31 and 26, with 4.6 and 4.6.
"""

RECENTER = 1.5  # growth of the number of features after which their mean is computed again


class Answers(Protocol):
    """What answers about images: a head that learns, or a finished model."""

    classes: tuple[str, ...]

    def probabilities(self, rows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class ClassFigures:
    """Images of a class in the random sample, and how many of them the head labels so."""

    name: str
    n: int
    correct: int


@dataclass(frozen=True)
class Suspect:
    """A label that may be wrong."""

    image: int
    label: str
    suggested: str  # the class of the held-out answer, and its probability
    probability: float


@dataclass(frozen=True)
class Learned:
    """What a set of labels has taught."""

    answers: Answers | None = None
    """None where there are fewer than two classes to learn from."""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) int64: the labelled images with features."""
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) int64 into `classes`."""
    classes: tuple[str, ...] = ()
    groups: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(n,) int64: near duplicates share a number."""
    taught: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(m,) int64: the images that the head may learn from, neither reserved nor copies of reserved ones."""
    held_out: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    """(n, classes) float64: probabilities of each by a head that has not seen its group of near duplicates."""
    estimate: Estimate | None = None
    figures: tuple[ClassFigures, ...] = ()
    seconds: float = 0.0
    """From the labels to these figures."""

    @property
    def n(self) -> int:
        return len(self.rows)

    def suspects(self) -> list[Suspect]:
        """Labels that the held-out answer contradicts, by confident learning as in `linnaeus check`, surest first."""
        if self.answers is None:
            return []
        inside = np.flatnonzero(self.labels < self.held_out.shape[1])
        ranking = rank_labels(self.labels[inside], self.held_out[inside])
        suspects = []
        for k in ranking.order.tolist():
            label, predicted = int(self.labels[inside[k]]), int(ranking.predicted[k])
            if ranking.confident[k] and predicted != label and ranking.predicted_probability[k] >= DOUBT:
                names = self.classes[label], self.classes[predicted]
                suspects.append(Suspect(int(self.rows[inside[k]]), *names, float(ranking.predicted_probability[k])))
        return suspects


@dataclass
class LearnedHead:
    """Answers of the head that was solved last."""

    head: Head
    classes: tuple[str, ...]
    learner: Learner
    mean: np.ndarray  # the mean of the features when the head was solved

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """(k,) images with features -> (k, classes) float64."""
        return in_parts(lambda part: self.head.probabilities(self.learner.vectors(part, self.mean)), rows, self.classes)


@dataclass
class FinishedModel:
    """Answers of a finished model, from the features below its head; it does not learn."""

    features: Features
    classes: tuple[str, ...]
    temperature: float
    network: Network

    @classmethod
    def of(cls, features: Features) -> FinishedModel | None:
        """The model whose network is the backbone; None if that is not a finished model."""
        about, network = features.backbone.about, features.backbone.network
        if about is None or network is None:
            return None
        temperature = 1.0
        if about.calibration:
            temperature = Calibration.from_dict(about.calibration, features.backbone.name).temperature
        return cls(features, tuple(about.classes), temperature, network)

    def probabilities(self, rows: np.ndarray) -> np.ndarray:
        """(k,) images with features -> (k, classes) float64."""

        @torch.inference_mode()
        def probabilities(part: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(self.features.values[part].astype(np.float32)).to(self.features.backbone.device)
            return softmax(self.network.run(x, start="head").float().cpu().numpy() / self.temperature)

        return in_parts(probabilities, rows, self.classes)


@dataclass
class Learner:
    """Solves the head again for each set of labels."""

    features: Features
    audit: Audit
    model: Answers | None = None  # a finished model whose answers are reviewed; None: a head is solved from the labels
    solver: HeadSolver = field(default_factory=HeadSolver)
    mean: np.ndarray | None = None  # (width,) of the features; None before the first are ready
    _centered_at: int = 0
    _rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    # The features of `_rows`, centered by `_x_mean`.
    _x: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    _x_mean: np.ndarray | None = None
    # Image -> number of its group of near duplicates, for images that have been labelled.
    _group: dict[int, int] = field(default_factory=dict)
    position: dict[str, int] = field(init=False)  # path -> image

    def __post_init__(self) -> None:
        self.position = {path: i for i, path in enumerate(self.features.paths)}

    def learn(self, labels: Mapping[str, Label], passed_over: Container[int] = ()) -> Learned:
        """The head and the figures for these labels."""
        started = time.perf_counter()
        known = self._labelled(labels)
        answers, held_out = self._answers(known)
        if answers is None:
            return known
        drawn = np.flatnonzero(np.isin(known.rows, self.audit.sample(labels, passed_over)[0]))
        true = known.labels[drawn]
        hits = held_out[drawn].argmax(1) == true  # a class that the answers do not know is never a hit
        figures = tuple(
            ClassFigures(name, int((true == c).sum()), int(hits[true == c].sum()))
            for c, name in enumerate(known.classes)
        )
        return replace(
            known,
            answers=answers,
            held_out=held_out,
            estimate=estimate(hits, known.groups[drawn], true),
            figures=figures,
            seconds=time.perf_counter() - started,
        )

    def _answers(self, known: Learned) -> tuple[Answers | None, np.ndarray]:
        """The answers and their `held_out` probabilities; None where there are fewer than two classes to learn from."""
        if self.model is not None:
            return self.model, self.model.probabilities(known.rows)
        taught = np.isin(known.rows, known.taught)
        y = known.labels[taught]
        held_out = np.empty((known.n, len(known.classes)))
        if len(np.unique(y)) < 2:
            return None, held_out
        self.recenter()
        assert self.mean is not None
        same = self._follow(known.rows[taught])
        head = self.solver.solve(self._x, y, len(known.classes), known.groups[taught], same)
        answers = LearnedHead(head, known.classes, self, self.mean)
        held_out[taught] = head.held_out_probabilities
        held_out[~taught] = answers.probabilities(known.rows[~taught])
        return answers, held_out

    def _follow(self, rows: np.ndarray) -> int:
        """Bring `_x` up to date. Returns the number of leading rows that are as before."""
        same = 0
        if self._x_mean is self.mean:
            n = min(len(rows), len(self._rows))
            different = np.flatnonzero(rows[:n] != self._rows[:n])
            same = int(different[0]) if len(different) else n
        self._x = np.concatenate(
            [self._x[:same].reshape(same, self.features.values.shape[1]), self.vectors(rows[same:])]
        )
        self._rows, self._x_mean = rows, self.mean
        return same

    def _labelled(self, labels: Mapping[str, Label]) -> Learned:
        """The labelled images with features, and which of them the head may learn from."""
        position, ready = self.position, self.features.ready
        pairs = [
            (position[path], label.label)
            for path, label in labels.items()
            if label.label != UNKNOWN and path in position and ready[position[path]]
        ]
        first = () if self.model is None else self.model.classes
        classes = tuple(dict.fromkeys([*first, *(name for _, name in pairs)]))
        index = {name: c for c, name in enumerate(classes)}
        rows = np.array([i for i, _ in pairs], np.int64)
        groups = np.array(self.groups(rows.tolist()), np.int64)
        reserved = np.isin(groups, groups[np.isin(rows, self.audit.reserved)])
        numbers = np.array([index[name] for _, name in pairs], np.int64)
        return Learned(None, rows, numbers, classes, groups, rows[~reserved])

    def positions(self, paths: Iterable[str]) -> list[int]:
        """The images at these paths that are in the folder: labels may be of others, which were removed."""
        return [self.position[path] for path in paths if path in self.position]

    def with_features(self, labels: Mapping[str, Label]) -> int:
        """How many of the labelled images have features."""
        return int(self.features.ready[self.positions(labels)].sum())

    def vectors(self, rows: np.ndarray, mean: np.ndarray | None = None) -> np.ndarray:
        """(k,) images with features -> (k, width) float32 of length 1, centered by `mean` (default: the current)."""
        x = self.features.values[rows].astype(np.float32)
        mean = self.mean if mean is None else mean
        if mean is not None:
            x -= mean
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    def recenter(self) -> None:
        """Compute the mean again once there are many more features; each change of it solves all heads anew."""
        n = int(self.features.ready.sum())
        if n and (self.mean is None or n >= RECENTER * self._centered_at):
            rows = np.flatnonzero(self.features.ready)[:AT_ONCE]
            self.mean, self._centered_at = self.features.values[rows].astype(np.float32).mean(0), n

    def groups(self, rows: Sequence[int]) -> list[int]:
        """A number for each image, which near duplicates share."""
        for i in rows:
            if i in self._group:
                continue
            known = [self._group[j] for j in self.features.near_duplicates(i).tolist() if j in self._group]
            self._group[i] = min(known, default=i)
            for group in set(known) - {self._group[i]}:  # this image connects them
                self._group = {j: self._group[i] if g == group else g for j, g in self._group.items()}
        return [self._group[i] for i in rows]


def in_parts(probabilities: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(k, classes) float64: the probabilities of `rows` (k,), AT_ONCE of them at a time."""
    parts = [probabilities(rows[start : start + AT_ONCE]) for start in range(0, len(rows), AT_ONCE)]
    return np.concatenate(parts) if parts else np.zeros((0, len(classes)))
