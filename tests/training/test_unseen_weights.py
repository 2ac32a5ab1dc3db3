"""Gradients of weights that meet only padding, which torch leaves uninitialized in bfloat16 on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from killing import train
from tiny import mini, write_recipe
from torch import nn

from linnaeus.models import wrap
from linnaeus.training.phase import TrainablePart
from linnaeus.training.tuning import tuning
from linnaeus.training.unseen_weights import zero_unseen_gradients


@pytest.mark.parametrize(
    ("kernel", "padding", "stride", "dilation", "side", "seen"),
    [
        (5, 2, 1, 1, 1, [2]),
        (5, 2, 1, 1, 2, [1, 2, 3]),
        (5, 2, 1, 1, 3, [0, 1, 2, 3, 4]),
        (3, 1, 2, 1, 2, [1, 2]),
        (3, 1, 2, 1, 1, [1]),
        (3, 2, 1, 2, 2, [1]),
    ],
)
def test_only_the_weights_that_meet_a_pixel_learn(kernel, padding, stride, dilation, side, seen):
    layer = nn.Conv2d(1, 1, kernel, stride, padding, dilation)
    net = TrainablePart(wrap(nn.Sequential(layer, nn.Flatten()), 1, 1))
    x = torch.ones(1, 1, side, side)
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    expected = torch.zeros(kernel, dtype=torch.bool)
    expected[seen] = True
    expected = expected[:, None] & expected
    assert torch.equal(layer.weight.grad[0, 0] != 0, expected)  # what float32 computes

    layer.weight.grad = None
    zero_unseen_gradients(net, x)
    uninitialized = torch.where(expected, 1.0, torch.nan)
    (layer.weight * uninitialized).sum().backward()
    gradient: torch.Tensor | None = layer.weight.grad
    assert gradient is not None
    assert torch.equal(gradient[0, 0], expected.float())


def test_the_network_is_left_as_it_was():
    network = mini().train()
    frozen, other = network.get_submodule("block1").eval(), network.get_submodule("block2")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    zero_unseen_gradients(TrainablePart(network), torch.rand(1, 1, 28, 28))
    assert [network.training, frozen.training, other.training] == [True, False, True]
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.usefixtures("undrawn_runs")
@pytest.mark.parametrize(("precision", "calls"), [("bf16-mixed", 1), ("32", 0)])
def test_training_in_bfloat16_uses_it(precision: str, calls: int, idx: Path, tmp_path: Path, monkeypatch):
    made = []

    def counted(net: TrainablePart, x: torch.Tensor) -> None:
        made.append(x.shape)
        zero_unseen_gradients(net, x)

    monkeypatch.setattr(tuning, "zero_unseen_gradients", counted)
    train(idx, write_recipe(tmp_path / "r.toml", {"epochs": 1}, precision=precision), tmp_path / "run")
    assert made == [(1, 1, 28, 28)] * calls
