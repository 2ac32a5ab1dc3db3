"""The order of the samples in an epoch, divided into batches and among processes."""

from __future__ import annotations

import numpy as np


def order(n: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The order of n samples in an epoch: a permutation, or n draws with probability `weights` (summing to 1).

    It depends on (seed, epoch) alone, so all processes compute the same order without communication.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if weights is None:
        return generator.permutation(n)
    return generator.choice(n, size=n, p=weights)


def chunks(indices: np.ndarray, batch: int) -> list[np.ndarray]:
    """Split `indices` into pieces of `batch`; a last piece of one sample is merged into the piece before it.

    BatchNorm cannot be trained on a single image whose feature map has shrunk to one position.
    """
    pieces = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    if len(pieces) > 1 and len(pieces[-1]) == 1 < batch:
        pieces[-2:] = [np.concatenate(pieces[-2:])]
    return pieces


def part_of(n: int, rank: int, world_size: int) -> slice:
    """The slice of n consecutive samples that process `rank` of `world_size` handles, as equal as possible.

    No process gets a single sample, on which BatchNorm cannot be trained; some get none instead.
    """
    busy = max(1, min(world_size, n // 2))
    return slice(n * rank // busy, n * (rank + 1) // busy) if rank < busy else slice(n, n)


def repeats(indices: np.ndarray) -> np.ndarray:
    """(n,) how often each number occurs earlier in `indices`: 0 at its first occurrence."""
    ascending = np.argsort(indices, kind="stable")
    ordered = indices[ascending]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    counts = np.empty_like(indices)
    counts[ascending] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return counts
