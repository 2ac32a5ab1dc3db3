"""Optimizers: the parameters that train, their groups and learning rates."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from linnaeus.errors import UserError, did_you_mean
from linnaeus.models import Network
from linnaeus.recipe import Phase


def training_stages(model: Network, train: Sequence[str]) -> tuple[str, ...]:
    """The stages that `train` names, in the order of the network. Raises UserError for an unknown stage."""
    stages = model.stages
    if model.frozen and {"all", *model.frozen} & set(train):
        trainable = [stage for stage in stages if stage not in model.frozen]
        raise UserError(
            f"phase.train = {list(train)}: {', '.join(model.frozen)} of {model.arch['name']} cannot be trained; use "
            f"train = {trainable}"
        )
    # `all` includes stages that another architecture calls differently.
    if "all" in train:
        return stages
    for name in train:
        if name not in stages:
            known = [*stages, "all"]
            raise UserError(
                f"phase.train: {name!r} is not a stage{did_you_mean(name, known)}; stages: {', '.join(known)}"
            )
    # In network order: the lowest of them decides the cut.
    return tuple(stage for stage in stages if stage in train)


def check_norms(model: Network, phase: Phase) -> None:
    """Raise UserError for a setting of BatchNorms where the network has none, such as a vision transformer."""
    if phase.norms != "train" and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise UserError(f'phase.norms = "{phase.norms}": {model.arch["name"]} has no BatchNorm; remove the setting')


def differs_by_process(model: Network, stages: Sequence[str], norms: str) -> bool:
    """Whether several processes train `stages` to other weights than one: each normalizes by its own images."""
    return norms == "train" and any(
        isinstance(module, nn.modules.batchnorm._BatchNorm) and model.stage_of(name) in stages
        for name, module in model.named_modules()
    )


def freeze(model: Network, stages: Sequence[str]) -> None:
    """Require gradients for the parameters of `stages` only."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(model.stage_of(name) in stages)


def train_mode(model: Network, stages: Sequence[str], norms: str = "train") -> None:
    """Set `stages` to training mode and the rest to evaluation mode; with `norms` "frozen" every BatchNorm, too.

    A frozen BatchNorm must not keep collecting statistics: its output would drift although its weights are fixed.
    """
    for name, module in model.named_modules():
        training = True
        if name and not isinstance(module, nn.Sequential | nn.ModuleList):
            fixed = norms == "frozen" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            training = model.stage_of(name) in stages and not fixed
        if module.training != training:  # assigning to a module takes longer than looking
            module.training = training


def parameter_groups(model: Network, phase: Phase) -> list[dict[str, Any]]:
    """One group of trained parameters for each stage (two if norms are not decayed), in the order of the stages.

    The learning rate falls by the factor `lr_decay` with each stage away from the last (Howard and Ruder 2018,
    section 3.2).
    """
    assert isinstance(phase.lr, float), "the learning rate is a number by now, also if the recipe says auto"
    stages = model.stages
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        depth = stages.index(model.stage_of(name))  # 0 is the first stage
        decays = phase.decay_norms or parameter.ndim > 1  # biases and BatchNorm have one dimension
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
        raise UserError(f"phase.train = {phase.train}: these stages have no parameters to train; name other stages")
    return [groups[key] for key in sorted(groups)]


def build_optimizer(model: Network, phase: Phase) -> torch.optim.Optimizer:
    """The optimizer of a phase, over the parameters that train."""
    groups = parameter_groups(model, phase)
    fused = True if all(_fusible(p) for group in groups for p in group["params"]) else None
    if phase.optimizer == "sgd":
        return eager(torch.optim.SGD)(groups, momentum=phase.momentum, nesterov=phase.nesterov, fused=fused)
    kind = torch.optim.Adam if phase.optimizer == "adam" else torch.optim.AdamW
    return eager(kind)(groups, betas=phase.betas, fused=fused)


def eager(kind: type[torch.optim.Optimizer]) -> Any:
    """A subclass of an optimizer of torch that does the same without importing torch's compiler.

    torch wraps these methods for the case that they are compiled, which ours never are, and the wrappers import the
    compiler in the first call: 0.9 s of the processor.
    """
    methods: dict[str, Any] = {
        name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "state_dict", "load_state_dict")
    }
    return type(kind.__name__, (kind,), methods | {"step": torch.no_grad()(inspect.unwrap(kind.step))})


def _fusible(p: torch.Tensor) -> bool:
    """Whether a fused optimizer updates `p` correctly: in one pass over the memory, a quarter of the time on a CPU.

    It ignores strides, so that weights, gradients and averages must have one layout. Autograd keeps that of the weights
    if they are dense in memory.
    """
    dense = p.is_contiguous() or (p.ndim == 4 and p.is_contiguous(memory_format=torch.channels_last))
    return p.is_cuda or (p.device.type == "cpu" and p.is_floating_point() and dense)
