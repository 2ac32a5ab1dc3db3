"""The data of a phase: pixels, or stored activations at the cut, which are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.augment.pipeline import Augmentation
from linnaeus.cache import OverBudgetError
from linnaeus.console import counted, duration
from linnaeus.data.batches import Batch, Batches, InMemoryRows, Partition, Rows, Sampling, Subset
from linnaeus.inference.feature_batches import exact_stages
from linnaeus.inference.forward import local_batches
from linnaeus.models.executors import Executor
from linnaeus.recipe import Augment, Phase
from linnaeus.stores.activations import ActivationStore
from linnaeus.stores.frozen import TRIAL_IMAGES, FrozenStages, Prepare, stored
from linnaeus.stores.in_memory import on_device
from linnaeus.stores.samples import Samples
from linnaeus.training.optim import training_stages
from linnaeus.training.phase import Stream

STORED_BATCH = 256  # stored validation samples of each process at once


@dataclass
class _Views:
    """Computes the augmented versions of images that are to be stored.

    Row k of the store holds view k % views of image k // views. A view is what the augmentation draws in the epoch of
    the same number.
    """

    augment: Callable[[Batch, int], Tensor]
    views: int

    def __call__(self, batch: Batch) -> Tensor:
        samples, view = batch.indices // self.views, batch.indices % self.views
        by_view = np.argsort(view, kind="stable")
        parts = []
        for number in np.unique(view):
            where = np.flatnonzero(view == number)
            part = batch.take(where)
            part.draws = samples[where]
            parts.append(self.augment(part, int(number)))
        return torch.cat(parts)[torch.from_numpy(np.argsort(by_view))]


def augmented(augmentation: Augmentation, batch: Batch, epoch: int) -> Tensor:
    """The input of the network for a batch, by what was drawn for its epoch or is drawn for it now."""
    if batch.drawn is not None:
        return augmentation.crop(batch.pixels, batch.drawn, batch.start)
    return augmentation(batch.pixels, batch.shapes, batch.draws, epoch)


@dataclass
class Streams:
    """Builds the training and validation streams of each phase over the same samples."""

    frozen: FrozenStages
    train: Samples
    valid: Samples
    phases: list[Phase]
    seed: int
    unseen: np.ndarray | None = None  # (n,) bool: the validation samples that choose the model; None: all
    seen: bool = False  # whether the initial weights were trained on some of the training images

    def __post_init__(self) -> None:
        self.device, self.group = self.frozen.device, self.frozen.group
        self.preprocessing, self.console = self.frozen.preprocessing, self.frozen.console

    def cut(self, phase: Phase) -> str | None:
        """The first stage that trains; None if that is the first stage of the network.

        Below the cut nothing trains and, in evaluation mode, nothing is random, so the activations there depend on the
        image alone. If the head uses the output of lower stages, the cut is low enough to include them.
        """
        model = self.frozen.model
        first = training_stages(model, phase.train)[0]
        below = model.stages[: model.stages.index(first) + 1]
        cut = first if first in model.starts else next(stage for stage in reversed(below) if stage in model.starts)
        return None if cut == model.stages[0] else cut

    def of(self, number: int) -> tuple[str | None, Stream, Stream]:
        """(cut, training stream, validation stream) of phase `number`, counted from 0."""
        phase = self.phases[number]
        cut = self.cut(phase)
        if cut is None:
            return None, self._augmented_pixels(phase), self._valid_pixels()
        # Training images first: their number decides whether a fast executor is worth its preparation.
        fixed = phase.augment is None or phase.views
        train = self._train_activations(number, cut) if fixed else self._fresh_activations(phase, cut)
        return cut, train, self._valid_activations(number, cut)

    @property
    def frozen_body(self) -> bool:
        """Whether all phases train the head alone, so that the stages below it are those of the start."""
        return all(self.cut(phase) == self.frozen.model.stages[-1] for phase in self.phases)

    def body_has_seen(self, number: int) -> bool:
        """Whether what is below the head was trained on these images before phase `number`, counted from 0."""
        head = self.frozen.model.stages[-1]
        return self.seen or any(training_stages(self.frozen.model, p.train)[0] != head for p in self.phases[:number])

    def taken_over(self) -> dict[str, str]:
        """Number of views -> the mark of their store, if rows of an earlier run were reused."""
        earlier = self.train.earlier
        views = {phase.views for phase in self.phases if phase.augment is not None and phase.views}
        if earlier is None or earlier.exact or self.group.world_size > 1:
            return {}
        return {str(n): earlier.repeated(n).mark for n in sorted(views)}

    def head_features(self) -> Rows | None:
        """What the head sees of the training images, or of `views` versions of each, one image after the other.

        None where it changes during the run, or where it is not stored.
        """
        last = self.phases[-1]
        if not self.frozen_body or not (last.augment is None or last.views):
            return None
        rows = self._train_activations(len(self.phases) - 1, self.frozen.model.stages[-1]).batches.rows
        return rows if isinstance(rows, InMemoryRows | ActivationStore) else None

    def _augmented_pixels(self, phase: Phase) -> Stream:
        """Training images, augmented anew in every epoch."""
        augmentation = self._augment(phase)
        batches = self._train_batches(phase, on_device(self.train.rows, self.device), 1)
        if isinstance(batches.rows, InMemoryRows):
            batches.draw_epoch = partial(augmentation.draw_epoch, batches.rows.tensor)
        return Stream(batches, partial(augmented, augmentation))

    def _augment(self, phase: Phase) -> Augmentation:
        """The augmentation of the phase, or a center crop if it has none; both normalize."""
        p = self.preprocessing
        return Augmentation(phase.augment or Augment(), size=p.size, mean=p.mean, std=p.std, seed=self.seed)

    def _valid_pixels(self) -> Stream:
        rows = on_device(self.valid.rows, self.device)
        batches = local_batches(rows, self.valid.labels, self.frozen.batch, self.device, self.group)
        return Stream(batches, lambda batch, epoch: self.preprocessing.of_batch(batch), self.unseen)

    def _train_batches(self, phase: Phase, rows: Rows, views: int) -> Batches:
        """Training batches over `rows`, shuffled, or drawn so that classes are equally frequent."""
        weights = None
        if phase.sampling == "balanced":
            # Each class gets the same total probability.
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

    def _cuts(self, number: int, cut: str, shares_rows: Callable[[Phase], bool]) -> list[str]:
        """`cut` and the lower cuts of later phases whose rows are the same, lowest first.

        A later phase needs a store at its lower cut anyway, and computing the upper store from it is fast.
        """
        stages = self.frozen.model.stages
        later = {self.cut(phase) for phase in self.phases[number + 1 :] if shares_rows(phase)} - {None}
        lower = [stage for stage in stages[: stages.index(cut)] if stage in later]
        return [*lower, cut]

    def _valid_activations(self, number: int, cut: str) -> Stream:
        """Stored activations of the validation images, or the frozen part in every epoch if they do not fit."""
        cuts = self._cuts(number, cut, lambda phase: True)
        exact: FrozenStages | None = None
        if self.frozen_body:  # the final evaluation needs these rows too
            exact = exact_stages(self.frozen.model, self.preprocessing, self.device, self.group, self.console)
        rows = self._store(exact or self.frozen, cuts, self.valid, self.preprocessing.of_batch, "validation", {})
        if rows is None:
            pixels, executor = self._valid_pixels(), self._executor(cut, len(self.valid) * self.phases[number].epochs)
            return replace(pixels, prepare=lambda batch, epoch: executor(self.preprocessing.of_batch(batch)))
        batches = local_batches(rows, self.valid.labels, STORED_BATCH, self.device, self.group)
        return Stream(batches, lambda batch, epoch: stored(batch), self.unseen)

    def _train_activations(self, number: int, cut: str) -> Stream:
        """Stored activations of the training images, or of `views` augmented versions of each."""
        phase, views = self.phases[number], self.phases[number].views or 1
        kind = (phase.augment, phase.views)
        # Phases with the same augmentation share a store.
        cuts = self._cuts(number, cut, lambda other: (other.augment, other.views) == kind)
        # Part of the key of the store: training rows may have another size than evaluation rows.
        variant: dict[str, Any] = {"trained": True}
        samples = self.train
        if phase.augment is not None:
            variant |= {"augment": phase.augment.model_dump(mode="json"), "views": views, "seed": self.seed}
            repeated = np.repeat(np.arange(len(self.train)), views)
            earlier = None if self.train.earlier is None else self.train.earlier.repeated(views)
            labels = np.repeat(self.train.labels, views, axis=0)
            samples = Samples(Subset(self.train.rows, repeated), labels, earlier=earlier)
        label = f"training, {counted(views, 'view')}" if phase.views else "training"
        views_of = _Views(partial(augmented, self._augment(phase)), views)
        rows = self._store(self.frozen, cuts, samples, views_of, label, variant)
        # The store would not fit: the frozen part then runs in each epoch.
        if rows is None:
            return self._fresh_activations(phase, cut)
        return Stream(self._train_batches(phase, rows, views), lambda batch, epoch: stored(batch))

    def _store(
        self,
        frozen: FrozenStages,
        cuts: list[str],
        samples: Samples,
        prepare: Prepare,
        label: str,
        variant: dict[str, Any],
    ) -> Rows | None:
        """The stored activations at the last of `cuts`; None if they do not fit the cache.

        If the stores at the lower cuts do not fit, only the last one is made.
        """
        for attempt in (cuts, cuts[-1:])[: len(cuts)]:
            try:
                return frozen.rows(attempt, samples, prepare, label, variant)
            except OverBudgetError as error:
                reason = error
        self.console.say(f"  {label}: activations are not stored ({reason}); the frozen part runs in every epoch")
        return None

    def _fresh_activations(self, phase: Phase, cut: str) -> Stream:
        """Activations of training images that are augmented anew in every epoch."""
        augment = partial(augmented, self._augment(phase))
        executor = self._executor(cut, len(self.train) * phase.epochs)
        if phase.augment is not None:
            seconds, views = executor.seconds * len(self.train), min(4, phase.epochs)
            less = f"; with views = {views} it would take {duration(seconds * views)}" if views < phase.epochs else ""
            self.console.say(
                f"  new augmentation in every epoch: the frozen part takes about {duration(seconds * phase.epochs)} in "
                f"all{less}"
            )
        return Stream(self._augmented_pixels(phase).batches, lambda batch, epoch: executor(augment(batch, epoch)))

    def _executor(self, cut: str, images: int) -> Executor:
        """The executor of the frozen part for about `images` images."""
        rows, shapes = self.valid.rows.gather(np.arange(min(TRIAL_IMAGES, len(self.valid))))
        sample = self.preprocessing(torch.from_numpy(rows), shapes).to(self.device)
        return self.frozen.executor(cut, sample, images)
