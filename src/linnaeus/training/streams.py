"""What a phase trains on: pixels, or what crosses its cut, computed once and stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.augment.pipeline import Augmentation
from linnaeus.console import Console, duration
from linnaeus.data.batches import Batch, Batches, Partition, Rows, Sampling, Subset
from linnaeus.distributed.group import ProcessGroup
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Augment, Phase
from linnaeus.stores.cache import OverBudgetError
from linnaeus.stores.frozen import TRIAL_IMAGES, FrozenStages, Prepare, on_device, stored
from linnaeus.stores.samples import Samples
from linnaeus.training.optim import training_stages
from linnaeus.training.phase import Stream


@dataclass
class Streams:
    """Builds the streams of each phase over the same samples."""

    frozen: FrozenStages
    train: Samples
    valid: Samples
    phases: list[Phase]
    seed: int

    @property
    def device(self) -> torch.device:
        return self.frozen.device

    @property
    def group(self) -> ProcessGroup:
        return self.frozen.group

    @property
    def console(self) -> Console:
        return self.frozen.console

    @property
    def preprocessing(self) -> Preprocessing:
        return self.frozen.preprocessing

    def cut(self, phase: Phase) -> str | None:
        """The first stage that trains; None where that is the first of all.

        Below it nothing trains, and nothing is random in evaluation mode: what crosses it depends on the image alone.
        Where the head looks at lower stages too, the cut is low enough for it to see them.
        """
        model = self.frozen.model
        first = training_stages(model, phase.train)[0]
        below = model.stages[: model.stages.index(first) + 1]
        cut = first if first in model.starts else next(stage for stage in reversed(below) if stage in model.starts)
        return None if cut == model.stages[0] else cut

    def of(self, number: int) -> tuple[str | None, Stream, Stream]:
        """(the cut, training stream, validation stream) of phase `number`, from 0."""
        phase = self.phases[number]
        cut = self.cut(phase)
        if cut is None:
            return None, self._pixels(phase), self._validation()
        valid = self._stored_validation(number, cut)
        if phase.augment is None or phase.views:
            return cut, self._stored_training(number, cut), valid
        return cut, self._fresh(phase, cut), valid

    def _pixels(self, phase: Phase) -> Stream:
        """Training images, augmented afresh in every epoch."""
        batches = self._order(phase, on_device(self.train.rows, self.device), 1)
        return Stream(batches, self._augment(phase))

    def _augment(self, phase: Phase) -> Callable[[Batch, int], Tensor]:
        """The phase's augmentation, or the central crop where it has none, normalised."""
        p = self.preprocessing
        augmentation = Augmentation(phase.augment or Augment(), size=p.size, mean=p.mean, std=p.std, seed=self.seed)

        def prepare(batch: Batch, epoch: int) -> Tensor:
            return augmentation(batch.pixels, batch.shapes, batch.draws, epoch)

        return prepare

    def _plain(self, batch: Batch, epoch: int = 0) -> Tensor:
        """The preprocessing of evaluation."""
        return self.preprocessing(batch.pixels, batch.shapes)

    def _validation(self) -> Stream:
        rows = on_device(self.valid.rows, self.device)
        return Stream(self._in_order(rows, self.frozen.batch), self._plain)

    def _in_order(self, rows: Rows, batch: int) -> Batches:
        """Validation batches over `rows`, of `batch` samples for each process."""
        world_size = self.group.world_size
        partition = Partition(self.group.rank, world_size)
        return Batches(rows, self.valid.labels, batch=batch * world_size, device=self.device, partition=partition)

    def _order(self, phase: Phase, rows: Rows, views: int) -> Batches:
        """Training batches over `rows`, shuffled, or balanced by class."""
        weights = None
        if phase.sampling == "balanced":
            counts = np.bincount(self.train.labels)
            weights = 1 / counts[self.train.labels]
            weights /= weights.sum()
        return Batches(
            rows,
            self.train.labels,
            batch=phase.batch,
            device=self.device,
            sampling=Sampling(shuffle=True, seed=self.seed, weights=weights),
            partition=Partition(self.group.rank, self.group.world_size, phase.mixup > 0 or phase.cutmix > 0),
            views=views,
        )

    def _cuts(self, number: int, cut: str, alike: Callable[[Phase], bool]) -> list[str]:
        """The cuts below `cut` that later phases of the same kind have, lowest first, and `cut` itself."""
        stages = self.frozen.model.stages
        later = {self.cut(phase) for phase in self.phases[number + 1 :] if alike(phase)} - {None}
        lower = [stage for stage in stages[: stages.index(cut)] if stage in later]
        return [*lower, cut]

    def _stored_validation(self, number: int, cut: str) -> Stream:
        cuts = self._cuts(number, cut, lambda phase: True)
        rows = self._rows(cuts, self.valid, self._plain, "validation", {})
        if rows is None:
            pixels, executor = self._validation(), self._executor(cut, len(self.valid) * self.phases[number].epochs)
            return Stream(pixels.batches, lambda batch, epoch: executor(self._plain(batch)))
        return Stream(self._in_order(rows, 256), lambda batch, epoch: stored(batch))

    def _stored_training(self, number: int, cut: str) -> Stream:
        """What crosses the cut for each training image, or for each of its `views` augmented versions."""
        phase, n = self.phases[number], len(self.train)
        views = phase.views or 1
        kind = (phase.augment, phase.views)
        cuts = self._cuts(number, cut, lambda other: (other.augment, other.views) == kind)
        augment = self._augment(phase)

        def prepare(batch: Batch) -> Tensor:
            """Rows hold the views of an image one after the other; a view stands for an epoch of the augmentation."""
            samples, view = batch.indices // views, batch.indices % views
            made: list[tuple[np.ndarray, Tensor]] = []
            for v in np.unique(view):
                where = np.flatnonzero(view == v)
                part = batch.take(where)
                part.draws = samples[where]
                made.append((where, augment(part, int(v))))
            back = np.argsort(np.concatenate([where for where, _ in made]))
            return torch.cat([x for _, x in made])[torch.from_numpy(back)]

        variant: dict[str, Any] = {"trained": True}  # training rows may have another size than those of evaluation
        samples = self.train
        if phase.augment is not None:
            variant |= {"augment": phase.augment.model_dump(mode="json"), "views": views, "seed": self.seed}
            samples = Samples(
                Subset(self.train.rows, np.repeat(np.arange(n), views)), np.repeat(self.train.labels, views)
            )
        rows = self._rows(cuts, samples, prepare, f"training, {views} views" if phase.views else "training", variant)
        if rows is None:
            return self._fresh(phase, cut)
        return Stream(self._order(phase, rows, views), lambda batch, epoch: stored(batch))

    def _rows(
        self, cuts: list[str], samples: Samples, prepare: Prepare, what: str, variant: dict[str, Any]
    ) -> Rows | None:
        """The stored rows; where the stores on the way would not fit, those of the last cut alone; None if not even."""
        for way in (cuts, cuts[-1:])[: len(cuts)]:
            try:
                return self.frozen.rows(way, samples, prepare, what, variant)
            except OverBudgetError as error:
                reason = error
        self.console.say(f"  {what}: what the frozen part gives is not stored ({reason}); it runs in every epoch")
        return None

    def _fresh(self, phase: Phase, cut: str) -> Stream:
        """Images augmented afresh, and the frozen part run on them, in every epoch."""
        augment = self._augment(phase)
        executor = self._executor(cut, len(self.train) * phase.epochs)
        if phase.augment is not None:
            seconds, views = executor.seconds * len(self.train), min(4, phase.epochs)
            self.console.say(
                f"  fresh augmentation: the frozen part runs in every epoch, about {duration(seconds * phase.epochs)} "
                f"in all; views = {views} would run it for {duration(seconds * views)}"
            )
        return Stream(self._pixels(phase).batches, lambda batch, epoch: executor(augment(batch, epoch)))

    def _executor(self, cut: str, images: int):
        rows, shapes = self.valid.rows.gather(np.arange(min(TRIAL_IMAGES, len(self.valid))))
        sample = self.preprocessing(torch.from_numpy(rows), shapes).to(self.device)
        return self.frozen.executor(cut, sample, images)
