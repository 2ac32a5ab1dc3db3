"""The order of the classes in a large confusion matrix."""

from __future__ import annotations

import numpy as np


def cluster(counts: np.ndarray) -> np.ndarray:
    """An order (k,) of k classes that puts classes that are confused with each other side by side.

    Average linkage (Sokal and Michener 1958) with the optimal order of leaves (Bar-Joseph et al. 2001). Classes that
    are never confused come last, in their own order.
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    similarity = share + share.T
    np.fill_diagonal(similarity, 0)
    confused = np.flatnonzero(similarity.any(1))
    if len(confused) < 2:
        return np.arange(len(counts))
    near = similarity[np.ix_(confused, confused)]
    distance = near.max() - near
    np.fill_diagonal(distance, 0)
    order = leaves_list(linkage(squareform(distance), "average", optimal_ordering=True))
    return np.concatenate([confused[order], np.setdiff1d(np.arange(len(counts)), confused)]).astype(np.int64)
