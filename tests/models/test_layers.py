"""The layer table against published figures and torch's own counter."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from linnaeus.models import MODELS, create, wrap
from linnaeus.models.layers import COSTS, layer_table, render, summary, totals

PUBLISHED = [
    ("resnet18", {}, "11.69 M", "1.81 G"),
    pytest.param("resnet34", {}, "21.80 M", "3.66 G", marks=pytest.mark.long),
    ("resnet50", {}, "25.56 M", "4.09 G"),
    ("resnet50", {"stride_in": "1x1"}, "25.56 M", "3.86 G"),
    pytest.param("resnet101", {}, "44.55 M", "7.80 G", marks=pytest.mark.long),
    ("resnet152", {}, "60.19 M", "11.51 G"),
    ("inception_v1", {"branch5x5": "3x3"}, "6.62 M", "1.50 G"),
    ("inception_v1", {"branch5x5": "5x5"}, "7.01 M", "1.58 G"),
]


@pytest.mark.parametrize(("name", "arguments", "parameters", "adds"), PUBLISHED)
def test_totals_are_the_published_ones(name: str, arguments: dict, parameters: str, adds: str) -> None:
    with torch.device("meta"):
        network = create(name, 1000, **arguments)
    assert render(layer_table(network, 224)).splitlines()[-1].split() == f"{parameters} {adds}".split()


QUICK = ("resnet18", "resnet20", "plain20", "mini_resnet", "digit_resnet")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in MODELS])
def test_summary_is_right(name: str) -> None:
    cost = COSTS[name]
    with torch.device("meta"):
        network = create(name, cost.classes, cost.channels)
    assert network.usual_size == cost.size
    parameters, adds = totals(layer_table(network))
    assert round(parameters / 1e6, 3) == cost.millions
    assert round(adds / 1e9, 4 if cost.billions < 0.01 else 3) == cost.billions
    assert f"{name} " in summary()


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in MODELS])
def test_counts_agree_with_torch(name: str) -> None:
    """torch counts two operations per multiply-add. Every parameter is in one row."""
    with torch.device("meta"):
        network = create(name, 10)
    parameters, adds = totals(layer_table(network, 96))
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.empty(1, 3, 96, 96, device="meta"))
    assert adds * 2 == counter.get_total_flops()
    assert parameters == sum(p.numel() for p in network.parameters())


def test_rows_say_what_the_paper_says() -> None:
    """ResNet-50 at 224 (table 1), and the stem's cost by the formula in the help."""
    with torch.device("meta"):
        network = create("resnet50", 1000)
    rows = {row.name: row for row in layer_table(network, 224)}
    stem = rows["conv1"]
    assert (stem.output, stem.kernel, stem.stride) == ((64, 112, 112), (7, 7), (2, 2))
    assert stem.parameters == 7 * 7 * 3 * 64
    assert stem.multiply_adds == stem.parameters * 112 * 112
    shapes = [rows[f"layer{i}.0.conv3"].output for i in (1, 2, 3, 4)]
    assert shapes == [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    assert rows["fc"].output == (1000,)
    assert rows["fc"].multiply_adds == 2048 * 1000


def test_a_stage_gives_what_its_last_module_gives() -> None:
    """An Inception module ends in four branches side by side: the last of them alone is not what it gives."""
    with torch.device("meta"):
        rows = layer_table(create("inception_v1", 1000), 224)
    given = {row.stage: row.stage_output for row in rows}
    assert list(given.values()) == [(192, 28, 28), (480, 14, 14), (832, 7, 7), (1024, 7, 7), (1000,)]
    assert "\ninception5                                 1024 x 7 x 7 " in render(rows)


def test_the_network_is_left_alone() -> None:
    network = create("inception_v1", 4, aux=True).train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    rows = layer_table(network, 64)
    assert network.training
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())
    assert not [row for row in rows if row.name.startswith("aux")]


def test_groups_and_biases_are_counted() -> None:
    network = wrap(nn.Sequential(nn.Conv2d(6, 12, 3, padding=1, groups=3), nn.Flatten(), nn.Linear(12 * 16, 2)), 2, 6)
    convolution, linear = layer_table(network, 4)
    assert (convolution.name, convolution.stage) == ("module.0", "0")
    assert (convolution.parameters, convolution.multiply_adds) == (3 * 3 * 2 * 12 + 12, 3 * 3 * 2 * 12 * 16)
    assert (linear.parameters, linear.multiply_adds) == (192 * 2 + 2, 192 * 2)


def test_table_is_aligned() -> None:
    with torch.device("meta"):
        lines = render(layer_table(create("mini_resnet", 10, 1), 28)).splitlines()
    right = {len(line) for line in lines if line.startswith(("layer", "block", "total"))}
    assert len(right) == 1
    assert lines[0].split() == ["layer", "kind", "output", "kernel", "stride", "parameters", "multiply-adds"]


def test_small_networks_show_millions() -> None:
    rows = {line.split()[0]: line for line in summary().splitlines()}
    small = [name for name, cost in COSTS.items() if cost.billions < 0.01]
    assert small
    for name in small:
        assert f" {COSTS[name].billions * 1000:.1f} M " in rows[name]
        assert "0.00 G" not in rows[name]
