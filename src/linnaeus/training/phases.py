"""Run the phases of a recipe in order: freeze, fit, keep the best model."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial

import torch

from linnaeus.console import Advance, duration
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.sync_batchnorm import synced_batchnorm
from linnaeus.errors import JobError
from linnaeus.metrics.multilabel import Headline, brief
from linnaeus.recipe import Phase, Recipe
from linnaeus.runs.history import Row
from linnaeus.text import percent
from linnaeus.training.best import Best
from linnaeus.training.checkpoint import Checkpoint, Checkpoints
from linnaeus.training.loop import Epoch, Step, fit
from linnaeus.training.optim import freeze, training_stages
from linnaeus.training.phase import PhaseRun, TrainablePart
from linnaeus.training.recorder import Recorder
from linnaeus.training.snapshot import Snapshot, network_state
from linnaeus.training.solve import solve_head
from linnaeus.training.stop import StopSignals
from linnaeus.training.streams import Streams
from linnaeus.training.timings import StepTimer, Timings
from linnaeus.training.tuning.tuning import Tuning, is_synced

MENTIONED_FROM = 10.0  # seconds from which on the expected duration of a phase is announced


@dataclass
class Phases:
    """Runs the phases of `recipe`.

    The best model is written after the first epoch, with every checkpoint, and at the end of each phase. It is not
    written after every epoch, because an epoch of a head takes milliseconds and a model file takes longer. Except for
    the first one, a model is written after the checkpoint that contains it, so that a resumed run never finds a better
    model file than it knows of. A process that dies between the two leaves an older model file, so a resumed run first
    writes the model of its checkpoint.
    """

    recipe: Recipe
    streams: Streams
    classes: int
    engine: Engine
    recorder: Recorder = field(default_factory=Recorder)
    checkpoints: Checkpoints | None = None
    """None writes neither checkpoints nor a model file: in sweeps, and on ranks above 0."""
    stop: StopSignals = field(default_factory=StopSignals)
    timings: Timings = field(default_factory=Timings)
    observe: Callable[[int, Headline], None] | None = None
    """Called with (epochs so far, validation metrics) after every epoch; an exception ends the run."""

    def __post_init__(self) -> None:
        self.model, self.console = self.streams.frozen.model, self.streams.console
        self.best = Best(self.recipe.best)
        self.model_is_written = self.best_is_written = False

    def run(self, resume: Checkpoint | None = None) -> Best:
        """Run all phases, each from the best weights so far. After a KeyboardInterrupt, `best` holds the best model."""
        if resume is not None:
            self.best = resume.best
            self._write_model()
        first_epoch = 0
        for number, phase in enumerate(self.recipe.phase, start=1):
            if resume is None or number >= resume.phase:
                snapshot = resume.fit if resume is not None and number == resume.phase else None
                self._run_phase(number, phase, first_epoch, snapshot)
            first_epoch += phase.epochs
        return self.best

    def _run_phase(self, number: int, phase: Phase, first_epoch: int, snapshot: Snapshot | None) -> None:
        """One phase from the best weights so far, or from `snapshot`; then a checkpoint, if there is a better model."""
        state = self.best.state if snapshot is None else network_state(snapshot)
        if state:  # empty before the first epoch of the first phase
            self.model.load_state_dict(state)
        self.phase_started = time.perf_counter()
        try:
            self._train_phase(number, phase, first_epoch, snapshot)
            if self._has_unwritten_best():
                self._update_timings(number)
                self._write_checkpoint(number + 1)
        finally:
            self._write_model()
            self._update_timings(number)

    def _train_phase(self, number: int, phase: Phase, first_epoch: int, snapshot: Snapshot | None) -> None:
        """Freeze what does not train, and train or solve the rest."""
        stages = training_stages(self.model, phase.train)
        freeze(self.model, stages)
        # Checked after the phase: a frozen BatchNorm that drifts is the classic silent error of fine-tuning.
        frozen = {n: b.clone() for n, b in self.model.named_buffers() if self.model.stage_of(n) not in stages}
        self.model.to(self.engine.device)
        self.console.say(f"phase {number}: {', '.join(phase.train)}")
        cut, train, valid = self.streams.of(number - 1)
        net = TrainablePart(self.model, cut)
        run = PhaseRun(phase, net, train, valid, self.classes, self.recipe.seed, number, first_epoch)
        if phase.head == "auto":
            run.seen = self.streams.body_has_seen(number - 1)
            epoch = solve_head(run, self.streams.train, self.recorder, self.engine, self.console)
            self._after_epoch(run, epoch)
            return
        engine = Tuning(self.engine, self.recorder, self.console, self.recipe).tune(run, snapshot is not None)
        with synced_batchnorm(self.model) if is_synced(phase, engine) else nullcontext():
            self._fit(run, engine, snapshot)
        for name, buffer in frozen.items():
            now = self.model.get_buffer(name)
            assert torch.equal(buffer.to(now.device), now), f"{name} is frozen but changed in phase {number}"

    def _fit(self, run: PhaseRun, engine: Engine, snapshot: Snapshot | None) -> None:
        """Train the epochs of a phase, and record each."""
        with self.console.progress(f"phase {run.number}") as advance:
            epochs = fit(
                run,
                engine,
                resume=snapshot,
                better=self.best.beaten_by,
                on_step=partial(self._after_step, run, advance, StepTimer()),
                on_out_of_memory=partial(self._after_out_of_memory, run),
            )
            # From here on a signal waits for the end of a step, where a checkpoint can be written.
            with self.stop.deferring():
                for epoch in epochs:
                    self._after_epoch(run, epoch)
                    self._between_steps(run, epoch.snapshot)
            self.stop.obey(self.engine.all_reduce_max(self.stop.pending))

    def _after_step(self, run: PhaseRun, advance: Advance, timer: StepTimer, step: Step) -> None:
        """Show the progress; write a checkpoint or stop if it is time."""
        seconds = timer.seconds_per_step(step.epoch)
        if seconds is not None:
            # Evaluation is a forward pass, about a third of the work of a training step.
            validation = run.valid.batches.samples / (3 * run.train.batches.samples)
            expected = run.phase.epochs * step.steps * seconds * (1 + validation)
            if expected >= MENTIONED_FROM:
                self.console.say(f"  about {duration(expected)} for this phase")
        if self.recipe.log_every and step.step % self.recipe.log_every == 0:
            loss, _ = step.means()
            self.console.say(f"  epoch {step.epoch}  step {step.step} of {step.steps}  loss {loss:.4f}")
        note = f"epoch {step.epoch}/{run.phase.epochs}"
        if self.console.terminal:  # elsewhere few lines show it, and on a GPU the means cost time
            loss, accuracy = step.means()
            note += f"  loss {loss:.3f}" + (f"  accuracy {percent(accuracy)}" if accuracy is not None else "")
        samples = run.train.batches.samples
        advance((step.epoch - 1) * samples + step.samples, run.phase.epochs * samples, note)
        self._between_steps(run, step.snapshot, 1)

    def _after_out_of_memory(self, run: PhaseRun, micro_batch: int) -> None:
        """Record the smaller micro-batch."""
        self.recorder.record(self.recorder.tuned.micro, run.number, micro_batch)
        self.console.warn(
            f"phase {run.number}: out of memory; from now on {micro_batch} images at once. The effective batch stays "
            f"{run.phase.batch}; recipe.toml records the new micro_batch"
        )

    def _after_epoch(self, run: PhaseRun, epoch: Epoch) -> None:
        """Record the history row, keep the model if it is the best, print the result."""
        valid, phase = epoch.valid, run.phase
        # Recorded before the model is written, so that a model never lacks its history row.
        self.recorder.add_epoch(
            Row(
                run.number,
                epoch.epoch,
                epoch.lr,
                epoch.train_loss,
                epoch.train_accuracy,
                valid.loss,
                valid.accuracy,
                epoch.seconds,
                getattr(valid, "map", None),
            )
        )
        is_best = self.best.beaten_by(valid)
        if is_best:
            self.best.keep(valid, run.number, epoch.epoch, epoch.model, run.stages)
            self.best_is_written = False
            # The first model is written at once; later ones at checkpoints.
            if not self.model_is_written:
                self._write_model()
        accuracy = "" if epoch.train_accuracy is None else f" accuracy {percent(epoch.train_accuracy, 2):>8}"
        count = f"epoch {epoch.epoch:>{len(str(phase.epochs))}}/{phase.epochs}  lr {epoch.lr:.2e}"
        self.console.say(
            f"  {'solved' if phase.head == 'auto' else count}  train loss {epoch.train_loss:.4f}{accuracy}"
            f"  valid loss {valid.loss:.4f} {brief(valid)}{' *' if is_best else '  '}  "
            f"{duration(epoch.seconds)}"
        )
        if self.observe is not None:
            self.observe(len(self.recorder.rows), valid)

    def _between_steps(self, run: PhaseRun, snapshot: Callable[[], Snapshot] | None, steps: int = 0) -> None:
        """Write a checkpoint if one is due, and stop if a signal asks for it; `steps`: steps since the last call."""
        due = self.checkpoints is not None and self.checkpoints.due(steps)
        # All ranks stop after the same step. A signal that arrives after this line waits for the next call.
        signal = self.engine.all_reduce_max(self.stop.pending)
        if due or signal is not None:
            self._update_timings(run.number)
            self._write_checkpoint(run.number, snapshot)
        self.stop.obey(signal)

    def _write_checkpoint(self, number: int, snapshot: Callable[[], Snapshot] | None = None) -> None:
        """Write a checkpoint to resume from in phase `number`: at `snapshot`, or at the start of the phase."""
        if self.checkpoints is None:
            return
        fit_state = None if snapshot is None else snapshot()
        self.recorder.require_folder()
        try:
            with self.checkpoints.timed():
                rows, timings = self.recorder.rows, dict(self.timings)
                self.checkpoints.write(Checkpoint(number, fit_state, self.best, rows, timings))
                self._write_model()
        except JobError as error:  # the run may still finish without it
            self.console.warn(f"{error}; the run continues, but can only be resumed from the previous checkpoint")

    def _has_unwritten_best(self) -> bool:
        return self.best.figures is not None and not self.best_is_written

    def _write_model(self) -> None:
        """Write the best model, unless the file holds it already."""
        if self._has_unwritten_best():
            if self.checkpoints is not None:
                self.recorder.save_model(self.best)
            self.best_is_written = self.model_is_written = True

    def _update_timings(self, number: int) -> None:
        """Add the time since the last call to phase `number`."""
        self.timings.add_since(f"phase {number}", self.phase_started)
        self.timings.update_total()
        self.phase_started = time.perf_counter()
