"""precision = "auto" on a CPU: a trial of training steps in float32 and in bfloat16.

Some processors multiply bfloat16 several times as fast as float32 (AVX-512 BF16, AMX), others more slowly, and
convolutions may be faster in one memory layout or the other. Which, only a measurement on the machine can tell.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace

import torch

from linnaeus.data.batches import Batch
from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.distributed.precision import BF16, CHANNELS_LAST, FLOAT32
from linnaeus.environment import cache_dir
from linnaeus.models.record import ChoiceRecord, choice_key
from linnaeus.training.optim import train_mode
from linnaeus.training.phase import PhaseRun
from linnaeus.training.step import Optimization

WORTH_TRYING = 120.0  # seconds of a phase in float32 from which on a trial is made; with a large network it takes ten
STEPS = 2
"""Timed steps of each candidate. The faster one counts: in the first one, kernels are prepared."""
FASTER = 0.9
"""A candidate replaces float32 if it takes less than this fraction of its time: rounding should not change for less."""
NUMBERS = 8 * 3 * 224 * 224
"""Size of the input of a trial step: large enough to fill the caches, small enough to take seconds."""
LEAST = 8  # samples of a trial step, at least
LOSS_TOLERANCE = 0.05
"""Largest difference of the loss from that in float32, as a fraction of it: more would be a network that overflows."""
RATE = 1e-6
"""Learning rate of the trial, whose weights are thrown away: steps that diverge would be timed with infinite values."""


@dataclass(frozen=True)
class Trial:
    """The precision of a phase, and why."""

    chosen: str
    reason: str


TOO_SHORT = Trial(FLOAT32, "the phase is too short to try others")


def choose_precision(run: PhaseRun, engine: Engine, seconds: float) -> Trial:
    """The fastest precision for `run` on a CPU: float32, float32 with channels last, or bfloat16 with channels last.

    `seconds`: the expected duration of the phase in float32; short phases stay there. The choice is remembered in the
    cache folder by machine, network, stages, optimizer and size of the input.
    """
    if seconds < WORTH_TRYING:
        return TOO_SHORT
    batch = next(iter(run.train.batches.epoch()))
    x = run.train.prepare(batch.part(0, 1), 0)
    # Large enough to be typical, small enough to fit into any memory.
    batch = batch.part(0, min(len(batch), max(LEAST, NUMBERS // max(1, x[0].numel()))))
    memory, key = ChoiceRecord(cache_dir() / "precisions.json"), choice_key(_computation(run, x, batch))
    known = memory.read(key)
    if known in (FLOAT32, CHANNELS_LAST, BF16):
        return Trial(known, "the fastest in an earlier trial on this machine")
    trial = _trial(run, engine, batch)
    memory.write(key, trial.chosen)
    return trial


def _trial(run: PhaseRun, engine: Engine, batch: Batch) -> Trial:
    """Time the candidates in turn."""
    seconds, expected = time_steps(run, engine.with_precision(FLOAT32), batch)
    least, chosen = FASTER * seconds, FLOAT32
    candidates = [CHANNELS_LAST, *([BF16] if _has_bf16() else [])]
    for name in candidates:
        try:
            taken, loss = time_steps(run, engine.with_precision(name), batch)
        except RuntimeError:  # a user's network may fix the type of a tensor
            continue
        if taken < least and abs(loss - expected) <= LOSS_TOLERANCE * abs(expected):
            least, chosen = taken, name
    if chosen == FLOAT32:
        return Trial(chosen, f"no faster alternative in a trial of {len(batch)} samples")
    return Trial(chosen, f"{seconds / least:.1f} times as fast as {FLOAT32} in a trial of {len(batch)} samples")


def time_steps(run: PhaseRun, engine: Engine, batch: Batch, steps: int = STEPS) -> tuple[float, float]:
    """(seconds of the fastest step, mean loss of the first one) of a copy of the network."""
    phase = run.phase.model_copy(update={"lr": RATE})
    trial = replace(run, net=copy.deepcopy(run.net), phase=phase)
    optimization = Optimization(trial, engine)
    train_mode(trial.net.model, trial.stages, phase.norms)
    seconds, losses = math.inf, []
    # The generators continue as if there had been no trial.
    with torch.random.fork_rng(devices=[]):
        for step in range(steps):
            seed_step(run.seed, run.first_epoch, step)
            started = time.perf_counter()
            sums = optimization.step(batch, run.first_epoch, run.micro_batch)
            losses.append(float(sums.loss) / len(batch))
            seconds = min(seconds, time.perf_counter() - started)
    return seconds, losses[0]


def _has_bf16() -> bool:
    """Whether convolutions in bfloat16 are more than an emulation on this processor."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _computation(run: PhaseRun, x: torch.Tensor, batch: Batch) -> list[object]:
    """What the fastest precision depends on, besides the machine."""
    phase, model = run.phase, run.net.model
    return [model.arch, run.net.start, list(run.stages), list(x.shape[1:]), len(batch), phase.optimizer, phase.norms]
