"""A recipe's phases, one after the other: freeze, fit, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from linnaeus.console import Console, duration
from linnaeus.data.augment import Augmentation
from linnaeus.data.batches import Batch, Batches, Rows
from linnaeus.evaluate import Figures
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Augment, Phase, Recipe
from linnaeus.training.engine import Engine
from linnaeus.training.loop import Above, Epoch, Step, Stream, fit
from linnaeus.training.memory import free_memory, probe
from linnaeus.training.optim import freeze, training_stages
from linnaeus.training.runfolder import Row

PROBED = 8  # samples for the trial step: enough to be past the fixed costs, few enough to take no time


@dataclass
class Samples:
    """The pictures of one split, decoded, with their labels."""

    rows: Rows
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class Best:
    """The best model so far, over all phases."""

    by: str
    figures: Figures | None = None
    phase: int = 0
    epoch: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def beaten_by(self, figures: Figures) -> bool:
        """Better by the recipe's measure; ties go to the lower loss, then to the earlier epoch."""
        return self.figures is None or self._key(figures) > self._key(self.figures)

    def _key(self, figures: Figures) -> tuple[float, float]:
        value = -figures.loss if self.by == "loss" else getattr(figures, self.by)
        return value, -figures.loss

    def keep(self, figures: Figures, phase: int, epoch: int, model: Network) -> None:
        self.figures, self.phase, self.epoch = figures, phase, epoch
        self.state = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@dataclass
class Phases:
    """Runs the phases of `recipe` on `model`. `save(model, best)` is called for each new best model."""

    recipe: Recipe
    model: Network
    preprocessing: Preprocessing
    train: Samples
    valid: Samples
    classes: int
    engine: Engine
    console: Console
    save: Callable[[Network, Best], None]
    record: Callable[[Row], None]
    seconds: dict[str, float] = field(default_factory=dict)
    micro: dict[str, int] = field(default_factory=dict)

    def run(self) -> Best:
        """All phases, each from the best weights so far. A KeyboardInterrupt passes through, with the best kept."""
        self.best = Best(self.recipe.best)
        first_epoch = 0
        for number, phase in enumerate(self.recipe.phase, start=1):
            if self.best.state:
                self.model.load_state_dict(self.best.state)
            started = time.perf_counter()
            try:
                self._phase(number, phase, first_epoch)
            finally:
                self.seconds[f"phase {number}"] = time.perf_counter() - started
            first_epoch += phase.epochs
        return self.best

    def _phase(self, number: int, phase: Phase, first_epoch: int) -> None:
        stages = training_stages(self.model, phase.train)
        freeze(self.model, stages)
        frozen = {n: b.clone() for n, b in self.model.named_buffers() if self.model.stage_of(n) not in stages}
        net = Above(self.model).to(self.engine.device)
        train = self._training_stream(phase)
        valid = self._evaluation_stream(phase)
        micro = self._announce(number, phase, stages, net, train)
        with self.console.progress(f"phase {number}") as advance:

            def watch(step: Step) -> None:
                if self.recipe.log_every and step.step % self.recipe.log_every == 0:
                    loss, _ = step.means()
                    self.console.say(f"  epoch {step.epoch}  step {step.step} of {step.steps}  loss {loss:.4f}")
                if self.console.terminal:
                    loss, accuracy = step.means()
                    note = f"epoch {step.epoch}/{phase.epochs}  loss {loss:.3f}"
                    note += f"  accuracy {accuracy:.1%}" if accuracy is not None else ""
                    done = (step.epoch - 1) * len(self.train) + step.samples
                    advance(done, phase.epochs * len(self.train), note)

            epochs = fit(
                net, phase, train, valid, self.engine,
                classes=self.classes, seed=self.recipe.seed, first_epoch=first_epoch, micro=micro,
                better=self.best.beaten_by, watch=watch,
            )  # fmt: skip
            for epoch in epochs:
                self._finish(number, phase, epoch)
        for name, buffer in frozen.items():
            now = self.model.get_buffer(name)
            assert torch.equal(buffer.to(now.device), now), f"{name} is frozen and changed in phase {number}"

    def _finish(self, number: int, phase: Phase, epoch: Epoch) -> None:
        """An epoch is over: write its row, keep the model if it is the best, say how it went."""
        v = epoch.valid
        self.record(
            Row(number, epoch.epoch, epoch.lr, epoch.train_loss, epoch.train_accuracy, v.loss, v.accuracy, epoch.seconds)
        )
        best = self.best.beaten_by(v)
        if best:
            self.best.keep(v, number, epoch.epoch, epoch.model)
            self.save(epoch.model, self.best)
        accuracy = "" if epoch.train_accuracy is None else f" accuracy {epoch.train_accuracy:6.2%}"
        self.console.say(
            f"  epoch {epoch.epoch:>{len(str(phase.epochs))}}/{phase.epochs}  lr {epoch.lr:.2e}"
            f"  train loss {epoch.train_loss:.4f}{accuracy}"
            f"  valid loss {v.loss:.4f} accuracy {v.accuracy:6.2%}{' *' if best else '  '}  {duration(epoch.seconds)}"
        )

    def _training_stream(self, phase: Phase) -> Stream:
        weights = None
        if phase.sampling == "balanced":
            counts = np.bincount(self.train.labels, minlength=self.classes)
            weights = 1 / counts[self.train.labels]
            weights /= weights.sum()
        batches = Batches(
            self.train.rows, self.train.labels, batch=phase.batch, device=self.engine.device, shuffle=True,
            seed=self.recipe.seed, weights=weights, rank=self.engine.rank, world=self.engine.world,
        )  # fmt: skip
        p = self.preprocessing
        augmentation = Augmentation(
            phase.augment or Augment(), size=p.size, mean=p.mean, std=p.std, seed=self.recipe.seed
        )

        def prepare(batch: Batch, epoch: int) -> Tensor:
            return augmentation(batch.pixels, batch.shapes, batch.indices, epoch)

        return Stream(batches, prepare)

    def _evaluation_stream(self, phase: Phase) -> Stream:
        batches = Batches(self.valid.rows, self.valid.labels, batch=min(phase.batch, 256), device=self.engine.device)
        return Stream(batches, lambda batch, epoch: self.preprocessing(batch.pixels, batch.shapes))

    def _announce(self, number: int, phase: Phase, stages: tuple[str, ...], net: Above, train: Stream) -> int:
        """Try one step on a copy; say what trains, at what cost. Returns the number of samples to run at once."""
        batch = next(iter(train.batches.epoch())).part(0, PROBED)
        x = train.prepare(batch, 0)
        cost = probe(net, stages, x)
        micro = self.micro.get(f"phase {number}") or cost.micro_batch(phase.batch, free_memory(self.engine.device))
        self.micro[f"phase {number}"] = micro
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        pieces = "" if micro >= phase.batch else f" in pieces of {micro}, which fit the memory"
        # Evaluation is a forward pass, about a third of a step's work.
        seconds = phase.epochs * cost.seconds * (len(self.train) + len(self.valid) / 3)
        self.console.say(
            f"phase {number}: {', '.join(phase.train)}, {trained:,} parameters train; {phase.epochs} epochs of "
            f"{len(train.batches)} steps; batch ({min(phase.batch, len(self.train))}, {', '.join(map(str, x.shape[1:]))}) "
            f"{str(x.dtype).removeprefix('torch.')}{pieces}; about {duration(seconds)}"
        )
        return micro
