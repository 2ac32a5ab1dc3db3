"""Batches of rows in an order that depends on (seed, epoch) alone, fetched ahead by one thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

AHEAD = 2  # batches fetched before they are asked for: one in hand, one on the way


class Rows(Protocol):
    """What a store and a stream have in common."""

    def __len__(self) -> int: ...

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows (N, H, W, C) uint8, padded to the largest, and their true heights and widths (N, 2)."""
        ...


class Resident:
    """Rows of one shape that lie in the device's memory whole, so that a batch is one look-up there."""

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


@dataclass
class Batch:
    indices: np.ndarray
    """(N,) number of each sample."""
    draws: np.ndarray
    """(N,) what random numbers come from: the sample's number, and another one each time it is drawn in an epoch."""
    pixels: Tensor
    """On the device: (N, H, W, C) uint8, or what a store holds in their place."""
    shapes: np.ndarray
    """(N, 2) true height and width."""
    labels: Tensor
    """(N,) int64 on the device."""
    total: int = 0
    """Samples of the whole batch, over all processes; 0: these are all."""
    first: int = -1
    """Draw of the first sample of the whole batch; -1: it is the first here."""
    lead: int = 0
    """Samples at the beginning that are another process's: the first one's partner in mixing, or a stand-in where this
    process has none of its own."""

    def __post_init__(self) -> None:
        self.total = self.total or len(self.indices)

    def __len__(self) -> int:
        return len(self.indices)

    def part(self, start: int, stop: int) -> Batch:
        """Samples start..stop, for an optimizer step in several pieces."""
        s = slice(start, stop)
        return Batch(self.indices[s], self.draws[s], self.pixels[s], self.shapes[s], self.labels[s])

    def take(self, where: np.ndarray) -> Batch:
        """The samples at these positions of the batch."""
        at = torch.from_numpy(where).to(self.pixels.device)
        return Batch(self.indices[where], self.draws[where], self.pixels[at], self.shapes[where], self.labels[at])


def order(n: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The order of n samples in an epoch: a permutation, or n draws with probability `weights` (summing to 1).

    It comes from (seed, epoch) alone, so every process finds the same order without asking another.
    """
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    if weights is None:
        return generator.permutation(n)
    return generator.choice(n, size=n, p=weights)


def chunks(indices: np.ndarray, batch: int) -> list[np.ndarray]:
    """`indices` in pieces of `batch`; a last piece of one sample joins the one before.

    BatchNorm cannot be trained on one image whose feature map has shrunk to one position.
    """
    pieces = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    if len(pieces) > 1 and len(pieces[-1]) == 1 < batch:
        pieces[-2:] = [np.concatenate(pieces[-2:])]
    return pieces


def part_of(n: int, rank: int, world: int) -> slice:
    """Which of n samples in a row are process `rank`'s of `world`: as many for each as can be.

    Nobody gets a single one, on which BatchNorm cannot be trained; rather, some get none.
    """
    busy = max(1, min(world, n // 2))
    return slice(n * rank // busy, n * (rank + 1) // busy) if rank < busy else slice(n, n)


def repeats(indices: np.ndarray) -> np.ndarray:
    """(n,) how often each number has come before in `indices`: 0 for the first time."""
    ascending = np.argsort(indices, kind="stable")
    ordered = indices[ascending]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    lengths = np.diff(np.r_[starts, len(ordered)])
    found = np.empty_like(indices)
    found[ascending] = np.arange(len(ordered)) - np.repeat(starts, lengths)
    return found


class Part(NamedTuple):
    """A process's part of a batch, before it is fetched; the rest as in Batch."""

    draws: np.ndarray
    total: int
    first: int
    lead: int


class Batches:
    """Batches of uint8 rows with their labels, on `device`.

    Every process builds the same order and takes its part of each batch, so that `batch` is the effective batch size
    whatever the number of processes. Of a batch that is too short for all, some have a stand-in (`Batch.lead`).
    """

    def __init__(
        self,
        rows: Rows,
        labels: np.ndarray,
        *,
        batch: int,
        device: torch.device,
        shuffle: bool = False,
        seed: int = 0,
        weights: np.ndarray | None = None,
        views: int = 1,
        rank: int = 0,
        world: int = 1,
        partners: bool = False,
    ):
        """`views`: the rows hold this many versions of each sample, one after the other; an epoch takes one of them.

        `partners`: with several processes, each part begins with the sample that stands before it in the whole batch.
        """
        assert len(rows) == len(labels) * views, f"{len(rows)} rows for {len(labels)} samples"
        self.views = views
        self.rows, self.labels, self.batch, self.device = rows, labels, batch, device
        self.shuffle, self.seed, self.weights = shuffle, seed, weights
        self.rank, self.world, self.partners = rank, world, partners

    @property
    def samples(self) -> int:
        """Samples in an epoch, over all processes."""
        return len(self.labels)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(chunks(np.arange(self.samples), self.batch))

    def epoch(self, epoch: int = 0, start: int = 0) -> Iterator[Batch]:
        """The batches of one epoch, from number `start` on. Leaving early is fine: the thread ends with it."""
        indices = order(self.samples, self.seed, epoch, self.weights) if self.shuffle else np.arange(self.samples)
        draws = indices + self.samples * repeats(indices)
        parts = [self._part(piece) for piece in chunks(draws, self.batch)[start:]]
        if isinstance(self.rows, Resident):
            return (self._look_up(part, epoch) for part in parts)
        return self._ahead(parts, epoch)

    def _part(self, piece: np.ndarray) -> Part:
        """What this process has to do with a batch."""
        own = part_of(len(piece), self.rank, self.world)
        empty = own.start == own.stop
        lead = int(self.world > 1 and (self.partners or empty))
        before = piece[[own.start - 1]] if lead else piece[:0]  # of the first it is the last
        return Part(np.concatenate([before, piece[own]]), len(piece), int(piece[0]), lead)

    def _positions(self, indices: np.ndarray, epoch: int) -> np.ndarray:
        """Rows of the samples in this epoch: another view each time, and not the same one for all."""
        return indices if self.views == 1 else indices * self.views + (indices + epoch) % self.views

    def _look_up(self, part: Part, epoch: int) -> Batch:
        assert isinstance(self.rows, Resident)
        draws, *rest = part
        indices = draws % self.samples
        positions = torch.from_numpy(self._positions(indices, epoch)).to(self.device)
        labels = torch.from_numpy(self.labels[indices]).to(self.device)
        return Batch(indices, draws, self.rows.tensor[positions], self.rows.shapes(len(indices)), labels, *rest)

    def _fetch(self, part: Part, epoch: int) -> Batch:
        draws, *rest = part
        indices = draws % self.samples
        # Reading a memory-mapped file is fastest, and a page is read once, when the rows are asked for in their order.
        positions = self._positions(indices, epoch)
        ascending = np.argsort(positions, kind="stable")
        back = np.empty_like(ascending)
        back[ascending] = np.arange(len(indices))
        pixels, shapes = self.rows.gather(positions[ascending])
        tensor = torch.from_numpy(pixels[back])
        if self.device.type == "cuda":
            tensor = tensor.pin_memory().to(self.device, non_blocking=True)
        labels = torch.from_numpy(self.labels[indices]).to(self.device)
        return Batch(indices, draws, tensor, shapes[back], labels, *rest)

    def _ahead(self, parts: list[Part], epoch: int) -> Iterator[Batch]:
        if len(parts) < 2:
            yield from (self._fetch(part, epoch) for part in parts)
            return
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=AHEAD)
        stop = threading.Event()

        def put(item: Batch | BaseException | None) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def work() -> None:
            try:
                for part in parts:
                    if stop.is_set():
                        return
                    put(self._fetch(part, epoch))
                put(None)
            except BaseException as error:
                put(error)  # raised where the batch is asked for, not lost in a thread

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
    """Some of the rows of another source of rows: what is left when unreadable images are left out."""

    rows: Rows
    positions: np.ndarray
    """(n,) position of each sample in `rows`."""

    def __len__(self) -> int:
        return len(self.positions)

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.rows.gather(self.positions[indices])
