"""What a phase measures before its first epoch: the micro-batch, the precision, and the learning rate."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from linnaeus.console import Console, counted
from linnaeus.device import free_memory
from linnaeus.distributed.engine import Engine
from linnaeus.distributed.precision import BF16, FLOAT32
from linnaeus.recipe import Phase, Recipe
from linnaeus.training.optim import differs_by_process
from linnaeus.training.phase import PhaseRun
from linnaeus.training.recorder import Recorder
from linnaeus.training.tuning.compilation import choose_compilation
from linnaeus.training.tuning.memory import SampleCost, measure_cost
from linnaeus.training.tuning.precision import TOO_SHORT, Trial, choose_precision
from linnaeus.training.tuning.rangetest import range_test
from linnaeus.training.unseen_weights import zero_unseen_gradients

PROBED = 8  # samples of the trial step: enough to outweigh fixed costs, few enough to take no time


@dataclass(frozen=True)
class Tuning:
    """Measures what the recipe leaves open, on copies of the network, and records it.

    Rank 0 measures and the others follow: all ranks must divide their batches and round their numbers alike. A resumed
    phase uses the recorded values, on which its result depends.
    """

    engine: Engine
    recorder: Recorder
    console: Console
    recipe: Recipe  # `precision` and `compile` may be `auto`: chosen for each phase

    def tune(self, run: PhaseRun, resumed: bool) -> Engine:
        """Complete `run`, and return the engine that trains it. `resumed`: the phase has trained some steps already."""
        cost = self._choose_micro_batch(run)
        engine = self.engine
        if self.recipe.precision == "auto" and engine.device.type == "cpu":
            engine = engine.with_precision(self._choose_precision(run, cost, resumed))
        if engine.device.type == "cpu" and engine.precision == BF16:
            zero_unseen_gradients(run.net, run.train.prepare(next(iter(run.train.batches.epoch())).part(0, 1), 0))
        run.compiled = self._choose_compilation(run, cost, resumed)
        if run.phase.lr == "auto":
            run.phase = run.phase.model_copy(update={"lr": self._find_rate(run, engine)})
        return engine

    def _choose_micro_batch(self, run: PhaseRun) -> SampleCost:
        """Measure a step on a copy, and set the micro-batch of this process."""
        phase, world_size = run.phase, self.engine.world_size
        batch = next(iter(run.train.batches.epoch())).part(0, PROBED)
        x = run.train.prepare(batch, 0)
        whole_batch = min(phase.batch, run.train.batches.samples)
        local_batch = -(-whole_batch // world_size)
        # With synchronized BatchNorm a micro-batch is what all processes run at once, otherwise what each of them runs.
        shared_by = world_size if is_synced(phase, self.engine) else 1
        cost = self.engine.broadcast(lambda: measure_cost(run.net, run.stages, x))
        # A resumed run keeps its micro-batch, on which BatchNorm depends, even if more memory is free now.
        known = phase.micro_batch or self.recorder.tuned.micro.get(str(run.number), 0)
        run.whole_micro_batch = known or cost.micro_batch(whole_batch, free_memory(self.engine.device))
        if known:
            micro_batch = min(-(-known // shared_by), local_batch)
        else:
            free = free_memory(self.engine.device)
            if self.engine.device.type == "cpu":
                free //= self.engine.local_world_size  # the processes of a machine share its memory
            micro_batch = cost.micro_batch(local_batch, min(self.engine.all_gather(free)))
        run.micro_batch = micro_batch
        self.recorder.record(self.recorder.tuned.micro, run.number, min(micro_batch * shared_by, whole_batch))
        self._announce(run, x, "" if micro_batch >= local_batch else f" in micro-batches of {micro_batch}")
        return cost

    def _choose_precision(self, run: PhaseRun, cost: SampleCost, resumed: bool) -> str:
        """The precision of the phase, by a trial if the phase is long enough to pay for one."""
        known = self.recorder.tuned.precisions.get(str(run.number))
        if known is None and resumed:
            known = FLOAT32  # begun by a version that knew no other

        def choose() -> Trial:
            seconds = cost.seconds * run.train.batches.samples * run.phase.epochs / self.engine.world_size
            return choose_precision(run.undivided(), self.engine.alone(), seconds)

        if known is None:
            trial = self.engine.broadcast(choose)
            self.recorder.record(self.recorder.tuned.precisions, run.number, trial.chosen)
        else:
            trial = Trial(known, "as before the run was resumed")
        # The report has the precision in any case; here it matters only where it was a choice.
        say = self.console.detail if trial == TOO_SHORT else self.console.say
        say(f"  precision {trial.chosen}: {trial.reason}")
        return trial.chosen

    def _choose_compilation(self, run: PhaseRun, cost: SampleCost, resumed: bool) -> bool:
        """Whether the phase is compiled: decided by a trial, if it is long enough for one."""
        if self.recipe.compile != "auto":
            return self.recipe.compile
        known = self.recorder.tuned.compiled.get(str(run.number))
        if known is not None or resumed or self.engine.device.type != "cuda":
            return bool(known)
        # The measured step was the first one, with few samples: later ones are faster.
        longest = cost.seconds * run.train.batches.samples * run.phase.epochs / self.engine.world_size
        trial = self.engine.broadcast(lambda: choose_compilation(run.undivided(), self.engine.alone(), longest))
        self.recorder.record(self.recorder.tuned.compiled, run.number, trial.chosen)
        if trial.reason:
            self.console.say(f"  {'compiled' if trial.chosen else 'not compiled'}: {trial.reason}")
        return trial.chosen

    def _find_rate(self, run: PhaseRun, engine: Engine) -> float:
        """The learning rate by a range test on a copy of the network."""
        with self.console.progress(f"phase {run.number}, range test", "steps") as advance:
            # By rank 0 alone, on whole batches: the rate must not depend on the number of processes.
            test = engine.broadcast(lambda: range_test(run.undivided(), engine.alone(), advance))
        self.recorder.record_rate(run.number, test)
        self.console.say(
            f"  lr = auto: {test.chosen:g}, {test.reason}, in {len(test.losses)} steps from {test.rates[0]:.0e} to "
            f"{test.rates[-1]:.0e}"
        )
        return test.chosen

    def _announce(self, run: PhaseRun, x: torch.Tensor, division: str) -> None:
        """Print the size of the phase."""
        phase, world_size, batches = run.phase, self.engine.world_size, run.train.batches
        trained = sum(p.numel() for p in run.net.parameters() if p.requires_grad)
        work = f"{counted(phase.epochs, 'epoch')} of {counted(len(batches), 'step')}"
        shape, dtype = (min(phase.batch, batches.samples), *x.shape[1:]), str(x.dtype).removeprefix("torch.")
        per_process = f", {-(-phase.batch // world_size)} for each process" if world_size > 1 else ""
        if phase.batch > batches.samples:
            division += f"; batch = {phase.batch:,} exceeds the {batches.samples:,} images, so each step takes all"
        self.console.say(f"  {trained:,} trained parameters, {work}; batch {shape} {dtype}{per_process}{division}")
        if world_size > 1 and differs_by_process(run.net.model, run.stages, phase.norms):
            self.console.say(
                "  BatchNorm: each process normalizes by its own images, so that the result differs from that of one "
                'process; norms = "synced" uses the images of all'
            )


def is_synced(phase: Phase, engine: Engine) -> bool:
    """Whether BatchNorm uses the samples of all processes."""
    return phase.norms == "synced" and engine.world_size > 1
