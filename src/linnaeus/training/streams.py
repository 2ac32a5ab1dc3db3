"""What a phase trains on: pixels, or what crosses its cut, computed once and stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from linnaeus.console import Console, duration
from linnaeus.data.augment import Augmentation
from linnaeus.data.batches import Batch, Batches, Resident, Rows, Subset
from linnaeus.data.download import cache_dir
from linnaeus.models import Network
from linnaeus.models.execute import Executor, choose_executor
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Augment, Phase
from linnaeus.stores.activations import ActivationStore, build_activations, identity
from linnaeus.stores.cache import Cache, OverBudgetError
from linnaeus.stores.pixelstore import PixelStore
from linnaeus.training.engine import Engine
from linnaeus.training.loop import Stream
from linnaeus.training.memory import free_memory

BATCH = 32  # pictures through the frozen part at once: more is no faster on CPU
GPU_BATCH = 256
PROBED = 8
RESIDENT = 0.25  # of the free memory that the rows of a phase may take whole


@dataclass
class Samples:
    """The pictures of one split, decoded, with their labels."""

    rows: Rows
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Streams:
    """Builds the streams of each phase over the same samples."""

    model: Network
    preprocessing: Preprocessing
    train: Samples
    valid: Samples
    engine: Engine
    console: Console
    cache: Cache
    seed: int
    executors: dict[str, str] = field(default_factory=dict)
    """Stage of the cut -> executor, for the run's record."""

    def of(self, phase: Phase, stages: tuple[str, ...]) -> tuple[str | None, Stream, Stream]:
        """(the cut, training stream, validation stream) of a phase that trains `stages`.

        The cut is the first stage that trains. Below it nothing trains, and nothing is random in evaluation mode, so
        what crosses it depends on the picture alone. None where the first stage of all trains.
        """
        cut = None if stages[0] == self.model.stages[0] else stages[0]
        augmentation = self._augmentation(phase.augment or Augment())
        if cut is None:
            return None, self._pixels(phase, augmentation), self._validation()
        executor = self._executor(cut, phase)
        self.executors[cut] = executor.name
        valid = self._stored(cut, executor, self.valid, self._validation(), "validation", {})
        train = self._pixels(phase, augmentation)
        if phase.augment is None:
            return cut, self._batched(phase, self._stored(cut, executor, self.train, train, "training", {}), 1), valid
        if phase.views:
            made = self._views(cut, executor, phase, augmentation)
            return cut, self._batched(phase, made, phase.views), valid
        seconds, views = executor.seconds * len(self.train), min(4, phase.epochs)
        self.console.say(
            f"  fresh augmentation: the frozen part runs in every epoch, about {duration(seconds * phase.epochs)} in "
            f"all; views = {views} would run it for {duration(seconds * views)}"
        )

        def prepare(batch: Batch, epoch: int) -> Tensor:
            return executor(augmentation_of(augmentation, batch, epoch))

        return cut, Stream(train.batches, prepare), valid

    def _augmentation(self, spec: Augment) -> Augmentation:
        p = self.preprocessing
        return Augmentation(spec, size=p.size, mean=p.mean, std=p.std, seed=self.seed)

    def _pixels(self, phase: Phase, augmentation: Augmentation) -> Stream:
        """Training pictures, augmented afresh in every epoch."""
        batches = self._order(phase, on_device(self.train.rows, self.engine.device), 1)
        return Stream(batches, lambda batch, epoch: augmentation_of(augmentation, batch, epoch))

    def _validation(self) -> Stream:
        rows = on_device(self.valid.rows, self.engine.device)
        batches = Batches(rows, self.valid.labels, batch=self._batch(), device=self.engine.device)
        return Stream(batches, lambda batch, epoch: self.preprocessing(batch.pixels, batch.shapes))

    def _order(self, phase: Phase, rows: Rows, views: int) -> Batches:
        """Training batches over `rows`, shuffled, or balanced by class."""
        weights = None
        if phase.sampling == "balanced":
            counts = np.bincount(self.train.labels)
            weights = 1 / counts[self.train.labels]
            weights /= weights.sum()
        return Batches(
            rows, self.train.labels, batch=phase.batch, device=self.engine.device, shuffle=True, seed=self.seed,
            weights=weights, views=views, rank=self.engine.rank, world=self.engine.world,
        )  # fmt: skip

    def _batched(self, phase: Phase, stored: Stream, views: int) -> Stream:
        """Training batches over what is stored, in training order."""
        return Stream(self._order(phase, stored.batches.rows, views), stored.prepare)

    def _batch(self) -> int:
        return BATCH if self.engine.device.type == "cpu" else GPU_BATCH

    def _executor(self, cut: str, phase: Phase) -> Executor:
        rows, shapes = self.valid.rows.gather(np.arange(min(PROBED, len(self.valid))))
        sample = self.preprocessing(torch.from_numpy(rows), shapes).to(self.engine.device)
        times = 1 if phase.augment is None else phase.views or phase.epochs
        pictures = len(self.valid) + times * len(self.train)
        record = cache_dir() / "executors.json"
        return choose_executor(self.model, cut, sample, pictures, record, self.engine.autocast)

    def _views(self, cut: str, executor: Executor, phase: Phase, augmentation: Augmentation) -> Stream:
        """What crosses the cut for `views` augmented versions of each training picture, one after the other."""
        assert phase.augment is not None
        views, n = phase.views, len(self.train)
        rows = Subset(self.train.rows, np.repeat(np.arange(n), views))
        batches = Batches(rows, np.repeat(self.train.labels, views), batch=self._batch(), device=self.engine.device)

        def prepare(batch: Batch, epoch: int) -> Tensor:
            # The augmentation's random numbers come from (sample, epoch), and a view stands for an epoch.
            samples, view = batch.indices // views, batch.indices % views
            out: Tensor | None = None
            for v in np.unique(view):
                where = np.flatnonzero(view == v)
                part = batch.take(where)
                part.indices = samples[where]
                made = augmentation_of(augmentation, part, int(v))
                if out is None:
                    out = made.new_empty((len(batch), *made.shape[1:]))
                out[torch.from_numpy(where).to(made.device)] = made
            assert out is not None
            return out

        what = {"augment": phase.augment.model_dump(mode="json"), "views": views, "seed": self.seed}
        samples = Samples(rows, batches.labels)
        return self._stored(cut, executor, samples, Stream(batches, prepare), f"{views} views of training", what)

    def _stored(
        self, cut: str, executor: Executor, samples: Samples, pixels: Stream, what: str, more: dict[str, object]
    ) -> Stream:
        """What crosses the cut for each of `samples`, from a store; streamed where the store would not fit.

        `pixels` says how a batch becomes the network's input; its batches may be in training order, ours are not.
        """
        batches = Batches(samples.rows, samples.labels, batch=self._batch(), device=self.engine.device)
        shape = tuple(executor(pixels.prepare(next(iter(batches.epoch())).part(0, 1), 0)).shape[1:])
        key = self._key(cut, executor, samples.rows, more)

        def chunks(start: int) -> Iterator[Tensor]:
            rest = Batches(
                Subset(samples.rows, np.arange(start, len(samples))), samples.labels[start:], batch=self._batch(),
                device=self.engine.device,
            )  # fmt: skip
            for batch in rest.epoch():
                batch.indices = batch.indices + start
                yield executor(pixels.prepare(batch, 0))

        try:
            with self.console.progress(f"{what}: stages below {cut}") as advance:
                store = build_activations(chunks, len(samples), shape, key, cache=self.cache, progress=advance)
        except OverBudgetError as error:
            self.console.say(f"  {what}: what the frozen part gives is not stored ({error}); it runs in every epoch")
            return Stream(pixels.batches, lambda batch, epoch: executor(pixels.prepare(batch, epoch)))
        rows = in_memory(store, self.engine.device)
        stored = Batches(rows, samples.labels, batch=max(self._batch(), 256), device=self.engine.device)
        return Stream(stored, lambda batch, epoch: batch.pixels.float())

    def _key(self, cut: str, executor: Executor, rows: Rows, more: dict[str, object]) -> str:
        """Everything that a stored row depends on."""
        weights = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            if self.model.stages.index(self.model.stage_of(name)) < self.model.stages.index(cut):
                weights.update(name.encode())
                weights.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        what = {
            "arch": {k: v for k, v in self.model.arch.items() if k != "classes"},
            "weights": weights.hexdigest(),
            "cut": cut,
            "executor": f"{executor.name} {self.engine.device.type} {self.engine.precision}",
            "preprocessing": self.preprocessing.to_dict(),
            "rows": identity(rows),
            **more,
        }
        return json.dumps(what, sort_keys=True)


def augmentation_of(augmentation: Augmentation, batch: Batch, epoch: int) -> Tensor:
    """The augmented, normalised batch."""
    return augmentation(batch.pixels, batch.shapes, batch.indices, epoch)


def in_memory(store: ActivationStore, device: torch.device) -> Rows:
    """The store's rows whole in the device's memory where there is room, else as they lie on the disk."""
    if store.nbytes > RESIDENT * free_memory(device):
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
