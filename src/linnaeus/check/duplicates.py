"""Images that occur more than once: identical pixels, a slightly altered copy, or another shot of the same scene.

Candidate pairs come from difference hashes and, where available, from the embeddings of a network. The aligned pixels
of the two images decide.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.check.registration import INITIAL_FRAMES, MATCH, compare_pairs, frame_of_window
from linnaeus.data.images.hashing import CROWDED, KNOWN_WINDOWS, ORIENTATIONS, hamming_neighbors, windows_of
from linnaeus.data.images.pixel_statistics import hashable, same_tint
from linnaeus.stores.embeddings import Embeddings
from linnaeus.stores.image_statistics import ImageStatistics

EXACT, COPY, SCENE = 0, 1, 2
RELATIONS = ("duplicate", "near-duplicate", "same-scene")  # kinds of findings, indexed by `Duplicates.relation`

COPY_RADIUS = 5
"""Largest hash distance, in bits, of an altered copy: resized, encoded again, mirrored, turned or cropped."""

SEARCH_RADIUS = 7
"""Largest hash distance, in bits, of a candidate pair; 7 costs no more than 4. Beyond COPY_RADIUS, matching pixels mean
the same scene in another frame."""

NEIGHBORS = 4
MIN_COSINE = 0.6
"""Cosine similarity of two centered embeddings below which the pixels are not compared. Of 18 pairs among 1,330
photographs the least similar has 0.74."""


@dataclass(frozen=True)
class Duplicates:
    """Pairs of samples of a table with n samples."""

    n: int
    # (k, 2) int64, the lower index first. Of several exact copies each is paired with the first one only.
    pairs: np.ndarray
    relation: np.ndarray  # (k,) int64: EXACT, COPY or SCENE
    score: np.ndarray  # (k,) float32: correlation of the pixels on the common area; 1 for exact copies

    def groups(self, *relations: int) -> np.ndarray:
        """(n,) int64: a number shared by all samples that pairs of these relations (default: all) connect."""
        rows = np.isin(self.relation, relations) if relations else np.ones(len(self.pairs), bool)
        return connected(self.n, self.pairs[rows])


def connected(n: int, pairs: np.ndarray) -> np.ndarray:
    """Connected components of n nodes, (n,) int64: for each node the lowest node of its component."""
    pairs = pairs.reshape(-1, 2)
    if len(pairs) == 0:
        return np.arange(n)
    from scipy.sparse import coo_array  # with csgraph 0.2 s, which only images with copies need
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), (n, n))
    component = connected_components(graph, directed=False)[1]
    lowest = np.unique(component, return_index=True)[1]
    return lowest[component]


def find_duplicates(statistics: ImageStatistics, embeddings: Embeddings | None = None) -> Duplicates:
    """All pairs, from pixels alone, or also from embeddings, which find crops that the hashes miss."""
    exact = _exact_pairs(statistics)
    first_copy = connected(len(statistics), exact)
    # Exact copies have the same neighbors, so only the first of them is searched for.
    unique = statistics.readable[first_copy[statistics.readable] == statistics.readable]
    # Small images and blank ones resemble others of their kind.
    unique = unique[hashable(statistics.rows[unique])]
    pairs, bits, score = _pairs_by_hash(statistics, unique)
    near: dict[tuple[int, int], tuple[int, float]] = {}
    # A recolored copy has another tint; it may be another object of the same shape.
    for k in np.flatnonzero((score >= MATCH) & _same_tint(statistics, pairs)).tolist():
        near[pairs[k, 0], pairs[k, 1]] = (COPY if bits[k] <= COPY_RADIUS else SCENE, score[k])
    if embeddings is not None:
        # Embeddings exist for readable images only, in another order than the statistics.
        rows = np.isin(embeddings.indices, unique)
        if rows.sum() > 1:
            pairs, score = _pairs_by_vector(statistics, embeddings.values[rows], embeddings.indices[rows])
            for k in np.flatnonzero(score >= MATCH).tolist():
                near.setdefault((pairs[k, 0], pairs[k, 1]), (SCENE, score[k]))
    near_pairs = np.array(sorted(near), np.int64).reshape(-1, 2)
    relation = [near[a, b][0] for a, b in near_pairs.tolist()]
    scores = [float(near[a, b][1]) for a, b in near_pairs.tolist()]
    return Duplicates(
        len(statistics),
        np.concatenate([exact, near_pairs]),
        np.array([EXACT] * len(exact) + relation, np.int64),
        np.array([1.0] * len(exact) + scores, np.float32),
    )


def _same_tint(statistics: ImageStatistics, pairs: np.ndarray) -> np.ndarray:
    """(k,) bool: pairs (k, 2) of the same colors, or with a gray image. The alignment compares gray levels only."""
    return same_tint(*(statistics.rows["tint"][pairs[:, side]] for side in (0, 1)))


def _exact_pairs(statistics: ImageStatistics) -> np.ndarray:
    """(k, 2) int64: the first of several images with the same decoded pixels, and each later one."""
    samples = statistics.readable
    _, first, number = np.unique(statistics.rows["digest"][samples], axis=0, return_index=True, return_inverse=True)
    pairs = np.stack([samples[first[number.reshape(-1)]], samples], 1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _pairs_by_hash(statistics: ImageStatistics, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs (k, 2) within SEARCH_RADIUS, their smallest hash distance (k,) and the correlation of their pixels (k,)."""
    windows = statistics.hashes("windows", samples, np.s_[:, :KNOWN_WINDOWS, 0]).reshape(-1)
    # Copies may be mirrored and turned.
    queries = statistics.hashes("turned", samples, np.s_[:, :ORIENTATIONS, 0]).T.reshape(-1)
    pairs, bits, window, orientation, swapped = _closest_matches(windows, queries, len(samples))
    # The first image of a pair has the window, the second one is the whole.
    directed = samples[np.where(swapped[:, None], pairs[:, ::-1], pairs)]
    starts = np.empty((len(pairs), 1, 5), np.float32)
    for k, (width, height) in enumerate(statistics.rows[["width", "height"]][directed[:, 0]]):
        starts[k] = frame_of_window(windows_of(int(width), int(height))[window[k]], int(orientation[k]))
    return samples[pairs], bits, compare_pairs(statistics.thumbnails, directed, starts)


def _closest_matches(windows: np.ndarray, queries: np.ndarray, n: int) -> tuple[np.ndarray, ...]:
    """Of each pair of n images the match of a window with a whole image that has the smallest hash distance.

    Hashes of the windows of each image, and of all images in each orientation -> pairs (k, 2), distances, windows,
    orientations (k,), and whether the lower one of the pair is the whole image, (k,) bool. Images of little detail give
    very many matches, so each is one number, whose parts are in the order by which matches are preferred.
    """
    query, entry, bits = hamming_neighbors(windows, queries, SEARCH_RADIUS, CROWDED)
    orientation, whole = np.divmod(query, max(1, n))
    owner, window = np.divmod(entry, KNOWN_WINDOWS)
    different = owner != whole
    sizes = (max(1, n), max(1, n), SEARCH_RADIUS + 1, ORIENTATIONS, 2, KNOWN_WINDOWS)
    lower, higher = np.minimum(owner, whole), np.maximum(owner, whole)
    matches = np.ravel_multi_index((lower, higher, bits, orientation, whole > owner, window), sizes)[different]
    matches.sort()
    pair = matches // math.prod(sizes[2:])
    matches = matches[np.flatnonzero(np.diff(pair, prepend=-1))]
    lower, higher, bits, orientation, whole_is_higher, window = np.unravel_index(matches, sizes)
    return np.stack([lower, higher], 1), bits, window, orientation, whole_is_higher == 0


def _pairs_by_vector(
    statistics: ImageStatistics, vectors: np.ndarray, samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (k, 2) of nearest neighbors by embedding, and the correlation of their pixels (k,).

    All embeddings are compared with all others, which takes a small part of the time of computing them.
    """
    x = torch.from_numpy(vectors)
    # Centered, because features have a common part that makes all cosines large.
    x = x - x.mean(0)
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    pairs = []
    # In blocks: all pairs of 100,000 images at once would need 40 GB.
    for first in range(0, len(x), 1024):
        cosine = x[first : first + 1024] @ x.T
        rows = torch.arange(len(cosine))
        cosine[rows, rows + first] = -2.0  # an image is not its own neighbor
        values, neighbors = cosine.topk(min(NEIGHBORS, len(x) - 1), dim=1)
        row, column = torch.nonzero(values >= MIN_COSINE, as_tuple=True)
        pairs.append(torch.stack([row + first, neighbors[row, column]], 1).sort(1).values)
    unique = samples[torch.unique(torch.cat(pairs), dim=0).numpy()]
    starts = np.tile(np.array(INITIAL_FRAMES, np.float32), (len(unique), 1, 1))
    return unique, compare_pairs(statistics.thumbnails, unique, starts)


def group_members(groups: np.ndarray, samples: Iterable[int]) -> list[np.ndarray]:
    """Members (k,) of every group of at least two that holds any of `samples`, ordered by the first member."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    numbers = {int(groups[i]) for i in samples}
    return [part for part in np.split(order, cuts) if len(part) > 1 and int(groups[part[0]]) in numbers]
