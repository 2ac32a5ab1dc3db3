"""The networks: their initialization, learning, running from stage to stage, and their description."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

from linnaeus import models
from linnaeus.errors import UserError
from linnaeus.models import MODELS, Network, create, unset_twin
from linnaeus.models.resnet import BasicBlock, Bottleneck

SMALL = ["resnet20", "resnet110", "plain20", "plain56", "mini_resnet", "digit_resnet", "resnet18", "inception_v1"]


def input_size(name: str) -> int:
    return 64 if name in ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "inception_v1") else 32


def vary_statistics(network: nn.Module) -> None:
    """Give the BatchNorms running statistics that are not all alike."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
            module.running_var.uniform_(0.8, 1.2)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", MODELS)
def test_arch_makes_the_same_network_again(name: str) -> None:
    with torch.device("meta"):
        network = create(name, classes=7, channels=1)
        arch = json.loads(json.dumps(network.arch))
        again = create(arch["name"], arch["classes"], arch["channels"], **arch["arguments"])
    assert again.arch == network.arch
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in network.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_has_a_stage(name: str) -> None:
    with torch.device("meta"):
        network = create(name, classes=7)
    assert {network.stage_of(key) for key in network.state_dict()} == set(network.stages)
    with pytest.raises(KeyError):
        network.stage_of("nothing.weight")


@pytest.mark.parametrize("name", [*SMALL, "resnet50"])
def test_a_head_may_use_several_stages(name: str) -> None:
    """It gets their pooled outputs, wherever the run is cut, and `arch` makes the same network again."""
    torch.manual_seed(0)
    lowest, last = create(name, classes=7).stages[-3], create(name, classes=7).stages[-2]
    network = create(name, classes=7, head_stages=[last, lowest]).eval()
    vary_statistics(network)
    x = torch.randn(2, 3, input_size(name), input_size(name))
    with torch.no_grad():
        vector = network.run(x, stop="head")
        below = network.run(x, stop=last)
        expected = torch.cat([below.mean((2, 3)), network.run(below, start=last, stop="head")[:, below.shape[1] :]], 1)
        torch.testing.assert_close(vector, expected, rtol=0, atol=0)
        assert vector.shape == (2, network.head_input)
        for stage in network.stages:
            cut = network.run(x, stop=stage)
            if stage in network.starts:
                torch.testing.assert_close(network.run(cut, start=stage), network(x), rtol=0, atol=0)
            else:
                with pytest.raises(AssertionError, match="does not see"):
                    network.run(cut, start=stage)
    arch = json.loads(json.dumps(network.arch))
    again = create(arch["name"], arch["classes"], arch["channels"], **arch["arguments"])
    again.load_state_dict(network.state_dict())
    assert again.head_stages == (lowest, last)


def test_stages_that_a_head_cannot_use_are_refused() -> None:
    with pytest.raises(UserError, match=r"resnet18: head_stages: 'layer5' is not .* the head \(did you mean layer"):
        create("resnet18", 2, head_stages=["layer5"])
    with pytest.raises(UserError, match="head_stages: 'head' is not a stage below the head"):
        create("resnet18", 2, head_stages=["head"])
    with pytest.raises(UserError, match="empty: choose from stem"):
        create("resnet18", 2, head_stages=[])


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_stages_join_up(name: str) -> None:
    """Cut anywhere, and the two runs give the bits of one; the head also takes the pooled vectors."""
    torch.manual_seed(0)
    network = create(name, classes=7).eval()
    vary_statistics(network)
    x = torch.randn(2, 3, input_size(name), input_size(name))
    whole = network(x)
    assert whole.shape == (2, 7)
    assert network.run(x, stop=network.stages[0]) is x
    for cut in network.stages:
        assert torch.equal(network.run(network.run(x, stop=cut), start=cut), whole)
    vectors = network.run(x, stop="head").mean((2, 3))
    assert vectors.shape == (2, network.head_input)
    assert torch.equal(network.run(vectors, start="head"), whole)
    with pytest.raises(UserError, match="no stage 'layer9': choose from"):
        network.run(x, start="layer9")


@torch.no_grad()
@pytest.mark.parametrize("name", [*SMALL, pytest.param("resnet50", marks=pytest.mark.long)])
def test_loss_starts_at_chance(name: str) -> None:
    """In training mode, since a fresh BatchNorm in evaluation mode normalizes nothing yet."""
    torch.manual_seed(0)
    network = create(name, classes=10).train()
    x, targets = torch.randn(16, 3, input_size(name), input_size(name)), torch.arange(16) % 10
    loss = float(nn.functional.cross_entropy(network(x), targets))
    assert abs(loss - math.log(10)) < 0.2


@pytest.mark.parametrize("name", ["resnet20", "plain20", "mini_resnet", "digit_resnet", "resnet18", "inception_v1"])
def test_overfits_one_batch(name: str) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"dropout": 0.0} if name == "inception_v1" else {}
    network = create(name, classes=4, channels=1, **arguments)
    size = 16 if name.endswith("20") else 32
    x, targets = torch.randn(8, 1, size, size), torch.arange(8) % 4
    optimizer = torch.optim.Adam(network.parameters(), lr=4e-3 if name.endswith("20") else 2e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), targets)
        if float(loss.detach()) < 0.05:
            return
        loss.backward()
        optimizer.step()
    pytest.fail(f"after 100 steps on 8 images the loss is {float(loss.detach()):.3f}")


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85), ("resnet110", 1.7)],
)
def test_cifar_resnets_have_the_papers_size(name: str, millions: float) -> None:
    """Table 6; with option A, and so for the plain nets too, the shortcuts cost no parameters."""
    digits = 1 if name == "resnet110" else 2
    network = create(name, classes=10)
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, digits) == millions
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == int(name.removeprefix("resnet"))  # the number in the name counts the weighted layers
    if name != "resnet110":
        plain = create(name.replace("resnet", "plain"), classes=10)
        assert plain.state_dict().keys() == network.state_dict().keys()
    projected = create(name, classes=10, shortcut="B")
    assert len([m for m in projected.modules() if isinstance(m, nn.Conv2d)]) == len(layers) - 1 + 2


@torch.no_grad()
def test_option_a_subsamples_and_pads() -> None:
    network = create("resnet20", classes=10)
    x = torch.randn(1, 16, 8, 8)
    shortcut = network.get_submodule("layer2.0.downsample")(x)
    assert torch.equal(shortcut[:, :16], x[:, :, ::2, ::2])
    assert shortcut.shape == (1, 32, 4, 4)
    assert not shortcut[:, 16:].any()


@torch.no_grad()
def test_zero_init_makes_every_block_the_identity() -> None:
    for name in ("resnet18", "resnet50", "resnet20"):
        network = create(name, classes=10, zero_init=True).train()
        for module in network.modules():
            if isinstance(module, BasicBlock | Bottleneck) and module.downsample is None:
                x = torch.rand(2, module.conv1.in_channels, 4, 4)
                assert torch.equal(module(x), x)


@torch.no_grad()
def test_stride_in_moves_the_stride_and_nothing_else() -> None:
    torch.manual_seed(0)
    theirs, papers = create("resnet50", 5), create("resnet50", 5, stride_in="1x1")
    papers.load_state_dict(theirs.state_dict())
    assert theirs.get_submodule("layer2.0.conv2").stride == (2, 2)
    assert papers.get_submodule("layer2.0.conv1").stride == (2, 2)
    assert papers.get_submodule("layer2.0.conv2").stride == (1, 1)
    x = torch.randn(1, 3, 64, 64)
    assert not torch.allclose(theirs.eval()(x), papers.eval()(x))
    with pytest.raises(UserError, match="resnet18 has no 1x1"):
        create("resnet18", 5, stride_in="1x1")


@torch.no_grad()
def test_small_stem_keeps_the_size() -> None:
    network = create("resnet18", 10, channels=1, stem="small").eval()
    assert network.run(torch.randn(1, 1, 32, 32), stop="layer1").shape == (1, 64, 32, 32)
    assert network.run(torch.randn(1, 1, 32, 32), stop="head").shape == (1, 512, 4, 4)


@torch.no_grad()
@pytest.mark.parametrize(("size", "last"), [(28, 1), (29, 1), (32, 2), (64, 6)])
def test_mini_resnet_takes_any_size_from_28(size: int, last: int) -> None:
    network = create("mini_resnet", 10, channels=1).eval()
    maps = network.run(torch.rand(1, 1, size, size), stop="head")
    assert maps.shape == (1, 128, last, last)
    assert network(torch.rand(1, 1, size, size)).shape == (1, 10)


def test_mini_resnet_is_as_described() -> None:
    network = create("mini_resnet", 10, channels=1)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    shapes = [(m.in_channels, m.out_channels, m.kernel_size[0], m.padding[0]) for m in convolutions]
    assert shapes == [
        *((1, 32, 5, 0), (32, 30, 5, 2), (30, 32, 3, 1)),
        *((32, 64, 3, 0), (64, 30, 5, 2), (30, 64, 3, 1)),
        *((64, 128, 3, 0), (128, 30, 5, 2), (30, 128, 3, 1)),
    ]
    assert not [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert create("mini_resnet", 10, 1, widths=[20, 30, 50]).head_input == 50
    for widths in ([32, 64], [32, 64, 0], "abc"):
        with pytest.raises(UserError, match="three integers above 0"):
            create("mini_resnet", 10, 1, widths=widths)


@torch.no_grad()
@pytest.mark.parametrize(("size", "last"), [(20, 1), (28, 3), (31, 3), (32, 4)])
def test_digit_resnet_takes_any_size_from_20(size: int, last: int) -> None:
    network = create("digit_resnet", 10, channels=1).eval()
    assert network.run(torch.rand(1, 1, size, size), stop="head").shape == (1, 96, last, last)
    assert create("digit_resnet", 10, 1, widths=[8, 16, 24]).head_input == 24
    with pytest.raises(UserError, match=r"digit_resnet: widths = .* must be three integers above 0"):
        create("digit_resnet", 10, 1, widths=[8, 16])


@torch.no_grad()
def test_digit_resnet_step_by_step() -> None:
    """Convolution, pool, BatchNorm, ReLU, then two 3x3 around an identity, written out independently."""
    torch.manual_seed(0)
    network = create("digit_resnet", 10, channels=1).eval()
    vary_statistics(network)
    weights, maps = network.state_dict(), torch.rand(2, 1, 28, 28)
    image = maps

    def normalized(x: torch.Tensor, name: str) -> torch.Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    for block in ("block1", "block2", "block3"):
        maps = nn.functional.conv2d(maps, weights[f"{block}.conv.weight"])
        if block == "block3":
            maps = normalized(maps, f"{block}.bn").relu()
            break
        maps = normalized(nn.functional.max_pool2d(maps, 2), f"{block}.bn").relu()
        inner = normalized(
            nn.functional.conv2d(maps, weights[f"{block}.block.conv1.weight"], padding=1), f"{block}.block.bn1"
        )
        inner = nn.functional.conv2d(inner.relu(), weights[f"{block}.block.conv2.weight"], padding=1)
        maps = (maps + normalized(inner, f"{block}.block.bn2")).relu()
    logits = maps.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(network(image), logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mini_resnet_step_by_step() -> None:
    """Convolution, pool, ReLU; then around an identity 5x5, ReLU, 3x3; add, ReLU. Written out a second time."""
    torch.manual_seed(0)
    network = create("mini_resnet", 10, channels=1)
    weights = {key: t + 0.05 * torch.randn_like(t) for key, t in network.state_dict().items()}
    network.load_state_dict(weights)
    image = torch.rand(2, 1, 32, 32)
    maps = image
    for block in ("block1", "block2", "block3"):

        def convolve(x: torch.Tensor, name: str, padding: int, block: str = block) -> torch.Tensor:
            weight, bias = weights[f"{block}.{name}.weight"], weights[f"{block}.{name}.bias"]
            return nn.functional.conv2d(x, weight, bias, padding=padding)

        maps = nn.functional.max_pool2d(convolve(maps, "conv", 0), 2).relu()
        maps = (maps + convolve(convolve(maps, "block.conv1", 2).relu(), "block.conv2", 1)).relu()
    logits = maps.mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    torch.testing.assert_close(network(image), logits)


def test_auxiliary_heads_train_and_vanish() -> None:
    torch.manual_seed(0)
    network = create("inception_v1", 5, aux=True)
    x = torch.randn(2, 3, 64, 64)
    logits, aux = network(x)
    assert logits.shape == (2, 5)
    assert [a.shape for a in aux] == [(2, 5), (2, 5)]
    maps = network.run(x, stop="inception4")
    assert isinstance(network.run(maps, start="inception4"), tuple)  # a phase may start anywhere below them
    assert isinstance(network.run(maps, start="inception4", stop="head"), torch.Tensor)
    for name, module in network.named_modules():  # frozen, while the rest trains
        if name and network.stage_of(name) == "inception4":
            module.eval()
    assert network.training
    assert isinstance(network(x), torch.Tensor)
    assert isinstance(network.eval()(x), torch.Tensor)
    assert network.stage_of("aux2.fc1.weight") == "inception4"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create("resnet5O", 5), "unknown model 'resnet5O' .did you mean .*resnet50"),
        (lambda: create("vgg", 5), "unknown model 'vgg': `linnaeus models` lists ours"),
        (lambda: create("resnet50", 5, stem_="small"), "no argument 'stem_' .did you mean stem"),
        (lambda: create("plain20", 5, shortcut="A"), "it has none"),
        (lambda: create("resnet50", 5, stem="tiny"), "stem = 'tiny' is unknown: choose from imagenet, small"),
        (lambda: create("resnet20", 5, shortcut="C"), "shortcut = 'C'"),
        (lambda: create("inception_v1", 5, branch5x5="7x7"), "branch5x5 = '7x7'"),
        (lambda: create("resnet50", 0), "classes = 0"),
        (lambda: create("custom", 5, source="net.py:build"), "your own code .net.py:build."),
    ],
)
def test_misuse_is_named(call, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_gradients_reach_every_parameter() -> None:
    for name in ("resnet20", "mini_resnet", "digit_resnet", "inception_v1"):
        network: Network = create(name, 3)
        network(torch.randn(2, 3, 64, 64)).sum().backward()
        assert all(p.grad is not None for p in network.parameters())


def test_widths_and_sizes_are_found_without_the_compiler_of_torch():
    """It takes more than a second to import, and torch does so to compute on the meta device."""
    code = """
import sys, torch
from linnaeus.models import create
from linnaeus.recipe import load_recipe
from linnaeus.training.setup.network import check_memory, check_size
torch.manual_seed(0)
expected = torch.rand(2)
for name, size in (("resnet50", 288), ("resnet18", 96), ("mini_resnet", 24)):
    recipe = load_recipe("flowers", {"model.name": name, "data.size": size, "data.resize": size})
    stages = ("layer3", "layer4") if name != "mini_resnet" else ("block2", "block3")
    network = create(name, 3, head_stages=stages)
    torch.manual_seed(0)
    check_memory(recipe, 3, 3, {"head_stages": stages})
    check_size(network, recipe, 3)
    assert torch.equal(torch.rand(2), expected), "random numbers were drawn"
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_network_too_large_for_its_shapes_is_not_created(monkeypatch: pytest.MonkeyPatch):
    expected = create("mini_resnet", 2, head_stages=["block1", "block3"]).fc.in_features
    monkeypatch.setattr(models, "LARGE", 10)
    assert create("mini_resnet", 2, head_stages=["block1", "block3"]).fc.in_features == expected
    network, device = unset_twin(lambda: create("mini_resnet", 2))
    assert device.type == "meta"
    assert all(parameter.is_meta for parameter in network.parameters())


@pytest.mark.parametrize("name", ["resnet18+resnet50", "timm/resnet18+resnet50"])
def test_several_networks_are_for_probe_alone(name: str):
    with pytest.raises(UserError, match="several networks, which only `linnaeus probe` compares"):
        create(name, 2)
