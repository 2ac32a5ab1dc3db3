"""The moving average of the weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from linnaeus.models import create
from linnaeus.training.ema import MovingAverage
from linnaeus.training.optim import freeze


def one_weight() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    return model


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_follows_its_formula(decay: float):
    """With the warm-up of the decay, (1 + step) / (10 + step)."""
    model = one_weight()
    average = MovingAverage(model, decay)
    expected = 1.0
    mine = average.model.weight
    for step in range(200):
        nn.init.constant_(model.weight, float(step % 7))
        average.update()
        used = min(decay, (1 + step) / (10 + step))
        expected = used * expected + (1 - used) * (step % 7)
    assert mine.item() == pytest.approx(expected, rel=1e-4)


def test_buffers_are_copied_and_frozen_weights_kept():
    model = create("resnet20", 3, 1)
    freeze(model, ("head",))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average = MovingAverage(model, 0.9)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.constant_(parameter, 7.0)
    model.get_buffer("bn1.running_mean").fill_(3.0)
    average.update()
    for name, tensor in average.model.state_dict().items():
        if name == "bn1.running_mean":
            assert torch.equal(tensor, torch.full_like(tensor, 3.0))
        else:
            assert torch.equal(tensor, before[name]) == (model.stage_of(name) != "head"), name


def test_the_average_is_in_evaluation_mode_and_the_network_is_unchanged():
    model = one_weight().train()
    average = MovingAverage(model, 0.9)
    assert not average.model.training
    assert not any(p.requires_grad for p in average.model.parameters())
    assert model.training
    assert model.weight.requires_grad
    average.update()
    assert model.weight.item() == 1.0
