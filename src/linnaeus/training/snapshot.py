"""The exact state of a phase: taken between two steps, and restored in another process."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.distributed.engine import Engine
from linnaeus.training.ema import MovingAverage
from linnaeus.training.loss import EpochTotals
from linnaeus.training.schedule import Schedule


@dataclass
class Snapshot:
    """The state from which a phase continues: tensors, and numbers that JSON represents exactly.

    Both refer to the live objects, so write the snapshot before the next step. Nothing depends on the rank: all
    processes that train one network have the same state.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass
class FitState:
    """Everything that changes from step to step in fit()."""

    net: torch.nn.Module  # the trained module, whose `model` is the Network
    optimizer: torch.optim.Optimizer

    schedule: Schedule
    average: MovingAverage | None
    engine: Engine
    micro_batch: int | None  # samples that go through the network at once in this process; None: the whole batch
    epoch: int = 0  # finished epochs of the phase
    step: int = 0  # finished steps of this epoch
    since_best: int = 0  # epochs since the best one, for early stopping
    seconds: float = 0.0  # duration of this epoch so far
    totals: EpochTotals = field(init=False)
    _parameters: list[torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.totals = EpochTotals(self.engine.device)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.totals = EpochTotals(self.engine.device)

    def snapshot(self) -> Snapshot:
        """The state now; call it between two steps."""
        tensors = _add_prefix("net", self.net.state_dict()) | _add_prefix(
            "random", _torch_generators(self.engine.device)
        )
        numbers: dict[str, Any] = {
            "epoch": self.epoch,
            "step": self.step,
            "since_best": self.since_best,
            "seconds": self.seconds,
            "samples": self.totals.samples,
            "rates": [group["lr"] for group in self.optimizer.param_groups],
            "schedule": self.schedule.state_dict(),
            "scaler": self.engine.scaler_state(),
            "random": _python_generators(),
        }
        tensors["totals.loss"] = self.totals.loss
        if self.totals.correct is not None:
            tensors["totals.right"] = self.totals.correct
        if self.average is not None:
            tensors |= _add_prefix("average", self.average.model.state_dict())
            numbers["averaged"] = self.average.steps
        # By position: parameters have no names in an optimizer.
        for i, parameter in enumerate(self._parameters):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{name}"] = value
                else:
                    numbers.setdefault("optimizer", {})[f"{i}.{name}"] = value
        return Snapshot(tensors, numbers)

    def restore(self, snapshot: Snapshot) -> None:
        """Continue from `snapshot`."""
        tensors, numbers = snapshot.tensors, snapshot.numbers
        self.net.load_state_dict(_strip_prefix("net", tensors))
        self.epoch, self.step, self.since_best = numbers["epoch"], numbers["step"], numbers["since_best"]
        self.seconds = numbers["seconds"]
        if self.average is not None:
            self.average.model.load_state_dict(_strip_prefix("average", tensors))
            self.average.steps = numbers["averaged"]
        # The plateau schedule keeps no rate of its own: it multiplies those of the optimizer.
        for group, rate in zip(self.optimizer.param_groups, numbers["rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict(numbers["schedule"])
        self.engine.load_scaler_state(numbers["scaler"])
        for key, value in [*_strip_prefix("optimizer", tensors).items(), *numbers.get("optimizer", {}).items()]:
            index, _, name = key.partition(".")
            parameter = self._parameters[int(index)]
            self.optimizer.state[parameter][name] = _in_layout_of(parameter, value)
        self.totals.restore(tensors["totals.loss"], tensors.get("totals.right"), numbers["samples"])
        # Last, so that nothing draws a random number after it.
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and self.engine.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random.cuda"])
        _set_python_generators(numbers["random"])


def network_state(snapshot: Snapshot) -> dict[str, Tensor]:
    """The tensors of the network in a snapshot, by their names in the Network."""
    return _strip_prefix("net.model", snapshot.tensors)


def _add_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _strip_prefix(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start with `prefix.`, without it."""
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _in_layout_of(parameter: Tensor, value: Any) -> Any:
    """`value` of the optimizer in the memory layout of its parameter.

    torch picks a kernel by layout, and two kernels may differ in rounding, so the layout is part of the exact state.
    """
    if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    if isinstance(value, Tensor) and parameter.is_cuda:
        return value.to(parameter.device)  # where a fused optimizer counts its steps
    return value


def _torch_generators(device: torch.device) -> dict[str, Tensor]:
    """State of torch's generators, which a network may use; our own draws come from (seed, epoch, sample).

    A run on the CPU leaves a GPU alone: reading its generator would take a context there, some 300 MB, and fails in a
    forked process.
    """
    states = {"torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _python_generators() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}},
    }


def _set_python_generators(states: dict[str, Any]) -> None:
    version, internal, gauss = states["python"]  # JSON has turned the tuples into lists
    random.setstate((version, tuple(internal), gauss))
    state = dict(states["numpy"])
    state["state"] = {**state["state"], "key": np.array(state["state"]["key"], dtype=np.uint32)}
    np.random.set_state(state)
