"""Where the positions of a map lie in the image, compared with the gradients of a random network."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.models import create, wrap
from linnaeus.models.receptive_field import evenly_spaced, receptive_field_centers, upsample

CASES = [
    ("resnet18", 128, {"stem": (0, 4), "layer2": (0, 8), "layer4": (0, 32)}),
    ("resnet20", 32, {"stem": (0, 1), "layer2": (0, 2), "layer3": (0, 4)}),
    ("mini_resnet", 44, {"block1": (2.5, 2), "block2": (5.5, 4), "block3": (11.5, 8)}),
    ("digit_resnet", 44, {"block1": (2.5, 2), "block2": (5.5, 4)}),
    ("inception_v1", 128, {"stem": (6, 8), "inception3": (14, 16), "inception4": (22, 32)}),
]


@pytest.mark.parametrize(("name", "size", "expected"), CASES, ids=[case[0] for case in CASES])
def test_a_position_lies_where_its_gradient_is_centered(name: str, size: int, expected: dict[str, tuple[float, float]]):
    """Of a network with random weights, the energy of a position's gradient has its middle where geometry puts it."""
    torch.manual_seed(0)
    network = create(name, 3, 3).eval()
    centers = receptive_field_centers(network, size, size)
    for stage, (first, step) in expected.items():
        x = torch.rand(2, 3, size, size, requires_grad=True)
        y = network.run(x, stop=network.stages[network.stages.index(stage) + 1])
        assert centers.rows[y.shape[2]] == centers.columns[y.shape[3]] == (first, step)
        # Near the middle of the image, where the border cuts off nothing.
        i = min(range(y.shape[2]), key=lambda i: abs(first + i * step - size / 2))
        (slope,) = torch.autograd.grad(y[:, :, i, i].sum(), x)
        energy = (slope**2).sum((0, 1, 3))
        middle = float((energy * torch.arange(size)).sum() / energy.sum())
        assert middle == pytest.approx(first + i * step, abs=0.2 * step), stage


def test_heights_and_widths_are_distinguished():
    network = wrap(nn.Sequential(nn.Conv2d(1, 2, (3, 1), (2, 1), (0, 0)), nn.MaxPool2d((1, 2))), 2, 1)
    centers = receptive_field_centers(network, 21, 16)
    assert centers.rows[10] == (1.0, 2.0)
    assert centers.columns[8] == (0.5, 2.0)


class Halves(nn.Module):
    """Halves a map in code, so that no layer shows it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2)


def test_positions_of_unknown_layers_are_spread_evenly():
    where = receptive_field_centers(wrap(nn.Sequential(Halves()), 2, 1), 8, 8)
    assert 4 not in where.rows
    assert where.sizes == {"0": (4, 4)}
    assert evenly_spaced(8, 4) == (0.5, 2.0)
    maps = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).T @ torch.ones(1, 4)
    out = upsample(maps[None], where, 8, 8)[0, :, 0]
    assert float(out[0]) == pytest.approx(1)  # outside of the outermost position
    assert float(out[1]) == pytest.approx(0.5 + 0.5 * 2**-0.5)  # a quarter of the way
    assert out[3:].abs().max() < 1e-6


def test_a_stretched_map_keeps_its_values_and_its_range():
    torch.manual_seed(1)
    maps = torch.rand(3, 7, 7)
    where = receptive_field_centers(create("resnet18", 2).eval(), 224, 224)
    out = upsample(maps, where, 224, 224)
    assert out.shape == (3, 224, 224)
    assert torch.allclose(out[:, ::32, ::32], maps, atol=1e-5)
    assert out.min() >= 0
    assert out.max() <= maps.max() + 1e-6
    flat = upsample(torch.ones(1, 7, 7), where, 224, 224)[0]
    assert torch.allclose(flat[:209, :209], torch.ones(1), atol=1e-5)  # as far as half a step beyond the last position
    assert (flat[209:].diff(dim=0) < 0).all()
    assert flat[223, 0] > 0.5
