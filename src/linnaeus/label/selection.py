"""Which image is asked about next: random, of small margin, diverse, or in the order of the files.

Margin: the difference of the two largest probabilities (Scheffer, Decomain and Wrobel 2001). Diverse: the image that is
farthest from all labelled ones, the greedy 2-approximation of k-center (Gonzalez 1985; Sener and Savarese 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, field

import numpy as np

from linnaeus.label.estimate import AUDIT_EVERY, AUDIT_FIRST
from linnaeus.label.features import SIMILAR, Features
from linnaeus.label.journal import Label
from linnaeus.label.learner import Learned, Learner

ORDERS = ("mixed", "margin", "diverse", "random", "file")
POOL = 4096
"""Unlabelled images among which the next one is chosen, a random part of the folder: bounds time and memory."""

SHORTLIST = 8
"""`mixed`: of how many images of small margin the farthest one is asked about."""

CONFIDENT_LABELS = 2
"""Labels per class, on average, below which margins mean nothing and diverse images are asked about."""


@dataclass(frozen=True)
class Question:
    """An image to ask about."""

    image: int
    reason: str
    """random, margin, diverse or file."""


@dataclass
class Pool:
    """Unlabelled images with features, and how close each is to a labelled one."""

    learner: Learner
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    closest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """(k,) largest cosine to a labelled image; -1 where there is none."""
    mean: np.ndarray | None = None
    """The mean of the features when the pool was filled."""
    _ready: int = 0
    _seen: set[int] = field(default_factory=set)

    def update(self, labelled: np.ndarray) -> None:
        """Follow the labels (n,) int64 of images: drop what is labelled, take in new features when they are many."""
        self.learner.recenter()
        features = self.learner.features
        ready, gone = int(features.ready.sum()), set(labelled.tolist())
        left = len(self.rows) - len(gone.intersection(self.rows.tolist()))
        if ready > 1.1 * self._ready + 8 or left < len(self.rows) // 2 or self.mean is not self.learner.mean:
            self._fill(gone, labelled, ready)
            return
        if not self._seen <= gone:  # an answer was undone
            self._fill(gone, labelled, ready)
            return
        new = np.array(sorted(gone - self._seen), np.int64)
        if len(new) and len(self.rows):
            self.closest = np.maximum(self.closest, (self.vectors @ self.learner.vectors(new).T).max(1))
        self._seen = gone

    def _fill(self, gone: set[int], labelled: np.ndarray, ready: int) -> None:
        features, order = self.learner.features, self.learner.audit.order
        open_rows = order[features.ready[order]]
        mask = np.ones(len(features.paths), bool)
        mask[labelled] = False
        self.rows = open_rows[mask[open_rows]][:POOL]
        self.vectors = self.learner.vectors(self.rows)
        self.closest = np.full(len(self.rows), -1, np.float32)
        for start in range(0, len(labelled), POOL):
            others = self.learner.vectors(labelled[start : start + POOL])
            if len(self.rows):
                self.closest = np.maximum(self.closest, (self.vectors @ others.T).max(1))
        self._ready, self._seen, self.mean = ready, gone, self.learner.mean


@dataclass
class Selection:
    """Chooses questions in one of ORDERS."""

    order: str
    learner: Learner
    pool: Pool

    def choose(
        self, learned: Learned, labels: Mapping[str, Label], excluded: Set[int], n: int, asked: int
    ) -> list[Question]:
        """The next n questions. `excluded`: images that must not be asked; `asked`: number of questions so far.

        No image is a near duplicate of the one before, as long as there are others.
        """
        chosen: list[Question] = []
        taken = set(excluded)
        margins = self._margins(learned)
        closest = self.pool.closest.copy()
        for k in range(asked, asked + n):
            question = self._next(k, margins, closest, labels, taken, chosen[-1].image if chosen else None)
            if question is None:
                break
            chosen.append(question)
            taken.add(question.image)
            place = np.flatnonzero(self.pool.rows == question.image)
            if len(place):
                closest = np.maximum(closest, self.pool.vectors @ self.pool.vectors[place[0]])
        return chosen

    def _next(
        self,
        k: int,
        margins: np.ndarray | None,
        closest: np.ndarray,
        labels: Mapping[str, Label],
        taken: Set[int],
        previous: int | None,
    ) -> Question | None:
        """Question number k, after an image that it should not resemble."""
        audit, paths = self.learner.audit, self.learner.features.paths
        alike = self._alike(previous)
        if self.order == "file":
            files = (i for i, path in enumerate(paths) if path not in labels and i not in taken)
            return _first(files, alike, "file")
        random = self.order == "random" or k < AUDIT_FIRST or k % AUDIT_EVERY == 0
        if not random:
            scores, reason = self._scores(margins, closest)
            found = self._best(scores, taken | alike, reason)
            if found is not None:
                return found
        return _first(audit.questions(labels, taken, len(alike) + 1), alike, "random")

    def _scores(self, margins: np.ndarray | None, closest: np.ndarray) -> tuple[Callable[[np.ndarray], int], str]:
        """A function from places in the pool to the best of them, and the reason to ask about it."""
        if self.order == "diverse" or margins is None:
            return lambda places: int(places[closest[places].argmin()]), "diverse"
        if self.order == "margin":
            return lambda places: int(places[margins[places].argmin()]), "margin"

        def mixed(places: np.ndarray) -> int:
            short = places[np.argsort(margins[places], kind="stable")[:SHORTLIST]]
            return int(short[closest[short].argmin()])

        return mixed, "margin"

    def _best(self, best: Callable[[np.ndarray], int], barred: Set[int], reason: str) -> Question | None:
        rows = self.pool.rows
        places = np.flatnonzero(~np.isin(rows, list(barred)))
        return Question(int(rows[best(places)]), reason) if len(places) else None

    def _margins(self, learned: Learned) -> np.ndarray | None:
        """(k,) margins of the pool; None where there are too few labels for them to mean anything."""
        if learned.answers is None or learned.n < CONFIDENT_LABELS * len(learned.classes) or not len(self.pool.rows):
            return None
        probabilities = np.sort(learned.answers.probabilities(self.pool.rows), axis=1)
        if probabilities.shape[1] < 2:
            return None
        return probabilities[:, -1] - probabilities[:, -2]

    def _alike(self, image: int | None) -> set[int]:
        return set() if image is None else set(self.learner.features.near_duplicates(image).tolist())


def _first(images: Iterable[int], alike: Set[int], reason: str) -> Question | None:
    """The first image that is not in `alike`; if all are, the first."""
    rest: int | None = None
    for i in images:
        if i not in alike:
            return Question(i, reason)
        rest = i if rest is None else rest
    return None if rest is None else Question(rest, reason)


def most_alike(features: Features, learner: Learner, image: int, barred: Set[int], n: int) -> list[int]:
    """The n images most similar to `image` that are not in `barred`, the most similar first."""
    rows = np.flatnonzero(features.ready)
    rows = rows[~np.isin(rows, [image, *barred])]
    if not features.ready[image] or not len(rows):
        return []
    own = learner.vectors(np.array([image]))[0]
    cosine = np.concatenate([learner.vectors(rows[k : k + POOL]) @ own for k in range(0, len(rows), POOL)])
    nearest = np.argsort(-cosine, kind="stable")[:n]
    return rows[nearest].tolist()


def new_groups(pool: Pool, learned: Learned, taken: Set[int]) -> list[list[int]]:
    """Dense groups of images that are farther from every labelled image than those are from each other.

    Far: less similar to any labelled image than 95 % of the labelled images are to their nearest neighbor of the same
    class. Dense: at least MIN_GROUP images, each of them closer to the center of the group than to any labelled image.
    """
    if len(learned.rows) < 2 * MIN_GROUP or not len(pool.rows):
        return []
    known = learned.rows[:POOL]
    x = pool.learner.vectors(known)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -1)
    cosine[learned.labels[: len(known), None] != learned.labels[None, : len(known)]] = -1
    nearest = cosine.max(1)
    if not (nearest > -1).any():
        return []
    limit = float(np.quantile(nearest[nearest > -1], 0.05))
    far = np.flatnonzero((pool.closest < limit) & ~np.isin(pool.rows, list(taken)))[:MAX_FAR]
    groups = []
    while len(far) >= MIN_GROUP:
        between = pool.vectors[far] @ pool.vectors[far].T
        near = between > np.maximum(pool.closest[far], SIMILAR_KIND)[:, None]
        seed = int(near.sum(1).argmax())
        members = far[near[:, seed]]
        if len(members) < MIN_GROUP:
            break
        groups.append(pool.rows[members].tolist())
        far = np.setdiff1d(far, members)
    return groups


MIN_GROUP = 4
MAX_FAR = 1024
SIMILAR_KIND = SIMILAR / 2  # cosine of two images of one kind, after centering
