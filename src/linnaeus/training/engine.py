"""Where the computation runs: device, precision, processes. The only file that knows Lightning Fabric."""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from linnaeus.device import choose_device
from linnaeus.errors import UserError


class Engine:
    """A device, a precision and a process group, behind the few verbs that the loop needs."""

    def __init__(self, device: str = "auto", precision: str = "auto"):
        kind = choose_device(device).type
        self.precision = _precision(kind, precision)
        self.fabric = Fabric(accelerator=kind, devices=1, precision=self.precision)  # type: ignore[arg-type]
        self.device = self.fabric.device
        if kind == "cuda":
            torch.backends.cudnn.benchmark = True  # one size of picture all along: the search pays for itself
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    @property
    def rank(self) -> int:
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        return self.fabric.world_size

    def setup(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap network and optimizer for this device and precision. The bare network stays usable for evaluation."""
        net.to(self.device)
        return self.fabric.setup(net, optimizer)

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, net: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Scale the gradient so that its norm is at most `norm`."""
        self.fabric.clip_gradients(net, optimizer, max_norm=norm, error_if_nonfinite=False)

    def scaler_state(self) -> dict[str, Any]:
        """What mixed precision of 16 bits remembers of how gradients are scaled; empty in any other precision."""
        return self.fabric._precision.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        self.fabric._precision.load_state_dict(state)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass, for a network that is not wrapped."""
        return self.fabric.autocast()

    def machine(self) -> dict[str, Any]:
        """What the last bits of a result depend on, beside the recipe."""
        return {
            "device": self.device.type,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }

    def describe(self) -> str:
        """Device, precision and threads, in words."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
        else:
            name = self.device.type
        return f"{name}, {self.precision}"


def seed_step(seed: int, epoch: int, step: int) -> None:
    """Seed what a network draws by itself (dropout), so that step `step` of `epoch` is the same whenever it is run."""
    torch.manual_seed(((seed * 1_000_003 + epoch) * 1_000_003 + step) % 2**63)


def hardware() -> dict[str, Any]:
    """What a time measured here was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _precision(kind: str, precision: str) -> str:
    """`auto` is mixed precision on a GPU and full precision elsewhere: bf16 is slower than fp32 on most CPUs."""
    if precision == "auto":
        if kind == "cuda":
            return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"
        return "32-true"
    if precision == "16-mixed" and kind == "cpu":
        raise UserError("precision = 16-mixed: not for CPU; use 32 or auto")
    return "32-true" if precision == "32" else precision


def _processor() -> str:
    """The processor's name as the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device file, not a path of ours
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
