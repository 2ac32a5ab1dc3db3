"""Where the computation runs: device, precision, processes. The only file that knows Lightning Fabric."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import platform
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy
from torch import Tensor, nn

from linnaeus.device import choose_device
from linnaeus.distributed.environment import Processes, processes
from linnaeus.distributed.group import TIMEOUT, Peers
from linnaeus.errors import UserError


class Engine(Peers):
    """A device, a precision and a process group, behind the few verbs that the loop needs."""

    def __init__(self, device: str = "auto", precision: str = "auto"):
        kind = choose_device(device).type
        here = processes()
        self.precision = _precision(kind, precision)
        self.fabric = _fabric(kind, self.precision, here)
        self.device = self.fabric.device
        super().__init__(here, _group_for_words(kind) if here.world > 1 else None)
        if kind == "cuda":
            torch.backends.cudnn.benchmark = True  # one size of image all along: the search pays for itself
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    @property
    def overlaps(self) -> bool:
        """Whether gradients are added up while the backward pass goes on, by the wrapped network.

        DDP orders them anew after its first step, and from three processes on gloo adds in an order that follows: a
        run that is resumed would have other last bits. On CPU exactness is worth more than what overlaps there.
        """
        return self.device.type != "cpu" or self.world < 3

    def setup(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Wrap network and optimizer for this device and precision. The bare network stays usable for evaluation."""
        net.to(self.device)
        return self.fabric.setup(net, optimizer)

    def alone(self, wrapped: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Backward passes that keep their gradients to themselves: of all pieces of a batch but the last."""
        if self.world == 1:
            return nullcontext()
        return self.fabric.no_backward_sync(wrapped, enabled=enabled)  # type: ignore[arg-type]

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def clip(self, net: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Scale the gradient so that its norm is at most `norm`."""
        self.fabric.clip_gradients(net, optimizer, max_norm=norm, error_if_nonfinite=False)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def average_gradients(self, net: nn.Module) -> None:
        """What the wrapped network does by itself in a backward pass, for a batch of which not everybody had a part."""
        trained = [p for p in net.parameters() if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = self.sum(torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None])) / self.world
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = part.view_as(p).clone()

    @torch.no_grad()
    def average_buffers(self, net: nn.Module) -> None:
        """One value everywhere for what each process collected of its own samples: the statistics of BatchNorm."""
        buffers = [b for module in net.modules() if module.training for b in module.buffers(recurse=False)]
        if self.world == 1 or not buffers:
            return
        for kind in dict.fromkeys(b.dtype for b in buffers):
            alike = [b for b in buffers if b.dtype == kind]
            flat = torch.cat([b.reshape(-1) for b in alike])
            if kind.is_floating_point:
                flat = self.sum(flat) / self.world
            else:  # a counter: who had no part in a batch is one behind
                torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.MAX)
            for buffer, part in zip(alike, flat.split([b.numel() for b in alike]), strict=True):
                buffer.copy_(part.view_as(buffer))

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
            **({"processes": self.world} if self.world > 1 else {}),
        }

    def describe(self) -> str:
        """Device, precision and threads, in words."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            name = f"CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
        else:
            name = self.device.type
        many = f", {self.world} processes" if self.world > 1 else ""
        machines = f" on {self.processes.nodes} machines" if self.processes.nodes > 1 else ""
        return f"{name}, {self.precision}{many}{machines}"


def seed_step(seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Seed what a network draws by itself (dropout), so that step `step` of `epoch` is the same whenever it is run.

    With the rank: several processes would otherwise drop the same of their different samples.
    """
    torch.manual_seed((((rank * 1_000_003 + seed) * 1_000_003 + epoch) * 1_000_003 + step) % 2**63)


def _fabric(kind: str, precision: str, here: Processes) -> Fabric:
    """Fabric for this process, in its group where there are several."""
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    if here.world == 1:
        plugins = [LightningEnvironment()]  # SLURM's variables are there in a batch job of one process too
        return Fabric(accelerator=kind, devices=1, precision=precision, plugins=plugins)  # type: ignore[arg-type]
    _check_devices(kind, here)
    environment = _environment(here)
    # Buffers are averaged after every step instead of being overwritten before the next.
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # its new name and old
    strategy = DDPStrategy(timeout=TIMEOUT, **{name: False})  # type: ignore[arg-type]
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # nothing a user can do about
    fabric = Fabric(
        accelerator=kind, devices=here.local_world, num_nodes=here.nodes, strategy=strategy,
        precision=precision, plugins=[environment],  # type: ignore[arg-type]
    )  # fmt: skip
    fabric.launch()
    return fabric


def meet(device: str) -> Peers:
    """This process and those that run its command with it, where each runs a network of its own on `device`.

    Answers are told, and gradients are not added up: no network is wrapped, and precision stays as with one process.
    """
    here, kind = processes(), choose_device(device).type
    if here.world == 1:
        return Peers(here)
    _check_devices(kind, here)
    if not torch.distributed.is_initialized():
        environment = _environment(here)
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = environment.main_address, str(environment.main_port)
        torch.distributed.init_process_group("gloo", rank=here.rank, world_size=here.world, timeout=TIMEOUT)
    if kind == "cuda":
        torch.cuda.set_device(here.local_rank)
    return Peers(here)


def _check_devices(kind: str, here: Processes) -> None:
    """Raise UserError unless every process of this machine can have a device of its own."""
    if kind == "mps":
        raise UserError("--devices: an Apple GPU is one device; use --device cpu for several processes")
    if kind == "cuda" and torch.cuda.device_count() < here.local_world:
        count = torch.cuda.device_count()
        raise UserError(f"{here.local_world} processes on this machine and {count} GPUs: as many processes as GPUs")


def _environment(here: Processes) -> SLURMEnvironment | TorchElasticEnvironment:
    """Where the processes meet, as who started them says it."""
    return SLURMEnvironment(auto_requeue=False) if here.slurm else TorchElasticEnvironment()


@functools.cache
def _group_for_words(kind: str) -> Any:
    """A group for objects rather than numbers: through gloo, so that a GPU need not wait for them."""
    return None if kind == "cpu" else torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)


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
