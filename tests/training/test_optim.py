"""Optimizers: trained parameters, groups and learning rates."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import mini, phase, phase_run, settings, stream, write_idx, write_recipe
from torch import nn

from linnaeus.console import Console
from linnaeus.distributed.engine import Engine
from linnaeus.errors import UserError
from linnaeus.models import create, wrap
from linnaeus.recipe import Recipe
from linnaeus.training.optim import (
    build_optimizer,
    differs_by_process,
    eager,
    freeze,
    parameter_groups,
    train_mode,
    training_stages,
)
from linnaeus.training.recorder import Recorder
from linnaeus.training.tuning.tuning import Tuning


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (["head"], ("head",)),
        (["head", "layer3"], ("layer3", "head")),
        (["all"], ("stem", "layer1", "layer2", "layer3", "head")),
        (["head", "all"], ("stem", "layer1", "layer2", "layer3", "head")),
    ],
)
def test_stages_come_in_the_order_of_the_network(asked: list[str], found: tuple[str, ...]):
    assert training_stages(create("resnet20", 3), asked) == found


def test_a_batchnorm_that_trains_differs_by_process():
    resnet = create("resnet20", 3)
    assert differs_by_process(resnet, ["layer3", "head"], "train")
    assert not differs_by_process(resnet, ["head"], "train")
    assert not differs_by_process(resnet, ["layer3"], "synced")
    assert not differs_by_process(resnet, ["layer3"], "frozen")
    assert not differs_by_process(mini(), ["head"], "train")


@pytest.mark.parametrize(("processes", "said"), [(1, False), (2, True)])
def test_a_run_says_that_several_processes_differ(processes: int, said: bool, capsys: pytest.CaptureFixture[str]):
    resnet = create("resnet20", 3, 1)
    images, labels = np.zeros((6, 28, 28, 1), np.uint8), np.arange(6) % 3
    run = phase_run(resnet, phase(train=["layer3", "head"]), stream(images, labels))
    recipe = Recipe.model_validate({**settings(), "phase": [{"epochs": 1, "lr": 0.1}]})
    engine = Engine("cpu", "32")
    engine.world_size = processes
    Tuning(engine, Recorder(), Console(), recipe)._announce(run, torch.zeros(6, 1, 28, 28), "")
    assert ("BatchNorm: each process" in capsys.readouterr().out) == said


def test_an_unknown_stage_is_rejected_with_a_suggestion():
    with pytest.raises(UserError, match=r"phase\.train: 'layer33'.*did you mean layer3.*stem, layer1"):
        training_stages(create("resnet20", 3), ["layer33"])


def test_only_the_trained_stages_require_gradients():
    model = create("resnet20", 3)
    freeze(model, ("layer3", "head"))
    train_mode(model, ("layer3", "head"))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (model.stage_of(name) in ("layer3", "head")), name
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == name.startswith("layer3"), name


def test_the_stages_of_a_custom_network():
    """The stages of an nn.Sequential are its children."""
    model = wrap(
        nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(4, 3)), 3, 1
    )
    freeze(model, ("2",))
    train_mode(model, ("2",))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["module.2.weight", "module.2.bias"]
    assert not model.get_submodule("module.0.1").training
    assert model.get_submodule("module.2").training


def test_stages_further_from_the_head_have_lower_rates():
    groups = parameter_groups(create("resnet20", 3), phase(lr=0.1, lr_decay=0.5))
    assert [(g["stage"], round(g["lr"], 6)) for g in groups] == [
        ("stem", 0.00625),
        ("layer1", 0.0125),
        ("layer2", 0.025),
        ("layer3", 0.05),
        ("head", 0.1),
    ]


def test_norms_and_biases_can_be_excluded_from_weight_decay():
    model = create("resnet20", 3)
    groups = parameter_groups(model, phase(weight_decay=0.1, decay_norms=False))
    for group in groups:
        spared = group["weight_decay"] == 0
        assert all((p.ndim == 1) == spared for p in group["params"])
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))  # each once
    assert {g["weight_decay"] for g in parameter_groups(model, phase(weight_decay=0.1))} == {0.1}


def test_the_last_group_is_the_head():
    """Its rate is reported, with and without weight decay of norms."""
    for spec in (phase(), phase(decay_norms=False), phase(lr_decay=0.5)):
        groups = parameter_groups(create("resnet20", 3), spec)
        assert (groups[-1]["stage"], groups[-1]["lr"]) == ("head", spec.lr)


def test_stages_without_parameters_cannot_train():
    model = wrap(nn.Sequential(nn.Flatten(), nn.Linear(784, 3)), 3, 1)
    freeze(model, ("0",))
    with pytest.raises(UserError, match="no parameters to train"):
        parameter_groups(model, phase(train=["0"]))


@pytest.mark.parametrize(
    ("change", "kind", "values"),
    [
        ({"optimizer": "sgd", "momentum": 0.8, "nesterov": True}, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
        ({"optimizer": "adam", "betas": [0.8, 0.9]}, torch.optim.Adam, {"betas": (0.8, 0.9)}),
        ({"optimizer": "adamw", "weight_decay": 0.3}, torch.optim.AdamW, {"weight_decay": 0.3}),
    ],
)
def test_the_optimizer_is_the_one_of_the_recipe(change: dict, kind: type, values: dict):
    optimizer = build_optimizer(mini(), phase(**change))
    assert type(optimizer).__bases__ == (kind,)
    for group in optimizer.param_groups:
        assert {key: group[key] for key in values} == values


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fused_optimizers_compute_what_the_others_do(optimizer: str, layout: torch.memory_format):
    """In both layouts, and with gradients that were averaged over processes: the fused ones ignore strides."""
    spec = phase(optimizer=optimizer, weight_decay=0.1)
    networks = [mini().to(memory_format=layout) for _ in range(2)]  # type: ignore[call-overload]
    fused, plain = (build_optimizer(network, spec) for network in networks)
    assert all(group["fused"] for group in fused.param_groups)
    for group in plain.param_groups:
        group["fused"] = None
    x = torch.rand(4, 1, 28, 28)
    for _ in range(3):
        for network in networks:
            network.zero_grad()
            network(x).square().sum().backward()
        Engine("cpu", "32").average_gradients(networks[0])
        fused.step()
        plain.step()
    for ours, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_dense_in_memory_are_not_updated_by_a_fused_optimizer():
    model = mini()
    model.fc.weight = torch.nn.Parameter(torch.zeros(model.fc.in_features, 3).t())
    assert not any(group["fused"] for group in build_optimizer(model, phase(optimizer="sgd")).param_groups)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_our_optimizers_give_the_bits_of_those_of_torch(kind: type[torch.optim.Optimizer]):
    """Also after a resume, and in the state of the other, which an earlier version has saved."""
    networks = [mini(), mini()]
    x = torch.rand(4, 1, 28, 28)
    optimizers = [make(n.parameters(), lr=0.01) for make, n in zip((eager(kind), kind), networks, strict=True)]
    for step in range(4):
        for network, optimizer in zip(networks, optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
        if step == 1:
            states = [optimizer.state_dict() for optimizer in optimizers]
            optimizers[0].load_state_dict(states[1])
            optimizers[1].load_state_dict(states[0])
    for ours, theirs in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_does_not_import_the_compiler_of_torch(tmp_path: Path):
    """Optimizers of torch import it when they are made, which takes a second."""
    source, out = write_idx(tmp_path / "idx"), tmp_path / "run"
    recipe = write_recipe(tmp_path / "r.toml", {"epochs": 1, "clip": 1.0})
    code = f"""
import sys
from linnaeus import train
train({str(source)!r}, {str(recipe)!r}, out={str(out)!r})
assert not {{"torch._dynamo", "sympy"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
