"""Batches of rows in an order that depends on (seed, epoch) alone, prefetched by a background thread."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.data.background import in_background, ordered_map
from linnaeus.data.order import chunks, order, part_of, repeats

PLANNED_FROM = 4096
"""Samples of an epoch from which on the next one is planned in a thread; below, that takes longer than planning."""
PREFETCHED = 3  # batches: one that the caller works on, one ready, and one being read


class Rows(Protocol):
    """Read access to rows, common to stores on disk and streamed sources."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, H, W, C) uint8, padded to the largest, and their true heights and widths (N, 2)."""
        ...


class InMemoryRows:
    """Rows of one shape held entirely in device memory, so that a batch is a single index operation there."""

    def __init__(self, tensor: Tensor):
        self.tensor = tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = self.tensor[torch.from_numpy(indices)].cpu().numpy()
        return rows, self.shapes(len(indices))

    def shapes(self, n: int) -> np.ndarray:
        """(n, 2): height and width of n rows."""
        return np.tile(np.array(self.tensor.shape[1:3] if self.tensor.ndim == 4 else (0, 0), np.int32), (n, 1))


@dataclass(frozen=True)
class Sampling:
    """The order of the samples in an epoch."""

    shuffle: bool = False
    seed: int = 0
    weights: np.ndarray | None = None
    """(n,) probability of each sample, summing to 1: n draws with replacement instead of a permutation."""


@dataclass(frozen=True)
class Partition:
    """The part of each batch that belongs to this process: number `rank` of `world_size`."""

    rank: int = 0
    world_size: int = 1
    partners: bool = False
    """Whether each part begins with the sample that precedes it in the whole batch, as mixup and CutMix need it."""


IN_ORDER = Sampling()
UNDIVIDED = Partition()


@dataclass(frozen=True)
class Portion:
    """Where a process's samples stand in the whole batch, which all processes share."""

    total: int  # samples of the whole batch, over all processes
    first: int  # draw of the first sample of the whole batch
    # Samples at the beginning that belong to another process: the mixing partner of the first own sample, or a
    # placeholder where this process has no samples of its own.
    lead: int = 0


@dataclass
class Batch:
    """N samples of one process, on its device."""

    indices: np.ndarray  # (N,) number of each sample
    # (N,) key of each sample's random numbers: its number, plus n for each earlier draw of it in the same epoch.
    draws: np.ndarray
    pixels: Tensor  # on the device: (N, H, W, C) uint8, or what a store holds in their place
    shapes: np.ndarray  # (N, 2) true height and width
    labels: Tensor  # (N,) int64 on the device
    portion: Portion  # position in the whole batch
    drawn: Any = None  # what `Batches.draw_epoch` has drawn for all samples of this process in the epoch, in order
    start: int = 0  # place of the first sample in the epoch of this process

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Batch:
        """Samples start..stop, as a micro-batch."""
        s = slice(start, stop)
        draws = self.draws[s]
        portion, drawn, first = _undivided(draws), self.drawn, self.start + start
        return Batch(self.indices[s], draws, self.pixels[s], self.shapes[s], self.labels[s], portion, drawn, first)

    def take(self, where: np.ndarray) -> Batch:
        """The samples at these positions of the batch."""
        at = torch.from_numpy(where).to(self.pixels.device)
        draws, pixels, labels = self.draws[where], self.pixels[at], self.labels[at]
        return Batch(self.indices[where], draws, pixels, self.shapes[where], labels, _undivided(draws))


def _undivided(draws: np.ndarray) -> Portion:
    """The portion of a process that has the whole batch."""
    return Portion(len(draws), int(draws[0]) if len(draws) else -1)


@dataclass(frozen=True)
class _Plan:
    """The samples of an epoch of this process, with what is drawn for them."""

    parts: list[tuple[np.ndarray, Portion]]
    indices: np.ndarray
    positions: Tensor
    labels: Tensor
    drawn: Any


class Batches:
    """Batches of uint8 rows with their labels, on `device`.

    `batch` is the effective batch size, whatever the number of processes: every process computes the same order and
    takes its part of each batch. Where a batch has too few samples for all processes, the others get a placeholder
    (`Portion.lead`).
    """

    def __init__(
        self,
        rows: Rows,
        labels: np.ndarray,
        *,
        batch: int,
        device: torch.device,
        sampling: Sampling = IN_ORDER,
        partition: Partition = UNDIVIDED,
        views: int = 1,
    ):
        """`views`: the rows hold this many versions of each sample, one after the other; an epoch uses one of them."""
        assert len(rows) == len(labels) * views, f"{len(rows)} rows for {len(labels)} samples"
        self.rows, self.labels, self.batch, self.device = rows, labels, batch, device
        self.sampling, self.partition, self.views = sampling, partition, views
        self.draw_epoch: Callable[[np.ndarray, int], Any] | None = None
        """draw_epoch(draws, epoch), for rows in memory: random numbers of the epoch's samples, for `Batch.drawn`."""
        self._next: tuple[int, Future[_Plan]] | None = None

    def undivided(self) -> Batches:
        """The same batches with all samples in this process."""
        twin = copy.copy(self)
        twin.partition, twin._next = UNDIVIDED, None
        return twin

    @property
    def samples(self) -> int:
        """Samples in an epoch, over all processes."""
        return len(self.labels)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(chunks(np.arange(self.samples), self.batch))

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from number `start` on. Closing the iterator early ends the prefetching thread."""
        if isinstance(self.rows, InMemoryRows):
            return self._look_up(self.rows, epoch, start)
        return self._prefetch(self._parts(epoch)[start:], epoch)

    def _parts(self, epoch: int) -> list[tuple[np.ndarray, Portion]]:
        """Draws and position of this process's part of each batch of an epoch."""
        n, sampling = self.samples, self.sampling
        draws = order(n, sampling.seed, epoch, sampling.weights) if sampling.shuffle else np.arange(n)
        if sampling.weights is not None:
            # A sample that is drawn twice must be augmented differently, so each draw has a number of its own.
            draws = draws + n * repeats(draws)
        return [self._part(piece) for piece in chunks(draws, self.batch)]

    def _part(self, piece: np.ndarray) -> tuple[np.ndarray, Portion]:
        """Draws (k,) of this process's part of the batch `piece`, and the part's position in it."""
        rank, world_size = self.partition.rank, self.partition.world_size
        local = part_of(len(piece), rank, world_size)
        empty = local.start == local.stop
        lead = int(world_size > 1 and (self.partition.partners or empty))
        before = piece[[local.start - 1]] if lead else piece[:0]  # the first sample's partner is the last one
        return np.concatenate([before, piece[local]]), Portion(len(piece), int(piece[0]), lead)

    def _positions(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Row of each sample in this epoch: a different view each epoch, and not the same one for all samples."""
        return indices if self.views == 1 else indices * self.views + (indices + epoch) % self.views

    def _look_up(self, rows: InMemoryRows, epoch: int, start: int) -> Iterator[Batch]:
        """Batches of rows in memory, from number `start` on, while a thread plans the next epoch."""
        planned, self._next = self._next, None
        plan = planned[1].result() if planned is not None and planned[0] == epoch else self._plan(epoch)
        if self.samples >= PLANNED_FROM:
            self._next = epoch + 1, in_background(partial(self._plan, epoch + 1))
        shapes, first = rows.shapes(len(plan.indices)), 0
        for number, (part, portion) in enumerate(plan.parts):
            s = slice(first, first + len(part))
            if number >= start:
                pixels = rows.tensor[plan.positions[s]]
                yield Batch(plan.indices[s], part, pixels, shapes[s], plan.labels[s], portion, plan.drawn, first)
            first = s.stop

    def _plan(self, epoch: int) -> _Plan:
        """Draw an epoch, and move positions, labels and random numbers to the device at once."""
        parts = self._parts(epoch)
        draws = np.concatenate([part for part, _ in parts]) if parts else np.arange(0)
        indices = draws % max(1, self.samples)
        positions = torch.from_numpy(self._positions(indices, epoch)).to(self.device)
        labels = torch.from_numpy(self.labels[indices]).to(self.device)
        drawn = None if self.draw_epoch is None else self.draw_epoch(draws, epoch)
        return _Plan(parts, indices, positions, labels, drawn)

    def _read(self, draws: np.ndarray, portion: Portion, epoch: int) -> Batch:
        indices = draws % self.samples
        # A memory-mapped file is read fastest in ascending order, which also reads each page only once.
        positions = self._positions(indices, epoch)
        ascending = np.argsort(positions, kind="stable")
        back = np.argsort(ascending)  # the inverse permutation
        pixels, shapes = self.rows.gather(positions[ascending])
        tensor = torch.from_numpy(pixels[back])
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        labels = torch.from_numpy(self.labels[indices]).to(self.device)
        return Batch(indices, draws, tensor, shapes[back], labels, portion)

    def _prefetch(self, parts: list[tuple[np.ndarray, Portion]], epoch: int) -> Iterator[Batch]:
        def read(k: int) -> Batch:
            return self._read(*parts[k], epoch)

        # A single batch is read faster without a thread.
        if len(parts) < 2:
            yield from map(read, range(len(parts)))
        else:
            yield from ordered_map(read, 0, len(parts), threads=1, most=PREFETCHED)


@dataclass(frozen=True)
class Subset:
    """Some rows of another source of rows, such as those whose images are readable."""

    rows: Rows
    positions: np.ndarray  # (n,) position of each sample in `rows`

    def __len__(self) -> int:
        return len(self.positions)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.rows.gather(self.positions[indices])
