"""Optimizers: which parameters train, in which group, at which rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from linnaeus.errors import UserError, did_you_mean
from linnaeus.models import Network
from linnaeus.recipe import Phase


def training_stages(model: Network, train: Sequence[str]) -> tuple[str, ...]:
    """The stages that `train` names, in the network's order. Raises UserError for a stage it does not have."""
    stages = model.stages
    if "all" in train:
        return stages
    for name in train:
        if name not in stages:
            known = [*stages, "all"]
            raise UserError(
                f"phase.train: {name!r} is not a stage{did_you_mean(name, known)}; stages: {', '.join(known)}"
            )
    return tuple(stage for stage in stages if stage in train)


def freeze(model: Network, stages: Sequence[str]) -> None:
    """Let only the parameters of `stages` have gradients."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.stage_of(name) in stages)


def train_mode(model: Network, stages: Sequence[str], norms: str = "train") -> None:
    """Training mode for `stages`, evaluation mode for the rest, and with `norms` "frozen" for every BatchNorm.

    A frozen BatchNorm must not go on collecting statistics: its weights would stand still while its output drifts.
    """
    model.train()
    for name, module in model.named_modules():
        if name and not isinstance(module, nn.Sequential | nn.ModuleList):
            still = norms == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            module.training = model.stage_of(name) in stages and not still


def parameter_groups(model: Network, phase: Phase) -> list[dict[str, Any]]:
    """One group a stage (two where norms are not decayed), the deepest last, holding only what trains.

    The learning rate falls by `lr_decay` with each stage away from the last (Howard and Ruder 2018, section 3.2).
    """
    assert isinstance(phase.lr, float), "a phase that is trained has a learning rate, found or given"
    stages = model.stages
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = stages.index(model.stage_of(name))
        decays = phase.decay_norms or parameter.ndim > 1
        group = groups.setdefault(
            (depth, decays),
            {
                "params": [],
                "lr": phase.lr * phase.lr_decay ** (len(stages) - 1 - depth),
                "weight_decay": phase.weight_decay if decays else 0.0,
                "stage": stages[depth],
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise UserError(f"phase.train = {phase.train}: these stages have no parameters, so nothing would train")
    return [groups[key] for key in sorted(groups)]


def build_optimizer(model: Network, phase: Phase) -> torch.optim.Optimizer:
    """The optimizer of a phase over what trains in it."""
    groups = parameter_groups(model, phase)
    if phase.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=phase.momentum, nesterov=phase.nesterov)
    kind = torch.optim.Adam if phase.optimizer == "adam" else torch.optim.AdamW
    return kind(groups, betas=phase.betas)
