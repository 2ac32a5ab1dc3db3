"""lr = "auto": the learning-rate range test.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186, section 3.3: train for a
few steps while the rate grows exponentially, and look where the loss falls and where it breaks away.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.distributed.engine import Engine, seed_step
from linnaeus.errors import JobError
from linnaeus.recipe import Phase
from linnaeus.training.loop import Above
from linnaeus.training.optim import build_optimizer, train_mode, training_stages
from linnaeus.training.step import Criterion, Stream, optimizer_step

LOWEST = {"sgd": 1e-4, "adam": 1e-6, "adamw": 1e-6}
DECADES = 5
STEPS = 50
SMOOTHING = 2.0
"""Standard deviation, in steps, of the Gaussian that the loss is smoothed with: centered, so that nothing is late."""
BROKEN_AWAY = 2.0
"""The test ends where the loss is so many times the lowest yet, plus one nat."""
BELOW = 10.0
"""At the rate of the lowest smoothed loss it is about to rise; so many times less is a rate to train with."""
FELL = 0.1
"""A loss that falls by less than this share of its start falls by chance: it was low before."""


@dataclass(frozen=True)
class RangeTest:
    """The rates that were tried, the loss at each step, and the rate that was chosen."""

    rates: np.ndarray
    """(steps,) ascending, of the last stage that trains."""
    losses: np.ndarray
    """(steps,) mean training loss of each batch, in nats, before the step with that rate."""
    chosen: float
    why: str
    """How it was chosen, in words."""

    @property
    def smoothed(self) -> np.ndarray:
        return smooth(self.losses)


def range_test(
    net: Above,
    phase: Phase,
    train: Stream,
    engine: Engine,
    *,
    classes: int,
    seed: int,
    epoch: int,
    micro: int | None,
    watch: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> RangeTest:
    """Train a copy of `net` for up to 50 steps, the rate growing by five decades; `net` itself stays as it is.

    `epoch` counts the epochs of earlier phases. Raises JobError where the loss is not finite from the start.
    """
    twin = copy.deepcopy(net)
    rates = LOWEST[phase.optimizer] * np.logspace(0, DECADES, STEPS)
    optimizer = build_optimizer(twin.model, phase.model_copy(update={"lr": 1.0}))
    wrapped, optimizer = engine.setup(twin, optimizer)
    base = [group["lr"] for group in optimizer.param_groups]  # lr_decay: lower for deeper stages
    criterion = Criterion(phase, train.batches.labels, classes, engine.device)
    train_mode(twin.model, training_stages(twin.model, phase.train), phase.norms)
    losses: list[float] = []
    while len(losses) < STEPS:
        for batch in train.batches.epoch(epoch + len(losses) // len(train.batches)):
            rate = rates[len(losses)]
            for group, share in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = rate * share
            seed_step(seed, epoch, len(losses), engine.rank)
            loss, _ = optimizer_step(wrapped, optimizer, batch, train, criterion, engine, phase, epoch, micro)
            losses.append(float(loss) / batch.portion.total)
            watch(len(losses), STEPS, f"lr {rate:.1e}  loss {losses[-1]:.3f}")
            if len(losses) == STEPS or not losses[-1] < BROKEN_AWAY * min(losses) + 1:  # a NaN ends it too
                return choose(rates, losses)
    raise AssertionError("the loop ends by returning")


def choose(rates: np.ndarray, losses: list[float]) -> RangeTest:
    """The rate to train with: a tenth of that at which the smoothed loss is lowest, or less.

    A loss that goes on falling to the end of the range, as on a few images that are learned by heart, has no lowest
    point, so the rate at which half of the fall is done is a bound too. Where the loss hardly falls, since what is
    trained is good already, it is a tenth of the last rate that does no harm.
    """
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite == 0:
        raise JobError('lr = "auto": the loss is not finite before the first step; are the images and weights sound?')
    found, tried = np.array(losses[:finite]), rates[:finite]
    smoothed = smooth(found)
    lowest = int(smoothed.argmin())
    fall = smoothed[0] - smoothed[lowest]
    if fall < FELL * smoothed[0]:
        harmless = np.flatnonzero(smoothed <= smoothed[lowest] + FELL * smoothed[0])[-1]
        chosen, why = tried[harmless] / BELOW, "a tenth of the last rate at which the loss did not rise"
    else:
        half = tried[np.flatnonzero(smoothed <= smoothed[0] - fall / 2)[0]]
        chosen, why = tried[lowest] / BELOW, "a tenth of where the loss was lowest"
        if half < chosen:
            chosen, why = half, "where half of the fall of the loss was done"
    return RangeTest(tried, found, float(f"{chosen:.2g}"), why)


def smooth(losses: np.ndarray) -> np.ndarray:
    """(steps,) -> (steps,): a Gaussian average over neighboring steps, with the ends' weights made to sum to one.

    A loss that has broken away counts as twice the first, so that it does not pull up what came before it.
    """
    capped = torch.from_numpy(np.minimum(losses, 2 * losses[0] + 1))
    distance = torch.arange(len(losses))[:, None] - torch.arange(len(losses))
    weights = torch.exp(-0.5 * (distance / SMOOTHING) ** 2).double()
    return ((weights @ capped.double()) / weights.sum(1)).numpy()
