"""A recipe's phases, one after the other: freeze, fit, keep the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from linnaeus.console import Console, counted, duration
from linnaeus.data.batches import Batches
from linnaeus.device import free_memory
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.sync_batchnorm import synced_batchnorm
from linnaeus.errors import JobError, UserError
from linnaeus.metrics.classification import Figures, figures
from linnaeus.metrics.outputs import Outputs
from linnaeus.models import Network
from linnaeus.models.linear_probe import LinearProbe, fit_linear_probe
from linnaeus.recipe import Phase, Recipe
from linnaeus.runs.history import Row
from linnaeus.training.best import Best
from linnaeus.training.checkpoint import Checkpoint, Checkpoints
from linnaeus.training.loop import Above, Epoch, Step, fit, validated
from linnaeus.training.memory import probe
from linnaeus.training.optim import freeze, training_stages
from linnaeus.training.rangetest import RangeTest, range_test
from linnaeus.training.snapshot import Snapshot, network_state
from linnaeus.training.step import Stream, balanced
from linnaeus.training.stop import Stop
from linnaeus.training.streams import Streams
from linnaeus.training.times import RunTimes

PROBED = 8  # samples for the trial step: enough to be past the fixed costs, few enough to take no time


@dataclass
class Phases:
    """Runs the phases of `recipe` on `model`.

    `save(best)` writes the best model to the disk: the first, then with every checkpoint, and at the end of each phase.
    An epoch of a head takes milliseconds, and a model file much longer. But for the first, the checkpoint that has the
    same model comes before it, so that a run that is resumed never finds a better model than it knows of.
    """

    recipe: Recipe
    model: Network
    streams: Streams
    classes: int
    engine: Engine
    console: Console
    save: Callable[[Best], None]
    record: Callable[[Row], None]
    divided: Callable[[int, int], None]
    """Told (phase, samples at once) when that is found out."""
    tuned: Callable[[int, RangeTest], None]
    """Told (phase, test) where the learning rate was to be found."""
    checkpoints: Checkpoints | None = None
    """None writes none."""
    stop: Stop = field(default_factory=Stop)
    rows: list[Row] = field(default_factory=list)
    """The lines of the history so far, which `record` adds to."""
    micro: Mapping[str, int] = field(default_factory=dict)
    """Phase -> samples at once, where that is known from before the run was cut."""
    seconds: RunTimes = field(default_factory=RunTimes)
    trial: Callable[[int, Figures], None] | None = None
    """Told (epochs so far, figures on validation) of every epoch; what it raises ends the run."""

    def __post_init__(self) -> None:
        self.best = Best(self.recipe.best)
        self.unsaved = self.written = False

    def run(self, resume: Checkpoint | None = None) -> Best:
        """All phases, each from the best weights so far. A KeyboardInterrupt passes through, with the best kept."""
        if resume is not None:
            self.best, self.unsaved = resume.best, resume.best.figures is not None
            self.written = self.unsaved
        first_epoch = 0
        for number, phase in enumerate(self.recipe.phase, start=1):
            if resume is None or number >= resume.phase:
                within = resume.fit if resume is not None and number == resume.phase else None
                state = self.best.state if within is None else network_state(within)
                if state:
                    self.model.load_state_dict(state)
                self.since = time.perf_counter()
                try:
                    self._phase(number, phase, first_epoch, within)
                    if self.engine.broadcast(lambda: self.unsaved):
                        self._stand(number + 1, None, now=True)
                finally:
                    self._flush()
                    self._lap(number)
            first_epoch += phase.epochs
        return self.best

    def _stand(
        self, number: int, snapshot: Callable[[], Snapshot] | None, steps: int = 0, *, now: bool = False
    ) -> None:
        """Between two steps: write down where the run stands if it is time, and end it if somebody wants that."""
        due = self.checkpoints is not None and self.checkpoints.due(steps)
        # So that all end after the same step. A signal that comes from here on waits for the next time.
        wanted = self.engine.all_reduce_max(self.stop.wanted)
        if self.checkpoints is not None and (due or now or wanted is not None):
            self._lap(number if snapshot is not None else number - 1)
            fit = None if snapshot is None else snapshot()
            try:
                with self.checkpoints.paid():
                    self.checkpoints.write(Checkpoint(number, fit, self.best, self.rows, dict(self.seconds)))
                    self._flush()
            except JobError as error:  # the run may end well without it
                self.console.warn(f"{error}; the run goes on, and could only be resumed from an earlier place")
        self.stop.end(wanted)

    def _lap(self, number: int) -> None:
        """Bring the seconds up to date."""
        self.seconds.lap(f"phase {number}", self.since)
        self.seconds.total()
        self.since = time.perf_counter()

    def _phase(self, number: int, phase: Phase, first_epoch: int, resume: Snapshot | None) -> None:
        stages = training_stages(self.model, phase.train)
        freeze(self.model, stages)
        frozen = {n: b.clone() for n, b in self.model.named_buffers() if self.model.stage_of(n) not in stages}
        self.model.to(self.engine.device)
        self.console.say(f"phase {number}: {', '.join(phase.train)}")
        cut, train, valid = self.streams.of(number - 1)
        net = Above(self.model, cut)
        if phase.head == "auto":
            self._finish(number, phase, self._solve_head(phase, net, train, valid), stages)
            return
        micro = self._announce(number, phase, stages, net, train, valid)
        with synced_batchnorm(self.model) if self._synced(phase) else nullcontext():
            if phase.lr == "auto":
                phase = phase.model_copy(update={"lr": self._find_rate(number, phase, first_epoch, net, train, micro)})
            self._train(number, phase, first_epoch, resume, stages, net, train, valid, micro)
        for name, buffer in frozen.items():
            now = self.model.get_buffer(name)
            assert torch.equal(buffer.to(now.device), now), f"{name} is frozen and changed in phase {number}"

    def _synced(self, phase: Phase) -> bool:
        """Whether BatchNorm sees the samples of all processes."""
        return phase.norms == "synced" and self.engine.world_size > 1

    def _train(
        self, number: int, phase: Phase, first_epoch: int, resume: Snapshot | None, stages: tuple[str, ...], net: Above,
        train: Stream, valid: Stream, micro: int,
    ) -> None:  # fmt: skip
        """The epochs of a phase, each written down and shown."""
        with self.console.progress(f"phase {number}") as advance:

            def watch(step: Step) -> None:
                if self.recipe.log_every and step.step % self.recipe.log_every == 0:
                    loss, _ = step.means()
                    self.console.say(f"  epoch {step.epoch}  step {step.step} of {step.steps}  loss {loss:.4f}")
                if self.console.terminal:
                    loss, accuracy = step.means()
                    note = f"epoch {step.epoch}/{phase.epochs}  loss {loss:.3f}"
                    note += f"  accuracy {accuracy:.1%}" if accuracy is not None else ""
                    done = (step.epoch - 1) * train.batches.samples + step.samples
                    advance(done, phase.epochs * train.batches.samples, note)
                self._stand(number, step.snapshot, 1)

            def shrink(micro: int) -> None:
                self.divided(number, micro)
                self.console.warn(
                    f"phase {number}: out of memory; from here on {micro} images at once. The batch stays "
                    f"{phase.batch}, and micro_batch in recipe.toml says so"
                )

            epochs = fit(
                net, phase, train, valid, self.engine,
                classes=self.classes, seed=self.recipe.seed, first_epoch=first_epoch, micro=micro,
                better=self.best.beaten_by, resume=resume, shrink=shrink, watch=watch,
            )  # fmt: skip
            with self.stop.between_steps():
                for epoch in epochs:
                    self._finish(number, phase, epoch, stages)
                    self._stand(number, epoch.snapshot)
            self.stop.end(self.engine.all_reduce_max(self.stop.wanted))

    def _find_rate(self, number: int, phase: Phase, first_epoch: int, net: Above, train: Stream, micro: int) -> float:
        """The learning rate by a range test on a copy of the network."""
        with self.console.progress(f"phase {number}, range test", "steps") as advance:
            found = range_test(
                net, phase, train, self.engine,
                classes=self.classes, seed=self.recipe.seed, epoch=first_epoch, micro=micro, watch=advance,
            )  # fmt: skip
        test = self.engine.broadcast(lambda: found)
        self.tuned(number, test)
        self.console.say(
            f"  lr = auto: {test.chosen:g}, {test.why}, in {len(test.losses)} steps from {test.rates[0]:.0e} "
            f"to {test.rates[-1]:.0e}"
        )
        return test.chosen

    def _solve_head(self, phase: Phase, net: Above, train: Stream, valid: Stream) -> Epoch:
        """Put the best linear head on the stored vectors: an epoch of its own, with nothing to repeat."""
        started = time.perf_counter()
        linear = [m for part in net.model.modules_of("head") for m in part.modules() if isinstance(m, nn.Linear)]
        if len(linear) != 1:
            raise UserError(f'head = "auto": the head of {net.model.arch["name"]} is not one linear layer; train it')

        def solve() -> tuple[LinearProbe, Figures]:
            rows, views = train.batches.rows, train.batches.views
            batches = Batches(rows, train.batches.labels, batch=512, views=views, device=self.engine.device)
            vectors = torch.cat([train.prepare(b, view) for view in range(views) for b in batches.epoch(view)])
            labels = np.tile(batches.labels, views)
            weights = balanced(labels, self.classes) if phase.class_weights == "balanced" else None
            head = fit_linear_probe(
                vectors, labels, self.classes, weights=weights, views=views, seed=self.recipe.seed,
                groups=self.streams.train.groups,
            )  # fmt: skip
            learned = figures(Outputs(labels, (vectors @ head.weight.T + head.bias).cpu().numpy()))
            right = (head.probabilities.argmax(1) == labels).mean()
            self.console.say(
                f"  a linear head on {len(labels)} vectors of {vectors.shape[1]}: penalty {head.penalty:g} of "
                f"{len(head.losses)} tried, {right:.2%} right by cross-validation over the training images"
            )
            return replace(head, weight=head.weight.cpu(), bias=head.bias.cpu()), learned

        head, learned = self.engine.broadcast(solve)
        with torch.no_grad():
            linear[0].weight.copy_(head.weight)
            linear[0].bias.copy_(head.bias)
        result = validated(net, valid, self.engine)
        seconds = time.perf_counter() - started
        return Epoch(1, 0.0, learned.loss, learned.accuracy, result, seconds, net.model)

    def _finish(self, number: int, phase: Phase, epoch: Epoch, stages: tuple[str, ...]) -> None:
        """An epoch is over: write its row, keep the model if it is the best, say how it went."""
        v = epoch.valid
        self.record(
            Row(
                number, epoch.epoch, epoch.lr, epoch.train_loss, epoch.train_accuracy, v.loss, v.accuracy, epoch.seconds
            )
        )
        best = self.best.beaten_by(v)
        if best:
            self.best.keep(v, number, epoch.epoch, epoch.model, stages)
            first, self.unsaved = not self.written, True
            if first:
                self._flush()
        accuracy = "" if epoch.train_accuracy is None else f" accuracy {epoch.train_accuracy:6.2%}"
        self.console.say(
            f"  epoch {epoch.epoch:>{len(str(phase.epochs))}}/{phase.epochs}  "
            f"{'solved' if phase.head == 'auto' else f'lr {epoch.lr:.2e}'}"
            f"  train loss {epoch.train_loss:.4f}{accuracy}"
            f"  valid loss {v.loss:.4f} accuracy {v.accuracy:6.2%}{' *' if best else '  '}  {duration(epoch.seconds)}"
        )
        if self.trial is not None:
            self.trial(len(self.rows), v)

    def _flush(self) -> None:
        """Write the best model, unless the file holds it already."""
        if self.unsaved:
            self.save(self.best)
            self.unsaved, self.written = False, True

    def _announce(
        self, number: int, phase: Phase, stages: tuple[str, ...], net: Above, train: Stream, valid: Stream
    ) -> int:
        """Try one step on a copy; say what trains, at what cost. Returns the number of samples to run at once."""
        batch = next(iter(train.batches.epoch())).part(0, PROBED)
        x = train.prepare(batch, 0)
        world = self.engine.world_size
        share, together = -(-phase.batch // world), world if self._synced(phase) else 1
        cost = self.engine.broadcast(lambda: probe(net, stages, x))
        known = phase.micro_batch or self.micro.get(str(number), 0)
        if known:
            micro = min(-(-known // together), share)
        else:
            free = free_memory(self.engine.device)
            if self.engine.device.type == "cpu":
                free //= self.engine.local_world_size
            micro = cost.micro_batch(share, min(self.engine.all_gather(free)))
        self.divided(number, min(micro * together, phase.batch))
        trained = sum(p.numel() for p in self.model.parameters() if p.requires_grad)
        pieces = f", {share} for each process" if world > 1 else ""
        pieces += "" if micro >= share else f" in pieces of {micro}, which fit the memory"
        # Evaluation is a forward pass, about a third of a step's work.
        seconds = phase.epochs * cost.seconds * (train.batches.samples + valid.batches.samples / 3) / world
        shape = (min(phase.batch, train.batches.samples), *x.shape[1:])
        work = f"{counted(phase.epochs, 'epoch')} of {counted(len(train.batches), 'step')}"
        self.console.say(
            f"  {trained:,} parameters train, {work}; batch {shape} {str(x.dtype).removeprefix('torch.')}{pieces}; "
            f"about {duration(seconds)}"
        )
        return micro
