"""Schedules equal those of torch, step by step."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR, ReduceLROnPlateau, StepLR

from linnaeus.recipe import Phase
from linnaeus.training.schedule import Schedule, factor

EPOCHS, STEPS = 12, 5


def optimizer(*lrs: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in lrs], lr=1.0)


def phase(**schedule) -> Phase:
    return Phase.model_validate({"epochs": EPOCHS, "lr": 0.1, "schedule": schedule})


def rates(schedule: Schedule) -> list[list[float]]:
    """The rate of every group at every step."""
    found = []
    for step in range(EPOCHS * STEPS):
        schedule.before_step(step)
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
    return found


def reference(make, per_step: bool) -> list[list[float]]:
    theirs = optimizer(0.1, 0.01)
    scheduler = make(theirs)
    found = []
    for step in range(EPOCHS * STEPS):
        found.append([group["lr"] for group in theirs.param_groups])
        theirs.step()
        if (per_step or (step + 1) % STEPS == 0) and step + 1 < EPOCHS * STEPS:
            scheduler.step()
    return found


def test_step_equals_torch():
    ours = rates(Schedule(optimizer(0.1, 0.01), phase(name="step", every=3, factor=0.5), STEPS))
    theirs = reference(lambda o: StepLR(o, step_size=3, gamma=0.5), per_step=False)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))


def test_cosine_equals_torch():
    ours = rates(Schedule(optimizer(0.1, 0.01), phase(name="cosine"), STEPS))
    theirs = reference(lambda o: CosineAnnealingLR(o, T_max=EPOCHS * STEPS), per_step=True)
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs))


def test_onecycle_equals_torch():
    ours = rates(Schedule(optimizer(0.1, 0.01), phase(name="onecycle", pct_start=0.3, div=25, div_final=1e4), STEPS))
    theirs = reference(
        lambda o: OneCycleLR(
            o,
            max_lr=[0.1, 0.01],
            total_steps=EPOCHS * STEPS,
            pct_start=0.3,
            div_factor=25,
            final_div_factor=1e4 / 25,
            cycle_momentum=False,
        ),
        per_step=True,
    )
    torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-9)


def test_warmup_rises_to_the_peak_and_never_starts_at_zero():
    spec = phase(name="cosine", warmup=2, minimum=0.1).schedule
    values = [factor(spec, step, STEPS, EPOCHS) for step in range(EPOCHS * STEPS)]  # type: ignore[arg-type]
    assert 0 < values[0] < values[5] < values[9] < values[10] == max(values) == 1.0
    assert values[-1] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("monitor", ["train_loss", "train_accuracy", "valid_loss", "valid_accuracy"])
def test_plateau_equals_torch_with_all_keys(monitor: str):
    figures = [1.0, 0.9, 0.9, 0.9, 0.95, 0.9, 0.7, 0.7, 0.7, 0.7, 0.7, 0.7]
    spec = phase(
        name="plateau",
        monitor=monitor,
        factor=0.5,
        patience=1,
        threshold=0.05,
        threshold_mode="abs",
        cooldown=1,
        minimum=1e-3,
        eps=1e-9,
    )
    ours = Schedule(optimizer(0.1, 0.002), spec, STEPS)
    mine = optimizer(0.1, 0.002)
    theirs = ReduceLROnPlateau(
        mine,
        mode="min" if monitor.endswith("loss") else "max",
        factor=0.5,
        patience=1,
        threshold=0.05,
        threshold_mode="abs",
        cooldown=1,
        min_lr=1e-3,
        eps=1e-9,
    )
    seen = set()
    for epoch, value in enumerate(figures):
        ours.before_step(epoch * STEPS)
        other = {"train_loss": 5.0, "train_accuracy": 5.0, "valid_loss": 5.0, "valid_accuracy": 5.0}
        ours.after_epoch({**other, monitor: value})
        theirs.step(value)
        now = [group["lr"] for group in ours.optimizer.param_groups]
        assert now == [group["lr"] for group in mine.param_groups]
        seen.add(now[0])
    assert len(seen) > 2, "the rate should have fallen more than once"
