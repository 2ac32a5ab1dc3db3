"""lr = "auto": the learning-rate range test.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186, section 3.3: train for a
few steps while the learning rate grows exponentially, and see where the loss falls and where it diverges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.errors import JobError
from linnaeus.training.optim import train_mode
from linnaeus.training.phase import PhaseRun
from linnaeus.training.step import Optimization

LOWEST_RATE = {"sgd": 1e-4, "adam": 1e-6, "adamw": 1e-6}
DECADES = 5
STEPS = 50
SMOOTHING = 2.0
"""Standard deviation, in steps, of the Gaussian that smooths the loss; centered, so that it adds no delay."""
DIVERGED = 2.0
"""The test ends when the loss exceeds the lowest loss so far by this factor, plus one nat."""
SAFETY = 10.0
"""At the rate with the lowest smoothed loss the loss is about to rise; training uses a rate lower by this factor."""
CHANCE = 0.1
"""A fall of the loss by less than this share of its start is taken for noise: the loss was low already."""


@dataclass(frozen=True)
class RangeTest:
    """The learning rates that were tried, the loss at each step, and the rate that was chosen."""

    rates: np.ndarray
    """(steps,) learning rates of the last stage that trains, ascending."""
    losses: np.ndarray
    """(steps,) mean training loss of each batch, in nats, before the step with that rate."""
    chosen: float
    reason: str
    """How the rate was chosen, for messages."""

    @property
    def smoothed(self) -> np.ndarray:
        return smooth(self.losses)


def range_test(run: PhaseRun, engine: Engine, progress: Callable[[int, int, str], None] | None = None) -> RangeTest:
    """Train a copy of `run.net` for up to 50 steps while the rate grows by five decades; `run.net` stays unchanged.

    Raises JobError if the loss is not finite from the start.
    """
    trial = replace(run, net=copy.deepcopy(run.net), phase=run.phase.model_copy(update={"lr": 1.0}))
    optimization = Optimization(trial, engine)
    groups = optimization.optimizer.param_groups
    factors = [group["lr"] for group in groups]  # below 1 for deeper stages if the recipe sets lr_decay
    rates = LOWEST_RATE[run.phase.optimizer] * np.logspace(0, DECADES, STEPS)
    train_mode(trial.net.model, trial.stages, run.phase.norms)
    batches = run.train.batches
    losses: list[float] = []
    # Small data sets have fewer than 50 batches, so the test may run over several epochs.
    while len(losses) < STEPS:
        for batch in batches.epoch(run.first_epoch + len(losses) // len(batches)):
            rate = rates[len(losses)]
            for group, factor in zip(groups, factors, strict=True):
                group["lr"] = rate * factor
            seed_step(run.seed, run.first_epoch, len(losses), engine.rank)
            sums = optimization.step(batch, run.first_epoch, run.micro_batch)
            losses.append(float(sums.loss) / batch.portion.total)
            if progress is not None:
                progress(len(losses), STEPS, f"lr {rate:.1e}  loss {losses[-1]:.3f}")
            # Written so that a NaN ends the test too.
            if len(losses) == STEPS or not losses[-1] < DIVERGED * min(losses) + 1:
                return choose(rates, losses)
    raise AssertionError("the loop ends by returning")


def choose(rates: np.ndarray, losses: list[float]) -> RangeTest:
    """Choose the rate to train with: a tenth of the rate with the lowest smoothed loss, or less.

    On a few images, which the network can memorize, the loss may fall until the end of the range and has no minimum, so
    the rate at which half of the fall is done is a second bound. If the loss hardly falls because the network is good
    already, the rate is a tenth of the largest one that does no harm.
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite == 0:
        raise JobError(
            'lr = "auto": the loss is not finite before the first step; check the images (`linnaeus check`) and the '
            "weights"
        )
    measured, tried = np.array(losses[:finite]), rates[:finite]
    smoothed = smooth(measured)
    lowest = int(smoothed.argmin())
    fall = smoothed[0] - smoothed[lowest]
    if fall < CHANCE * smoothed[0]:
        harmless = np.flatnonzero(smoothed <= smoothed[lowest] + CHANCE * smoothed[0])[-1]
        chosen, reason = tried[harmless] / SAFETY, "a tenth of the largest rate at which the loss did not rise"
    else:
        half = tried[np.flatnonzero(smoothed <= smoothed[0] - fall / 2)[0]]
        chosen, reason = tried[lowest] / SAFETY, "a tenth of the rate with the lowest loss"
        if half < chosen:
            chosen, reason = half, "the rate at which half of the fall of the loss was reached"
    return RangeTest(tried, measured, float(f"{chosen:.2g}"), reason)


def smooth(losses: np.ndarray) -> np.ndarray:
    """(steps,) -> (steps,): Gaussian average over neighboring steps, normalized at the ends.

    Losses are capped at twice the first one, so that divergence does not raise the average of the steps before it.
    """
    capped = torch.from_numpy(np.minimum(losses, 2 * losses[0] + 1))
    distance = torch.arange(len(losses))[:, None] - torch.arange(len(losses))
    weights = torch.exp(-0.5 * (distance / SMOOTHING) ** 2).double()
    return ((weights @ capped.double()) / weights.sum(1)).numpy()
