"""lr = "auto": the learning-rate range test.

L. N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186, section 3.3: train for a
few steps while the learning rate grows exponentially, and see where the loss falls and where it diverges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

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
DIVERGED = 2.0  # the test ends when the loss exceeds the lowest loss so far by this factor, plus one nat
SAFETY = 10.0  # at the last rate that does no harm the loss is about to rise; training uses a rate lower by this factor
FELL = 0.1  # a fall of the loss by about this share of its start may be noise: the loss was low already
TINY = 1e-12


@dataclass(frozen=True)
class RangeTest:
    """The learning rates that were tried, the loss at each step, and the rate that was chosen."""

    rates: np.ndarray  # (steps,) learning rates of the last stage that trains, ascending
    losses: np.ndarray  # (steps,) mean training loss of each batch, in nats, before the step with that rate
    exact: float  # the rate by the rule; a continuous function of the losses
    reason: str  # how the rate was chosen, for messages

    @property
    def chosen(self) -> float:
        """The rate that is used: two digits."""
        return float(f"{self.exact:.2g}")

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
    # Small datasets have fewer than 50 batches, so the test may run over several epochs.
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
    """Choose the rate to train with: a tenth of the largest rate that does no harm, or less.

    A rate does no harm up to the point after which the smoothed loss stays above its minimum. On a few images, which
    the network can memorize, the loss may fall until the end of the range, so the rate at which half of the fall is
    done is a second bound, the more so the more the loss fell.

    The rate is a continuous function of the losses, because their last digits depend on the processor: thresholds are
    ramps, and steps are counted by how far they are below one.
    """
    # From the first infinite loss on, everything is meaningless.
    finite = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    if finite == 0:
        raise JobError(
            'lr = "auto": the loss is not finite before the first step; check the images (`linnaeus check`) and the '
            "weights"
        )
    measured, tried = np.array(losses[:finite]), rates[:finite]
    smoothed = smooth(measured)
    share = 1 - smoothed.min() / smoothed[0]
    # In decades above the lowest rate tried.
    safe = _last_harmless(smoothed, share) * _decades(tried) - math.log10(SAFETY)
    # The bound is phased in with the fall of the loss, because a slight fall has no middle.
    bound = min(0.0, _half_fallen(smoothed) * _decades(tried) - safe) * ramp(share, FELL / 2, 5 / 2 * FELL)
    reason = "a tenth of the largest rate at which the loss did not rise"
    if bound < 0:
        reason = "the rate at which the loss had fallen by half of its total decrease"
    return RangeTest(tried, measured, float(tried[0] * 10 ** (safe + bound)), reason)


def _last_harmless(smoothed: np.ndarray, share: float) -> float:
    """The last step, as a real number, whose loss or a later one is near the minimum.

    `share`: the part of its start by which the loss falls. Near is half a tenth of the fall; but a loss that hardly
    falls, because the network is good already, falls by no more than noise, so that near is a tenth of the loss.
    """
    lowest, start = smoothed.min(), smoothed[0]
    near = FELL * (start * (1 - ramp(share, 0.0, 2 * FELL)) + (start - lowest) / 2)
    lowest_from_here = np.minimum.accumulate(smoothed[::-1])[::-1]
    return float(ramp(lowest + near - lowest_from_here, 0.0, near).sum()) - 1


def _half_fallen(smoothed: np.ndarray) -> float:
    """The step, as a real number, until which half of the fall of the loss is done: the middle of 40 to 60 %."""
    fall = max(smoothed[0] - smoothed.min(), TINY)
    done = (smoothed[0] - np.minimum.accumulate(smoothed)) / fall
    return float(ramp(0.6 - done, 0.0, 0.2).sum())


def _decades(rates: np.ndarray) -> float:
    """Decades between one rate and the next."""
    return math.log10(rates[1] / rates[0]) if len(rates) > 1 else 0.0


def ramp(values: Any, low: float, high: float) -> Any:
    """0 up to `low`, 1 from `high` on, linear between."""
    return np.clip((values - low) / max(high - low, TINY), 0.0, 1.0)


def smooth(losses: np.ndarray) -> np.ndarray:
    """(steps,) -> (steps,): Gaussian average over neighboring steps, normalized at the ends.

    Losses are capped at twice the first one, so that divergence does not raise the average of the steps before it.
    """
    capped = np.minimum(losses, 2 * losses[0] + 1)
    distance = np.arange(len(losses))[:, None] - np.arange(len(losses))
    weights = np.exp(-0.5 * (distance / SMOOTHING) ** 2)
    return (weights @ capped) / weights.sum(1)
