"""The frozen part of a network: run by the fastest executor, and its activations computed once and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.cache import Cache, default_cache
from linnaeus.console import Console
from linnaeus.data.batches import Batch, Batches, Partition, Rows, Subset
from linnaeus.data.order import order
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.group import SINGLE_PROCESS, ProcessGroup
from linnaeus.environment import cache_dir
from linnaeus.models import Network
from linnaeus.models.executors import Executor, FrozenPart, choose_executor, exact_executor, int8_executor
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.activations import (
    ActivationStore,
    RowSource,
    StoreSpec,
    content_key,
    find_activations,
    image_stores,
)
from linnaeus.stores.distributed import build_with_group
from linnaeus.stores.in_memory import in_memory
from linnaeus.stores.reuse import PartlyStored
from linnaeus.stores.samples import EarlierRows, Samples

BATCH = 32  # images through the frozen part at once: more is not faster on a CPU
GPU_BATCH = 256
EXACT_BATCH = 16  # fewer images at once are slower; more take more memory and are not faster
CALIBRATION_IMAGES = 64  # that set the ranges of int8
TRIAL_IMAGES = 16  # that an executor is tried with: fewer take a slow path of torch on one thread

Prepare = Callable[[Batch], Tensor]  # batch of rows -> input of the network or of its next stage


@dataclass(frozen=True)
class _CutRows:
    """Computes what crosses a cut, a `RowSource`."""

    samples: Samples
    prepare: Prepare
    executor: Executor
    batch: int  # samples per process at a time
    device: torch.device

    def batches(self, start: int, rank: int = 0, world_size: int = 1) -> Generator[Tensor, None, None]:
        rest = Subset(self.samples.rows, np.arange(start, len(self.samples)))
        partition = Partition(rank, world_size)
        batches = Batches(
            rest, self.samples.labels[start:], batch=self.batch * world_size, device=self.device, partition=partition
        )
        for batch in batches.epoch():
            # `prepare` may draw by the sample's number, which must not depend on where the build started.
            batch.indices, batch.draws = batch.indices + start, batch.draws + start
            yield self._outputs(batch)[batch.portion.lead :]

    def at(self, indices: np.ndarray) -> Tensor:
        """The rows of the samples `indices` (k,), at most a batch of them, in one process."""
        part = Batches(
            Subset(self.samples.rows, indices), self.samples.labels[indices], batch=len(indices), device=self.device
        )
        batch = next(iter(part.epoch()))
        batch.indices, batch.draws = indices, indices
        return self._outputs(batch)

    def _outputs(self, batch: Batch) -> Tensor:
        """What crosses the cut for a batch. A row equal to the one before is not computed again.

        Views that are only mirrored are equal for half of the images.
        """
        x = self.prepare(batch)
        new = torch.ones(len(x), dtype=torch.bool, device=x.device)
        new[1:] = (x[1:] != x[:-1]).flatten(1).any(1)
        return self.executor(x) if new.all() else self.executor(x[new])[new.cumsum(0) - 1]


@dataclass
class FrozenStages:
    """Runs the stages of one network that do not train, and stores what they compute."""

    model: Network
    preprocessing: Preprocessing
    device: torch.device
    console: Console
    cache: Cache
    group: ProcessGroup = SINGLE_PROCESS
    precision: str = "32-true"  # as `Engine.precision` names it: a part of the key of a store
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext  # the precision of the forward pass
    # The training images, some of which calibrate int8; None: the stages run in floating point.
    int8: Samples | None = None
    bf16: bool = False  # whether to try convolutions in bfloat16
    # A key of what may change a bit, such as the number of threads, where the rows must have every bit that the network
    # computes in evaluation; empty where they are made fast.
    exact: str = ""
    # (stages, checksum of their weights) -> executor: a later phase may freeze what an earlier one trained.
    executors: dict[tuple[str, str], Executor] = field(default_factory=dict)
    # Stages -> the executor that computed their activations, in this run or in the one that it resumes. Stages that run
    # again are run by the same executor.
    made_by: dict[str, str] = field(default_factory=dict)
    on_change: Callable[[], None] | None = None  # called after `made_by` has changed

    @classmethod
    def on_engine(
        cls, network: Network, preprocessing: Preprocessing, engine: Engine, console: Console
    ) -> FrozenStages:
        """The frozen stages of a network as `engine` runs them, with their stores in the user's cache."""
        return cls(
            network,
            preprocessing,
            engine.device,
            console,
            default_cache(),
            group=engine,
            precision=engine.precision,
            autocast=engine.autocast,
        )

    def round_as(self, setting: str | None, train: Samples) -> None:
        """Follow the recipe's `model.frozen_precision`; the training images calibrate int8."""
        self.bf16, self.int8 = setting == "bf16", train if setting == "int8" else None

    @property
    def batch(self) -> int:
        """Images through the frozen part at once."""
        on_cpu = EXACT_BATCH if self.exact else BATCH
        return on_cpu if self.device.type == "cpu" else GPU_BATCH

    def executor(self, cut: str, sample: Tensor, images: int) -> Executor:
        """The executor of all stages below `cut`, chosen once per run.

        `sample` (N, …) is input of the network, and `images` the number of images to come.
        """
        return self._executor(FrozenPart(self.model, cut), sample, images)

    def rows(
        self, cuts: Sequence[str], samples: Samples, prepare: Prepare, label: str, variant: dict[str, Any]
    ) -> Rows:
        """Activations at the last of `cuts` for each of `samples`: a store per cut, each computed from the one before.

        A later phase with a lower cut needs the lower store anyway, and the way from there is short. `variant`
        describes what `prepare` does to the images beyond preprocessing; `label` names the samples in the progress
        line. Raises OverBudgetError if a store does not fit the cache.
        """
        key = self._key(samples, variant)
        images = image_stores(samples.rows)
        earlier = samples.earlier if self.group.world_size == 1 else None
        if earlier is not None and "augment" in variant:
            if earlier.exact:
                earlier = None
            else:
                key["taken over"] = earlier.mark
        for start, cut in zip([None, *cuts], cuts, strict=False):
            part = FrozenPart(self.model, cut, start)
            key |= self._key_of_part(part)
            text = json.dumps(key, sort_keys=True)
            store = find_activations(len(samples), text, self.cache)
            # Every rank must find the store, or all of them take part in building it.
            if not all(self.group.all_gather(store is not None)):
                batches = Batches(samples.rows, samples.labels, batch=TRIAL_IMAGES, device=self.device)
                sample = prepare(next(iter(batches.epoch())))
                computing = len(samples) if earlier is None or earlier.exact else earlier.missing
                executor = self._executor(part, sample, computing)
                shape = self._shape(part, executor, sample[:1])
                spec = StoreSpec(len(samples), shape, text, executor.name, images, bool(self.exact))
                computed = _CutRows(samples, prepare, executor, self.batch, self.device)
                source = computed if earlier is None else self._reusing(earlier, key, computed)
                with self.console.progress(f"{label}, {part.title}") as advance:
                    build_with_group(self.group, source, spec, self.cache, advance)
                store = find_activations(len(samples), text, self.cache)
            assert store is not None, "the store was built, and another process has evicted it since"
            self._record(part.title, store.made_by)
            samples, prepare = Samples(store, samples.labels), stored
        assert isinstance(samples.rows, ActivationStore)
        return in_memory(samples.rows, self.device)

    def _shape(self, part: FrozenPart, executor: Executor, image: Tensor) -> tuple[int, ...]:
        """The shape of a row, by one image, which the exact executor would fill up to a whole batch."""
        with torch.no_grad():
            return tuple((part(image) if self.exact else executor(image)).shape[1:])

    def _reusing(self, earlier: EarlierRows, key: dict[str, Any], computed: _CutRows) -> RowSource:
        """Rows from the store of an earlier run where it has them; `computed` alone where there is no such store."""
        earlier_key = {name: value for name, value in key.items() if name != "taken over"}
        if "taken over" in key and (mark := earlier.marks.get(str(key["views"]))):
            earlier_key["taken over"] = mark
        text = json.dumps(earlier_key | {"rows": content_key(earlier.rows)}, sort_keys=True)
        store = find_activations(len(earlier.rows), text, self.cache)
        if store is None:
            return computed
        source = PartlyStored(store, earlier.positions, computed)
        if (earlier.exact or self.exact) and not (store.made_by == computed.executor.name and source.reproduces()):
            return computed
        kept = int((earlier.positions >= 0).sum())
        self.console.detail(f"{kept} of {len(earlier.positions)} rows are reused from an earlier store")
        return source

    def _key(self, samples: Samples, variant: dict[str, Any]) -> dict[str, Any]:
        """What the activations of `samples` depend on, apart from the weights."""
        # The head is not frozen: neither its classes nor the stages that it looks at change what reaches it.
        arch = {name: value for name, value in self.model.arch.items() if name != "classes"}
        arch["arguments"] = {k: v for k, v in arch["arguments"].items() if k not in ("head_stages", "head_windows")}
        key: dict[str, Any] = {
            "arch": arch,
            "precision": f"{self.device.type} {self.precision}",
            "preprocessing": self.preprocessing.to_dict(),
            "rows": content_key(samples.rows),
        }
        if self.int8 is not None:
            key["int8"] = content_key(self.int8.rows)
        if self.bf16:
            key["bf16"] = True
        if self.exact:
            key["exact"] = self.exact
        return key | variant

    def _key_of_part(self, part: FrozenPart) -> dict[str, Any]:
        """What a part adds to the key of the rows that it is computed from."""
        key: dict[str, Any] = {f"through {part.stop}": part.checksum}
        if part.stop == "head" and self.model.head_stages:
            key["head looks at"] = self.model.head_stages
        if part.stop == "head" and self.model.windows > 1:
            key["windows"] = self.model.windows
        return key

    def _executor(self, part: FrozenPart, sample: Tensor, images: int) -> Executor:
        key = part.title, part.checksum
        if key not in self.executors:
            if self.exact:
                self.executors[key] = exact_executor(part, self.batch)
            # The stages above a store are few: rounding them gains little.
            elif self.int8 is not None and part.start is None:
                self.executors[key] = int8_executor(part, self._calibration_images(self.int8))
            else:
                self.executors[key] = self._choose(part, sample[:TRIAL_IMAGES], images)
            self._record(part.title, self.executors[key].name)
        return self.executors[key]

    def _choose(self, part: FrozenPart, sample: Tensor, images: int) -> Executor:
        """The executor that rank 0 chooses: it measures, so another rank might choose another one."""
        record = cache_dir() / "executors.json"
        choose = partial(choose_executor, part, sample, images, record=record, autocast=self.autocast, bf16=self.bf16)
        with self.group.propagate_errors():
            executor = choose(required=self.made_by.get(part.title)) if self.group.is_main else None
        name = self.group.broadcast(lambda: executor.name if executor is not None else None)
        # The other ranks prepare what rank 0 has chosen.
        return executor or choose(required=name)

    def _record(self, stages: str, executor: str) -> None:
        if self.made_by.get(stages) != executor:
            self.made_by[stages] = executor
            if self.on_change is not None:
                self.on_change()

    def _calibration_images(self, samples: Samples) -> Tensor:
        """CALIBRATION_IMAGES of the samples, in a fixed random order, as the network's input."""
        chosen = order(len(samples), seed=0, epoch=0)[:CALIBRATION_IMAGES]
        batches = Batches(Subset(samples.rows, chosen), samples.labels[chosen], batch=BATCH, device=self.device)
        return torch.cat([self.preprocessing.of_batch(batch) for batch in batches.epoch()])


def stored(batch: Batch) -> Tensor:
    """The rows of an activation store as input of the next stage: only their precision changes."""
    return batch.pixels.float()
