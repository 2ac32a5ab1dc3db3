"""The table `schedule` of a phase: how the learning rate changes."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from linnaeus.recipe.strict import NonNegative, Positive, Strict


class Constant(Strict):
    """The learning rate does not change."""

    name: Literal["constant"] = "constant"
    """Name of the schedule."""


class Step(Strict):
    """Multiply the learning rate by `factor` after every `every` epochs."""

    name: Literal["step"]
    """Name of the schedule."""
    every: Annotated[int, Field(ge=1)]
    """Epochs between two steps."""
    factor: Positive = 0.1
    """Factor on the learning rate."""


class Plateau(Strict):
    """Multiply the learning rate by `factor` when `monitor` has not improved for more than `patience` epochs."""

    name: Literal["plateau"]
    """Name of the schedule."""
    monitor: Literal["train_loss", "train_accuracy", "valid_loss", "valid_accuracy"] = "valid_loss"
    """The metric that should improve."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor on the learning rate."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Epochs without improvement that are tolerated."""
    threshold: NonNegative = 1e-4
    """The smallest change that counts as an improvement."""
    threshold_mode: Literal["rel", "abs"] = "rel"
    """`rel`: `threshold` is a share of the best value; `abs`: a difference from it."""
    cooldown: Annotated[int, Field(ge=0)] = 0
    """Epochs after a step that do not count as epochs without improvement."""
    minimum: NonNegative = 0.0
    """The lowest learning rate."""
    eps: NonNegative = 1e-8
    """Steps that change the learning rate by less than this are skipped."""


class Cosine(Strict):
    """Linear warm-up, then half a cosine down to `minimum` times the learning rate (Loshchilov and Hutter 2016)."""

    name: Literal["cosine"]
    """Name of the schedule."""
    warmup: NonNegative = 0.0
    """Epochs of warm-up; fractions are allowed."""
    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Value at the end of the cosine, as a share of the learning rate."""


class OneCycle(Strict):
    """Up from lr/start_div to lr in the first `rise` of the steps, then down to lr/end_div (Smith and Topin 2017)."""

    name: Literal["onecycle"]
    """Name of the schedule."""
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps in which the learning rate rises."""
    start_div: Annotated[float, Field(ge=1)] = 25.0
    """The first learning rate is lr divided by this."""
    end_div: Annotated[float, Field(ge=1)] = 1e4
    """The last learning rate is lr divided by this."""


Schedule = Annotated[Constant | Step | Plateau | Cosine | OneCycle, Field(discriminator="name")]
