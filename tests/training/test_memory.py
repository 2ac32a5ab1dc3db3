"""Memory of a training step, and the micro-batch that fits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from linnaeus.models import create, wrap
from linnaeus.training.optim import freeze
from linnaeus.training.phase import TrainablePart
from linnaeus.training.tuning.memory import SampleCost, measure_cost


@pytest.mark.parametrize(
    ("batch", "free", "expected"),
    [(64, 10**9, 64), (64, 64 * 2000, 64), (64, 63 * 2000, 32), (100, 40 * 2000, 34), (64, 0, 1), (1, 0, 1)],
)
def test_a_step_is_divided_into_few_equal_micro_batches(batch: int, free: int, expected: int):
    """A sample takes 1,000 bytes, and samples may take half of the free memory."""
    assert SampleCost(bytes=1000).micro_batch(batch, free) == expected


def test_the_memory_of_a_sample_is_what_is_kept_for_its_backward_pass():
    """For this network it can be computed by hand: the inputs of the layers and the softmax of the loss."""

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2  # saves x

    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(100, 5000), Square(), nn.Linear(5000, 10)), 10, 1)
    cost = measure_cost(TrainablePart(model), model.stages, torch.randn(8, 1, 10, 10))
    assert cost.bytes == pytest.approx(4 * (100 + 5000 + 5000), rel=0.01)


def test_a_frozen_part_costs_no_memory():
    model = create("resnet20", 10)
    x = torch.randn(8, 3, 32, 32)
    whole = measure_cost(TrainablePart(model), model.stages, x)
    freeze(model, ("head",))
    assert measure_cost(TrainablePart(model), ("head",), x).bytes < whole.bytes / 100


def test_measuring_does_not_change_the_network():
    model = create("resnet20", 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_cost(TrainablePart(model), model.stages, torch.randn(8, 3, 32, 32))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_networks_with_auxiliary_heads_are_measured_too():
    model = create("inception_v1", 3, 1, aux=True)
    assert measure_cost(TrainablePart(model), model.stages, torch.randn(2, 1, 64, 64)).bytes > 0
