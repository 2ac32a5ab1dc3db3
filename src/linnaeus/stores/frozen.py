"""What the frozen part of a network makes of images: computed once, by the fastest executor at hand, and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.console import Advance, Console
from linnaeus.data.batches import Batch, Batches, Partition, Resident, Rows, Subset, order
from linnaeus.data.download import cache_dir
from linnaeus.device import free_memory
from linnaeus.models import Network
from linnaeus.models.executors import Executor, FrozenPart, choose_executor, int8_executor
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.activations import ActivationStore, Chunks, build_activations, find_activations, identity
from linnaeus.stores.cache import Cache
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.stores.together import Group, build_together

BATCH = 32  # images through the frozen part at once: more is no faster on CPU
GPU_BATCH = 256
CALIBRATED = 64  # images that set the ranges of int8
TRIED = 8  # images that an executor is tried with
RESIDENT = 0.25  # of a GPU's free memory that rows may take whole
SMALL = 32 << 20  # bytes of rows that lie in memory on CPU: beyond that a run's memory would grow with its images

Prepare = Callable[[Batch], Tensor]
"""Batch of pixels -> what the network takes."""


class Machine(Group, Protocol):
    """Where the frozen part runs, and how exactly: what a training engine is, and less of it will do."""

    @property
    def device(self) -> torch.device: ...

    @property
    def precision(self) -> str: ...

    def autocast(self) -> AbstractContextManager[Any]: ...


@dataclass
class Samples:
    """The images of one split, decoded, with their labels."""

    rows: Rows
    labels: np.ndarray
    groups: np.ndarray | None = None
    """(n,) int64: which images belong together; None where each stands alone."""

    def __len__(self) -> int:
        return len(self.labels)

    def kept(self, indices: np.ndarray) -> np.ndarray:
        """Those of a split's `indices` in its table that these samples are: all that could be read."""
        return indices[self.rows.positions] if isinstance(self.rows, Subset) else indices


@dataclass
class Frozen:
    """The frozen parts of one network on one machine."""

    model: Network
    preprocessing: Preprocessing
    engine: Machine
    console: Console
    cache: Cache
    int8: Samples | None = None
    """The training images, some of which set the ranges where frozen stages run in int8; None: float."""
    executors: dict[tuple[str, str], Executor] = field(default_factory=dict)
    """(stages, checksum of their weights) -> how they are run: what one phase freezes another may have trained."""
    made_by: dict[str, str] = field(default_factory=dict)
    """Stages -> the executor that computed what the run used of them, in this run or an earlier one.

    Stages that are run again are run by the same."""
    note: Callable[[], None] = lambda: None
    """Told when there is something new in `made_by`."""

    @property
    def batch(self) -> int:
        return BATCH if self.engine.device.type == "cpu" else GPU_BATCH

    def executor(
        self, cut: str, sample: Tensor, images: int, start: str | None = None, weights: str | None = None
    ) -> Executor:
        """How the stages from `start` to below `cut` are run, chosen once in a run; `sample` (N, …) is their input.

        `weights` is the checksum of their weights, from who has it already.
        """
        name = self._stages(start, cut), weights or self._weights(start, cut)
        if name not in self.executors:
            record = cache_dir() / "executors.json"
            autocast = self.engine.autocast
            if self.int8 is not None and start is None:  # from a store on it is a short way: not worth rounding
                self.executors[name] = int8_executor(FrozenPart(self.model, cut), self._some_images(self.int8))
            else:

                def choose(wanted: str | None) -> Executor:
                    part = FrozenPart(self.model, cut, start)
                    return choose_executor(
                        part, sample[:TRIED], images, record=record, autocast=autocast, required=wanted
                    )

                # What is fastest is measured, so that two processes might find two answers: one of them decides.
                mine = choose(self.made_by.get(name[0])) if self.engine.rank == 0 else None
                chosen = self.engine.broadcast(lambda: "" if mine is None else mine.name)
                self.executors[name] = choose(chosen) if mine is None else mine
            self._made(name[0], self.executors[name].name)
        return self.executors[name]

    def rows(self, cuts: Sequence[str], samples: Samples, prepare: Prepare, what: str, variant: dict[str, Any]) -> Rows:
        """What crosses the last of `cuts` for each of `samples`, a store a cut, each made from the one before.

        A later phase that is cut lower needs the lower store anyway, and from there the rest of the way is short.
        `variant` says what `prepare` does to the images beside preprocessing. Raises OverBudgetError where a store
        would not fit.
        """
        rows, made_by = samples.rows, prepare
        start: str | None = None
        arch = {name: value for name, value in self.model.arch.items() if name != "classes"}
        arch["arguments"] = {name: value for name, value in arch["arguments"].items() if name != "head_stages"}
        key: dict[str, Any] = {
            "arch": arch,
            "precision": f"{self.engine.device.type} {self.engine.precision}",
            "preprocessing": self.preprocessing.to_dict(),
            "rows": identity(samples.rows),
            **({"int8": identity(self.int8.rows)} if self.int8 is not None else {}),
            **variant,
        }
        for cut in cuts:
            weights = self._weights(start, cut)
            key |= {f"through {cut}": weights}
            if cut == "head" and self.model.head_stages:
                key["head looks at"] = self.model.head_stages
            text = json.dumps(key, sort_keys=True)
            store = find_activations(len(samples), text, self.cache)
            if not all(self.engine.all_gather(store is not None)):
                first = next(iter(Batches(rows, samples.labels, batch=TRIED, device=self.engine.device).epoch()))
                sample = made_by(first)
                executor = self.executor(cut, sample, len(samples), start, weights)
                shape = tuple(executor(sample[:1]).shape[1:])
                with self.console.progress(f"{what}, {self._stages(start, cut)}") as advance:

                    def build(
                        chunks: Chunks, shape: tuple[int, ...] = shape, text: str = text, executor: Executor = executor,
                        advance: Advance = advance,
                    ) -> ActivationStore:  # fmt: skip
                        return build_activations(
                            chunks, len(samples), shape, text,
                            cache=self.cache, made_by=executor.name, progress=advance,
                        )  # fmt: skip

                    build_together(self.engine, partial(self._chunks, rows, samples.labels, made_by, executor), build)
                store = find_activations(len(samples), text, self.cache)
            assert store is not None, "it was built, and somebody has thrown it away since"
            self._made(self._stages(start, cut), store.made_by)
            rows, made_by, start = store, stored, cut
        assert isinstance(rows, ActivationStore)
        return in_memory(rows, self.engine.device)

    def _made(self, stages: str, executor: str) -> None:
        if self.made_by.get(stages) != executor:
            self.made_by[stages] = executor
            self.note()

    def _chunks(
        self, rows: Rows, labels: np.ndarray, prepare: Prepare, executor: Executor, start: int, rank: int, world: int
    ) -> Generator[Tensor, None, None]:
        """From row `start` on, process `rank`'s part of batches of what crosses the cut."""
        rest, batch, partition = Subset(rows, np.arange(start, len(rows))), self.batch * world, Partition(rank, world)
        batches = Batches(rest, labels[start:], batch=batch, device=self.engine.device, partition=partition)
        for part in batches.epoch():
            part.indices, part.draws = part.indices + start, part.draws + start
            yield executor(prepare(part))[part.portion.lead :]

    def _some_images(self, samples: Samples) -> Tensor:
        """CALIBRATED images of all, in a fixed random order, as the network takes them."""
        chosen = order(len(samples), seed=0, epoch=0)[:CALIBRATED]
        batches = Batches(Subset(samples.rows, chosen), samples.labels[chosen], batch=BATCH, device=self.engine.device)
        return torch.cat([self.preprocessing(batch.pixels, batch.shapes) for batch in batches.epoch()])

    def _stages(self, start: str | None, cut: str) -> str:
        """`stem to layer3`: the stages from `start` to below `cut`, in words."""
        stages = self.model.between(start, cut)
        return stages[0] if len(stages) == 1 else f"{stages[0]} to {stages[-1]}"

    def _weights(self, start: str | None, cut: str) -> str:
        """SHA-256 of the tensors of the stages from `start` to below `cut`."""
        digest = hashlib.sha256()
        stages = self.model.between(start, cut)
        for name, tensor in self.model.state_dict().items():
            if self.model.stage_of(name) in stages:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def stored(batch: Batch) -> Tensor:
    """What a store holds is the input already, but for its precision."""
    return batch.pixels.float()


def in_memory(store: ActivationStore, device: torch.device) -> Rows:
    """The store's rows whole in the device's memory where there is room, else as they lie on the disk."""
    if store.nbytes > (SMALL if device.type == "cpu" else RESIDENT * free_memory(device)):
        return store
    return Resident(torch.from_numpy(np.array(store.array)).to(device))


def on_device(rows: Rows, device: torch.device) -> Rows:
    """Rows of one shape whole on a GPU, where there is room: nothing crosses the bus again. On CPU, as they are."""
    if device.type != "cuda" or not isinstance(rows, PixelStore) or rows.uniform is None or rows.failed:
        return rows
    if rows.nbytes > RESIDENT * free_memory(device):
        return rows
    pixels, _ = rows.gather(np.arange(len(rows)))
    return Resident(torch.from_numpy(pixels).to(device))
