"""Batches of rows in an order that depends on (seed, epoch) alone, prefetched by a background thread."""

from __future__ import annotations

import copy
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.data.order import chunks, order, part_of, repeats

PREFETCHED = 2  # batches: one ready and one being read while the caller works on a third


class Rows(Protocol):
    """Read access to rows, common to stores on disk and streamed sources."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, H, W, C) uint8, padded to the largest, and their true heights and widths (N, 2)."""
        ...


class Resident:
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

    total: int
    """Samples of the whole batch, over all processes."""
    first: int
    """Draw of the first sample of the whole batch."""
    lead: int = 0
    """Samples at the beginning that belong to another process: the mixing partner of the first own sample, or a
    placeholder where this process has no samples of its own."""


@dataclass
class Batch:
    """N samples of one process, on its device."""

    indices: np.ndarray
    """(N,) number of each sample."""
    draws: np.ndarray
    """(N,) key of each sample's random numbers: its number, plus n for each earlier draw of it in the same epoch."""
    pixels: Tensor
    """On the device: (N, H, W, C) uint8, or what a store holds in their place."""
    shapes: np.ndarray
    """(N, 2) true height and width."""
    labels: Tensor
    """(N,) int64 on the device."""
    portion: Portion
    """Position in the whole batch."""
    epoch_draws: np.ndarray | None = None
    """The keys of all samples of this process in the epoch, in order, where they are known: an augmentation can then
    draw the numbers of the epoch at once. Every batch of the epoch has the same array."""
    start: int = 0
    """Place of the first sample in `epoch_draws`."""

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Batch:
        """Samples start..stop, as a micro-batch."""
        s = slice(start, stop)
        draws = self.draws[s]
        portion, whole, first = _undivided(draws), self.epoch_draws, self.start + start
        return Batch(self.indices[s], draws, self.pixels[s], self.shapes[s], self.labels[s], portion, whole, first)

    def take(self, where: np.ndarray) -> Batch:
        """The samples at these positions of the batch."""
        at = torch.from_numpy(where).to(self.pixels.device)
        draws, pixels, labels = self.draws[where], self.pixels[at], self.labels[at]
        return Batch(self.indices[where], draws, pixels, self.shapes[where], labels, _undivided(draws))


def _undivided(draws: np.ndarray) -> Portion:
    """The portion of a process that has the whole batch."""
    return Portion(len(draws), int(draws[0]) if len(draws) else -1)


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

    def undivided(self) -> Batches:
        """The same batches with all samples in this process."""
        twin = copy.copy(self)
        twin.partition = UNDIVIDED
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
        n, sampling = self.samples, self.sampling
        indices = order(n, sampling.seed, epoch, sampling.weights) if sampling.shuffle else np.arange(n)
        # A sample that is drawn twice in an epoch must be augmented differently, so each draw has a number of its own.
        draws = indices + n * repeats(indices)
        parts = [self._part(piece) for piece in chunks(draws, self.batch)[start:]]
        if isinstance(self.rows, Resident):
            return self._look_up(self.rows, parts, epoch)
        return self._prefetch(parts, epoch)

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

    def _look_up(self, rows: Resident, parts: list[tuple[np.ndarray, Portion]], epoch: int) -> Iterator[Batch]:
        """Batches of resident rows. Positions and labels of the whole epoch are moved to the device at once."""
        if not parts:
            return
        draws = np.concatenate([part for part, _ in parts])
        indices = draws % self.samples
        positions = torch.from_numpy(self._positions(indices, epoch)).to(self.device)
        labels, shapes = torch.from_numpy(self.labels[indices]).to(self.device), rows.shapes(len(indices))
        start = 0
        for part, portion in parts:
            s = slice(start, start + len(part))
            pixels = rows.tensor[positions[s]]
            yield Batch(indices[s], part, pixels, shapes[s], labels[s], portion, draws, start)
            start = s.stop

    def _read(self, draws: np.ndarray, portion: Portion, epoch: int) -> Batch:
        indices = draws % self.samples
        # A memory-mapped file is read fastest in ascending order, which also reads each page only once.
        positions = self._positions(indices, epoch)
        ascending = np.argsort(positions, kind="stable")
        back = np.empty_like(ascending)
        back[ascending] = np.arange(len(indices))
        pixels, shapes = self.rows.gather(positions[ascending])
        tensor = torch.from_numpy(pixels[back])
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        labels = torch.from_numpy(self.labels[indices]).to(self.device)
        return Batch(indices, draws, tensor, shapes[back], labels, portion)

    def _prefetch(self, parts: list[tuple[np.ndarray, Portion]], epoch: int) -> Iterator[Batch]:
        if len(parts) < 2:
            yield from (self._read(draws, portion, epoch) for draws, portion in parts)
            return
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=PREFETCHED)
        stop = threading.Event()

        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():  # a plain put() would never return once the caller has stopped reading
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for draws, portion in parts:
                    if stop.is_set():
                        return
                    put(self._read(draws, portion, epoch))
                put(None)
            except BaseException as error:
                put(error)  # raised in the caller's thread, when the batch is requested

        thread = threading.Thread(target=work, name="linnaeus-batches", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stop.set()
            thread.join()


@dataclass(frozen=True)
class Subset:
    """Some rows of another source of rows, such as those whose images are readable."""

    rows: Rows
    positions: np.ndarray
    """(n,) position of each sample in `rows`."""

    def __len__(self) -> int:
        return len(self.positions)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.rows.gather(self.positions[indices])
