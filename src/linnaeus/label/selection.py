"""Which image is asked about next: random, of small margin, diverse, or in the order of the files.

Margin: the difference of the two largest probabilities (Scheffer, Decomain and Wrobel 2001). Diverse: the image that is
farthest from all labelled ones, the greedy 2-approximation of k-center (Gonzalez 1985; Sener and Savarese 2018).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace

import numpy as np

from linnaeus.label.features import SIMILAR
from linnaeus.label.journal import Label
from linnaeus.label.learner import Learned, Learner

ORDERS = ("mixed", "margin", "diverse", "random", "file")
POOL = 4096  # unlabelled images among which the next one is chosen, a random part of the folder: bounds time and memory

SHORTLIST = 8  # `mixed`: of how many images of small margin the farthest one is asked about

CONFIDENT_LABELS = 2
"""Labels per class, on average, below which margins mean nothing and diverse images are asked about."""

MIN_GROUP = 4  # images of a proposed class
MAX_FAR = 1024
SIMILAR_KIND = SIMILAR / 2
"""Cosine of two centered features from which on images may be of one kind.

Among the 23 most similar of 350 unlabelled images (ResNet-50), 46 % are of the same class on flowers16 and 39 % on
food10; of those above this bound 69 % and 77 %.
"""


@dataclass(frozen=True)
class Question:
    """An image to ask about."""

    image: int
    reason: str  # random: a reserved image; margin, diverse, file; or first: in the random order of the others


@dataclass(frozen=True)
class Pool:
    """Unlabelled images with features that are not reserved, and how close each is to a labelled one."""

    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    vectors: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    # (k,) largest cosine to an image that the head has learned from; -1 where there is none. Reserved images do not
    # count: diverse questions would keep away from them, and accuracy on them would be too low.
    closest: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    taught: frozenset[int] = frozenset()  # the images that `closest` knows
    ready: int = 0  # images with features when the pool was filled
    mean: np.ndarray | None = None  # the mean of the features at that time

    def updated(self, learner: Learner, taught: np.ndarray) -> Pool:
        """The pool after the head has learned from images (n,) int64; filled anew if it is used up or outdated."""
        learner.recenter()
        known = frozenset(taught.tolist())
        grown = int(learner.features.ready.sum()) > 1.1 * self.ready + 8
        left = len(self.rows) - len(known.intersection(self.rows.tolist()))
        undone = not self.taught <= known
        if grown or undone or left <= len(self.rows) // 2 or self.mean is not learner.mean:
            return Pool._filled(learner, taught)
        new = np.array(sorted(known - self.taught), np.int64)
        return replace(self, closest=_closest(learner, self.vectors, new, self.closest), taught=known)

    def share_of_sure(self, learned: Learned, levels: Sequence[float]) -> dict[float, float]:
        """Level -> share of the pool whose most probable class is at least so probable; 0 for an empty pool."""
        open_rows = self.rows[~np.isin(self.rows, learned.rows)]
        if learned.answers is None or not len(open_rows):
            return dict.fromkeys(levels, 0.0)
        top = learned.answers.probabilities(open_rows).max(1)
        return {level: float((top >= level).mean()) for level in levels}

    @classmethod
    def _filled(cls, learner: Learner, taught: np.ndarray) -> Pool:
        ready = learner.features.ready
        candidates = ready.copy()
        candidates[taught] = False
        order = learner.audit.order[len(learner.audit.reserved) :]
        rows = order[candidates[order]][:POOL]
        vectors = learner.vectors(rows)
        closest = _closest(learner, vectors, taught, np.full(len(rows), -1, np.float32))
        return cls(rows, vectors, closest, frozenset(taught.tolist()), int(ready.sum()), learner.mean)


def _closest(learner: Learner, vectors: np.ndarray, taught: np.ndarray, before: np.ndarray) -> np.ndarray:
    """(k,) the larger of `before` and the largest cosine of `vectors` (k, width) to an image of `taught`."""
    for start in range(0, len(taught) if len(vectors) else 0, POOL):
        others = learner.vectors(taught[start : start + POOL])
        before = np.maximum(before, (vectors @ others.T).max(1))
    return before


@dataclass(frozen=True)
class SelectionContext:
    """What is known when questions are chosen."""

    labels: Mapping[str, Label]
    excluded: Set[int]  # images that must not be asked about: shown already, skipped, unreadable
    actions: int  # number of the question among all
    previous: int | None = None  # the image before, which the next should not resemble


@dataclass
class Selection:
    """Chooses questions in one of ORDERS."""

    order: str
    learner: Learner

    def choose(self, learned: Learned, pool: Pool, now: SelectionContext, n: int) -> list[Question]:
        """The next n questions. None is a near duplicate of the one before, if there are others."""
        chosen: list[Question] = []
        audit = self.learner.audit
        ranking = _Ranking(self.order, pool, self._margins(learned, pool), pool.closest.copy())
        labelled = self.learner.positions(now.labels)
        sample, unknown = audit.sample(now.labels, now.excluded)
        for k in range(n):
            taken = {*now.excluded, *(question.image for question in chosen)}
            before = chosen[-1].image if chosen else now.previous
            alike = set() if before is None else set(self.learner.features.near_duplicates(before).tolist())
            # In their order, because the sample ends at the first that is not answered: one that resembles the image
            # before waits, and no other takes its place.
            drawn = _first(audit.questions(now.labels, taken, 1), set(), "random")
            question = drawn
            waits = drawn is not None and drawn.image in alike
            if drawn is None or waits or not audit.is_due(len(sample) + unknown, now.actions + k):
                question = self._other(ranking, {*taken, *labelled}, alike) or drawn
            if question is None:
                break
            chosen.append(question)
            ranking.follow(question.image)
        return chosen

    def _other(self, ranking: _Ranking, taken: Set[int], alike: Set[int]) -> Question | None:
        """The next question about an image that is not reserved."""
        reserved = len(self.learner.audit.reserved)
        if self.order not in ("file", "random"):
            rows = ranking.pool.rows
            open_places = ~np.isin(rows, list(taken))
            # Images like the one before teach little, unless nothing else is left.
            unlike = open_places & ~np.isin(rows, list(alike))
            places = np.flatnonzero(unlike if unlike.any() else open_places)
            if len(places):
                return ranking.best(places)
        rest = self.learner.audit.order[reserved:]
        rest = np.sort(rest) if self.order == "file" else rest
        return _first(
            (i for i in rest.tolist() if i not in taken), alike, self.order if self.order == "file" else "first"
        )

    def _margins(self, learned: Learned, pool: Pool) -> np.ndarray | None:
        """(k,) margins of the pool; None where there are too few labels for them to mean anything."""
        few = learned.n < CONFIDENT_LABELS * len(learned.classes)
        if learned.answers is None or few or not len(pool.rows) or len(learned.answers.classes) < 2:
            return None
        two = np.partition(learned.answers.probabilities(pool.rows), -2, axis=1)[:, -2:]
        return two[:, 1] - two[:, 0]


@dataclass
class _Ranking:
    """What makes an image of the pool worth a question."""

    order: str
    pool: Pool
    margins: np.ndarray | None
    closest: np.ndarray

    def best(self, places: np.ndarray) -> Question:
        """The best of `places` (k,) in the pool."""
        if self.order == "diverse" or self.margins is None:
            return Question(int(self.pool.rows[places[self.closest[places].argmin()]]), "diverse")
        if self.order == "mixed":
            places = places[np.argsort(self.margins[places], kind="stable")[:SHORTLIST]]
            return Question(int(self.pool.rows[places[self.closest[places].argmin()]]), "margin")
        return Question(int(self.pool.rows[places[self.margins[places].argmin()]]), "margin")

    def follow(self, image: int) -> None:
        """Take into account that an image will be asked about."""
        place = np.flatnonzero(self.pool.rows == image)
        if len(place):
            self.closest = np.maximum(self.closest, self.pool.vectors @ self.pool.vectors[place[0]])


def _first(images: Iterable[int], alike: Set[int], reason: str) -> Question | None:
    """The first image that is not in `alike`; if all are, the first."""
    rest: int | None = None
    for i in images:
        if i not in alike:
            return Question(i, reason)
        rest = i if rest is None else rest
    return None if rest is None else Question(rest, reason)


def most_alike(learner: Learner, image: int, excluded: Set[int], n: int) -> list[tuple[int, bool]]:
    """The n images most similar to `image` that are not in `excluded`, the most similar first.

    Each with whether it is similar enough to be of the same kind.
    """
    features = learner.features
    rows = np.flatnonzero(features.ready)
    rows = rows[~np.isin(rows, [image, *excluded])]
    if not features.ready[image] or not len(rows):
        return []
    query = learner.vectors(np.array([image]))[0]
    cosine = np.concatenate([learner.vectors(rows[k : k + POOL]) @ query for k in range(0, len(rows), POOL)])
    nearest = np.argsort(-cosine, kind="stable")[:n]
    return [(int(rows[k]), bool(cosine[k] >= SIMILAR_KIND)) for k in nearest.tolist()]


def new_groups(learner: Learner, pool: Pool, learned: Learned, taken: Set[int]) -> list[list[int]]:
    """Dense groups of images that are farther from every labelled image than those are from each other.

    Far: less similar to any labelled image than 95 % of the labelled images are to their nearest neighbor of the same
    class. Dense: at least MIN_GROUP images, each of them closer to the center of the group than to any labelled image.
    """
    if len(learned.rows) < 2 * MIN_GROUP or not len(pool.rows):
        return []
    known = learned.rows[:POOL]
    x = learner.vectors(known)
    cosine = x @ x.T
    np.fill_diagonal(cosine, -1)
    # Only similarity within a class tells how close images of one kind are.
    cosine[learned.labels[: len(known), None] != learned.labels[None, : len(known)]] = -1
    nearest = cosine.max(1)
    if not (nearest > -1).any():
        return []
    limit = float(np.quantile(nearest[nearest > -1], 0.05))
    # Bounded, because the comparison below is quadratic.
    far = np.flatnonzero((pool.closest < limit) & ~np.isin(pool.rows, list(taken)))[:MAX_FAR]
    groups = []
    while len(far) >= MIN_GROUP:
        between = pool.vectors[far] @ pool.vectors[far].T
        # Each image must resemble its group more than anything that is labelled.
        near = between > np.maximum(pool.closest[far], SIMILAR_KIND)[:, None]
        seed = int(near.sum(1).argmax())
        members = far[near[:, seed]]
        if len(members) < MIN_GROUP:
            break
        groups.append(pool.rows[members].tolist())
        far = np.setdiff1d(far, members)
    return groups
