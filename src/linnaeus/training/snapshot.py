"""Where a phase stands, to the bit: taken between two steps, and put back in another process."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.distributed.engine import Engine
from linnaeus.training.ema import Average
from linnaeus.training.schedule import Schedule
from linnaeus.training.step import Totals


@dataclass
class Snapshot:
    """All that a phase needs to go on: tensors, and numbers that JSON holds exactly. Both are the live ones: write now.

    Nothing in it depends on the rank: several processes that train one network have the same.
    """

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass
class Standing:
    """Where fit() is. All that changes from step to step hangs here."""

    net: torch.nn.Module
    """What trains, with a Network as its `model`."""
    optimizer: torch.optim.Optimizer
    """Not wrapped."""
    schedule: Schedule
    average: Average | None
    engine: Engine
    totals: Totals
    micro: int | None
    """Samples that go through the network at once."""
    epoch: int = 0
    """Epochs of the phase that are over."""
    step: int = 0
    """Steps of this epoch that are over."""
    since_best: int = 0
    """Epochs without a better model (early stop)."""
    seconds: float = 0.0
    """Of this epoch so far."""
    _slots: list[torch.nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self._slots = [p for group in self.optimizer.param_groups for p in group["params"]]

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.totals = Totals(self.engine.device)

    def take(self) -> Snapshot:
        """Where the phase stands now; call it between two steps."""
        tensors = _prefixed("net", self.net.state_dict()) | _prefixed("random", _generators())
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
        if self.totals.right is not None:
            tensors["totals.right"] = self.totals.right
        if self.average is not None:
            tensors |= _prefixed("average", self.average.model.state_dict())
            numbers["averaged"] = self.average.steps
        for i, parameter in enumerate(self._slots):
            for name, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer.{i}.{name}"] = value
                else:
                    numbers.setdefault("optimizer", {})[f"{i}.{name}"] = value
        return Snapshot(tensors, numbers)

    def put_back(self, found: Snapshot) -> None:
        """Continue where `found` was taken."""
        tensors, numbers = found.tensors, found.numbers
        self.net.load_state_dict(_without("net", tensors))
        self.epoch, self.step, self.since_best = numbers["epoch"], numbers["step"], numbers["since_best"]
        self.seconds = numbers["seconds"]
        if self.average is not None:
            self.average.model.load_state_dict(_without("average", tensors))
            self.average.steps = numbers["averaged"]
        for group, rate in zip(self.optimizer.param_groups, numbers["rates"], strict=True):
            group["lr"] = rate
        self.schedule.load_state_dict(numbers["schedule"])
        self.engine.load_scaler_state(numbers["scaler"])
        for key, value in [*_without("optimizer", tensors).items(), *numbers.get("optimizer", {}).items()]:
            slot, _, name = key.partition(".")
            parameter = self._slots[int(slot)]
            self.optimizer.state[parameter][name] = _like(value, parameter)
        self.totals.put_back(tensors["totals.loss"], tensors.get("totals.right"), numbers["samples"])
        torch.set_rng_state(tensors["random.torch"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
        _set_python_generators(numbers["random"])


def network_state(found: Snapshot) -> dict[str, Tensor]:
    """The network's own tensors in a snapshot."""
    return _without("net.model", found.tensors)


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _without(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    start = prefix + "."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _like(value: Any, parameter: Tensor) -> Any:
    """`value` as the optimizer had it: in the parameter's memory layout, since the order of memory may decide which of
    two ways, equal but for rounding, torch takes."""
    if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value


def _generators() -> dict[str, Tensor]:
    """torch's generators. Our own draws come from (seed, epoch, sample), a network's own code from these."""
    found = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def _python_generators() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**state, "state": {**state["state"], "key": state["state"]["key"].tolist()}},
    }


def _set_python_generators(found: dict[str, Any]) -> None:
    version, internal, gauss = found["python"]
    random.setstate((version, tuple(internal), gauss))
    state = dict(found["numpy"])
    state["state"] = {**state["state"], "key": np.array(state["state"]["key"], dtype=np.uint32)}
    np.random.set_state(state)
