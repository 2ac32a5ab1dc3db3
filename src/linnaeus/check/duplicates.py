"""Images that are there twice: the same pixels, a copy that was changed a little, or another shot of the scene.

Hashes propose pairs, and so do the vectors of a network where one is at hand; the pixels of the two, laid over each
other, decide.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.check.align import ALIKE, STARTS, compare, start_of
from linnaeus.check.hashing import CROWDED, WINDOWS, near
from linnaeus.check.look import Looks
from linnaeus.data.table import SPLITS, Table
from linnaeus.stores.embeddings import Embeddings

EXACT, COPY, SCENE = 0, 1, 2
RELATIONS = ("duplicate", "near-duplicate", "same-scene")
"""Kinds of findings, by the code in `Duplicates.relation`."""

COPIED = 5
"""Bits in which the hashes of an image and of its copy may differ: resized, encoded again, mirrored, or cropped."""

SEARCHED = 7
"""Bits up to which pairs are looked at; the search costs as much for 4 as for 7. Beyond COPIED what the pixels confirm
is the same scene in another frame."""

SMALLEST = 48  # pixels: below it images of one kind look like copies of each other
FLAT = 12.0  # gray levels between the darkest and the brightest: below it a hash is noise
TINTED = 0.1
"""Difference in the share of a color from which on two images of one frame are variants of a thing and no copies,
unless one of them is gray. It says nothing of frames that differ much: zoomed in, a red flower fills the image."""

GRAY = 0.01  # from a third: the shares of the colors in a gray image
NEIGHBORS = 4
SIMILAR = 0.6
"""Cosine of two vectors, less their mean, below which they are not compared. Of 18 pairs on 1,330 photographs, 0.74 was
the least."""


@dataclass(frozen=True)
class Duplicates:
    """Pairs of samples of a table of n."""

    n: int
    pairs: np.ndarray
    """(k, 2) int64, the lower number first. Of more than two exact copies each is paired with the first only"""
    relation: np.ndarray
    """(k,) int64: EXACT, COPY or SCENE"""
    score: np.ndarray
    """(k,) float32: correlation of the pixels that both show; 1 for exact copies"""

    def groups(self, *relations: int) -> np.ndarray:
        """(n,) int64: a number shared by all samples that pairs of these relations (default: all) join; the lowest."""
        chosen = np.isin(self.relation, relations) if relations else np.ones(len(self.pairs), bool)
        return joined(self.n, self.pairs[chosen])

    def leaked(self, table: Table, split: str) -> np.ndarray:
        """Samples (k,) int64 of `split` of which an exact or near copy stands in a split before it: train, valid, test.

        Without them the figures of the split are those on images that training or selection has not seen.
        """
        groups = self.groups(EXACT, COPY)
        before = np.isin(table.split, SPLITS[: SPLITS.index(split)])
        here = table.where(split)
        return here[np.isin(groups[here], groups[before])]


def joined(n: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components by union-find: (n,) int64, for each of n things the lowest number it is joined with."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]  # path halving
            i = parent[i]
        return i

    for a, b in pairs.tolist():
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return np.array([root(i) for i in range(n)], dtype=np.int64)


def find_duplicates(looks: Looks, vectors: Embeddings | None = None) -> Duplicates:
    """All pairs: by pixels alone, or by the vectors of a network too, which find crops that hashes miss."""
    exact = _exact(looks)
    copies = joined(len(looks), exact)
    # Copies of one image all look alike: what is near the first of them is near the others.
    alone = looks.readable[copies[looks.readable] == looks.readable]
    fit = alone[(np.minimum(looks.rows["height"], looks.rows["width"])[alone] >= SMALLEST)]
    flat = looks.rows["high"][fit] - looks.rows["low"][fit] < FLAT
    fit = fit[~flat]
    pairs, bits, score = _by_hash(looks, fit)
    found: dict[tuple[int, int], tuple[int, float]] = {}
    for k in np.flatnonzero((score >= ALIKE) & _same_tint(looks, pairs)).tolist():
        found[pairs[k, 0], pairs[k, 1]] = (COPY if bits[k] <= COPIED else SCENE, score[k])
    known = None if vectors is None else np.isin(vectors.indices, fit)
    if vectors is not None and known is not None and known.sum() > 1:
        pairs, score = _by_vector(looks, vectors.values[known], vectors.indices[known])
        for k in np.flatnonzero(score >= ALIKE).tolist():
            found.setdefault((pairs[k, 0], pairs[k, 1]), (SCENE, score[k]))
    near_pairs = np.array(sorted(found), np.int64).reshape(-1, 2)
    relation = [found[a, b][0] for a, b in near_pairs.tolist()]
    scores = [float(found[a, b][1]) for a, b in near_pairs.tolist()]
    return Duplicates(
        len(looks),
        np.concatenate([exact, near_pairs]),
        np.array([EXACT] * len(exact) + relation, np.int64),
        np.array([1.0] * len(exact) + scores, np.float32),
    )


def _same_tint(looks: Looks, pairs: np.ndarray) -> np.ndarray:
    """(k,) bool: pairs (k, 2) of one color, or of which one is gray. Registration compares gray levels alone."""
    one, two = (looks.rows["tint"][pairs[:, side]] for side in (0, 1))
    gray = (np.abs(one - 1 / 3).max(1) < GRAY) | (np.abs(two - 1 / 3).max(1) < GRAY)
    return gray | (np.abs(one - two).max(1) < TINTED)


def _exact(looks: Looks) -> np.ndarray:
    """(k, 2): each image whose decoded pixels an earlier one has, and that one."""
    first: dict[bytes, int] = {}
    pairs = []
    for i in looks.readable.tolist():
        earlier = first.setdefault(looks.rows["digest"][i].tobytes(), i)
        if earlier != i:
            pairs.append((earlier, i))
    return np.array(pairs, np.int64).reshape(-1, 2)


def _by_hash(looks: Looks, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (k, 2) within SEARCHED bits, their least distance (k,), and how far their pixels agree (k,)."""
    windows = looks.rows["windows"][samples]
    queries = np.concatenate([windows[:, 0], looks.rows["mirror"][samples]])
    query, entry, bits = near(windows.reshape(-1), queries, SEARCHED, CROWDED)
    whole, mirrored = query % max(1, len(samples)), query >= len(samples)
    owner, window = np.divmod(entry, len(WINDOWS))
    apart = owner != whole
    order = np.argsort(bits[apart], kind="stable")
    owner, whole, window, mirrored, bits = (x[apart][order] for x in (owner, whole, window, mirrored, bits))
    pairs = np.stack([np.minimum(owner, whole), np.maximum(owner, whole)], 1)
    _, first = np.unique(pairs, axis=0, return_index=True)  # of each pair the nearest
    starts = [[start_of(WINDOWS[w], bool(m))] for w, m in zip(window[first], mirrored[first], strict=True)]
    directed = samples[np.stack([owner[first], whole[first]], 1)]
    score = compare(looks.thumbnails, directed, np.array(starts, np.float32).reshape(-1, 1, 5))
    return np.sort(directed, axis=1), bits[first], score


def _by_vector(looks: Looks, vectors: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (k, 2) of nearest neighbors by vector, and how far their pixels agree (k,).

    All vectors are compared with all others: a small part of the time that it took to make them.
    """
    x = torch.from_numpy(vectors)
    x = x - x.mean(0)
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    pairs = []
    for first in range(0, len(x), 1024):
        cosine = x[first : first + 1024] @ x.T
        rows = torch.arange(len(cosine))
        cosine[rows, rows + first] = -2.0
        near_by, which = cosine.topk(min(NEIGHBORS, len(x) - 1), dim=1)
        row, column = torch.nonzero(near_by >= SIMILAR, as_tuple=True)
        pairs.append(torch.stack([row + first, which[row, column]], 1).sort(1).values)
    unique = samples[torch.unique(torch.cat(pairs), dim=0).numpy()]
    starts = np.tile(np.array(STARTS, np.float32), (len(unique), 1, 1))
    return unique, compare(looks.thumbnails, unique, starts)


def members(groups: np.ndarray, of: Iterable[int]) -> list[np.ndarray]:
    """The samples (k,) of each group of two or more that holds any of `of`, by their first."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    wanted = {int(groups[i]) for i in of}
    return [part for part in np.split(order, cuts) if len(part) > 1 and int(groups[part[0]]) in wanted]
