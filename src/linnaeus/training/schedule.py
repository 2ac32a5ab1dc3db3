"""Learning-rate schedules. All but the plateau are pure functions of the step, so resuming needs no replay."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from linnaeus.recipe import Constant, Cosine, OneCycle, Phase, Plateau, Step

PLATEAU_STATE = ("num_bad_epochs", "cooldown_counter", "last_epoch")


def factor(spec: Constant | Step | Cosine | OneCycle, step: int, per_epoch: int, epochs: int) -> float:
    """Factor on the learning rate at `step` (from 0) of a phase of `epochs` * `per_epoch` steps."""
    if isinstance(spec, Constant):
        return 1.0
    if isinstance(spec, Step):
        return spec.factor ** (step // per_epoch // spec.every)
    total = epochs * per_epoch
    if isinstance(spec, Cosine):
        warmup = spec.warmup * per_epoch
        if step < warmup:
            return (step + 1) / (warmup + 1)  # not 0: the first step would be wasted
        done = (step - warmup) / max(1, total - warmup)
        return spec.minimum + (1 - spec.minimum) * (1 + math.cos(math.pi * min(1.0, done))) / 2
    # One cycle: half a cosine up to the peak, half a cosine down; the last step has the lowest rate.
    peak = max(1.0, spec.pct_start * total - 1)
    low, high, done = (1 / spec.div, 1.0, step / peak)
    if step > peak:
        low, high, done = (1.0, 1 / spec.div_final, (step - peak) / max(1.0, total - 1 - peak))
    return low + (high - low) * (1 - math.cos(math.pi * min(1.0, done))) / 2


class Schedule:
    """Sets the learning rate of every group of an optimizer, step by step and epoch by epoch."""

    def __init__(self, optimizer: torch.optim.Optimizer, phase: Phase, per_epoch: int):
        self.optimizer, self.spec, self.per_epoch, self.epochs = optimizer, phase.schedule, per_epoch, phase.epochs
        self.base = [group["lr"] for group in optimizer.param_groups]
        self.plateau = None
        # A plateau reacts to measured values; the other schedules are functions of the step.
        if isinstance(self.spec, Plateau):
            self.plateau = ReduceLROnPlateau(
                optimizer,
                mode="min" if self.spec.monitor.endswith("loss") else "max",
                factor=self.spec.factor,
                patience=self.spec.patience,
                threshold=self.spec.threshold,
                threshold_mode=self.spec.threshold_mode,
                cooldown=self.spec.cooldown,
                min_lr=self.spec.minimum,
                eps=self.spec.eps,
            )

    @property
    def lr(self) -> float:
        """Learning rate of the last stage that trains, which is the head in nearly every recipe."""
        return float(self.optimizer.param_groups[-1]["lr"])

    def before_step(self, step: int) -> None:
        """Set the learning rates for `step`, counted from the start of the phase."""
        if isinstance(self.spec, Plateau):
            return
        scale = factor(self.spec, step, self.per_epoch, self.epochs)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * scale

    def after_epoch(self, figures: Mapping[str, float]) -> None:
        """Update the plateau schedule with train_loss, train_accuracy, valid_loss and valid_accuracy."""
        if isinstance(self.spec, Plateau) and self.plateau is not None:
            self.plateau.step(figures[self.spec.monitor])

    def state_dict(self) -> dict[str, Any]:
        """State of the plateau schedule for JSON; `best` is a string because it is infinite before the first epoch."""
        if self.plateau is None:
            return {}
        return {name: getattr(self.plateau, name) for name in PLATEAU_STATE} | {"best": repr(float(self.plateau.best))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self.plateau is not None:
            self.plateau.load_state_dict({**state, "best": float(state["best"])})
