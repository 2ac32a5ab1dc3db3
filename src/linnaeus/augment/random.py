"""Stateless random numbers: each is a hash of its seed, epoch, stream, sample and column."""

from __future__ import annotations

import numpy as np

GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, odd: the step of splitmix64
MASK = 0xFFFFFFFFFFFFFFFF


def _mix(z: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators")."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seed: int, epoch: int, indices: np.ndarray, k: int, stream: int = 0) -> np.ndarray:
    """Draw `k` uniform numbers per sample, which depend only on (seed, epoch, stream, sample index, column).

    indices (N,) integers -> (N, k) float64 in [0, 1)

    The numbers of a sample are the same in whatever batch, order, process or thread they are drawn, so a run that is
    cut, resumed or spread over processes sees the same images. `stream` separates purposes: a new kind of
    augmentation takes a new stream and leaves the others' numbers as they were.
    """
    key = np.zeros(1, dtype=np.uint64)
    for word in (seed, epoch, stream):
        key = _mix(key + np.uint64(GOLDEN) ^ np.array([word & MASK], dtype=np.uint64))
    rows = _mix(key + np.asarray(indices).astype(np.uint64) * np.uint64(GOLDEN))
    columns = np.arange(1, k + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    bits = _mix(rows[:, None] + columns[None, :])
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53
