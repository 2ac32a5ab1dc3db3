"""Device, precision and process group of a training run."""

from __future__ import annotations

import atexit
import copy
import functools
import inspect
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.console import counted
from linnaeus.device import choose_device
from linnaeus.distributed.environment import ProcessInfo, meeting, process_info, slurm_address
from linnaeus.distributed.group import TIMEOUT, ProcessGroup
from linnaeus.distributed.precision import BF16, CHANNELS_LAST, MIXED, full_name
from linnaeus.errors import UserError


class Engine(ProcessGroup):
    """Device, precision and process group, behind the few operations that the training loop needs."""

    def __init__(self, device: str = "auto", precision: str = "auto", info: ProcessInfo | None = None):
        """`info`: the place of this process; by default as its launcher says."""
        kind = choose_device(device).type
        info = info or process_info()
        self.precision = full_name(kind, precision)
        self.device = _join(kind, info)
        super().__init__(info, _object_group(kind) if info.world_size > 1 else None)
        self.scaler = torch.amp.GradScaler(kind) if self.precision == "16-mixed" else None
        if kind == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def alone(self) -> Engine:
        """An engine on the same device that ignores the other processes; for decisions of rank 0."""
        return self if self.world_size == 1 else Engine(self.device.type, self.precision, ProcessInfo())

    def with_precision(self, precision: str) -> Engine:
        """The same engine with another precision, one of those for a CPU."""
        twin = copy.copy(self)
        twin.precision = precision
        return twin

    @property
    def memory_format(self) -> torch.memory_format:
        """The layout of networks: tensor cores take convolutions with channels last only, and so does fast bfloat16."""
        last = self.device.type == "cuda" or (self.device.type == "cpu" and self.precision in (CHANNELS_LAST, BF16))
        return torch.channels_last if last else torch.contiguous_format

    @property
    def reduces_in_backward(self) -> bool:
        """Whether the wrapped network sums gradients over the processes during the backward pass.

        DDP reorders its buckets after the first step, and with three or more processes gloo's order of summation
        follows, so a resumed run would differ in the last bits. On CPU exact resuming is worth more than the overlap.
        """
        return self.device.type != "cpu" or self.world_size < 3

    def setup(self, net: nn.Module) -> nn.Module:
        """Move `net` to the device and wrap it for its process group. `net` itself stays usable for evaluation."""
        # Also back to the usual layout: a phase that follows another one must compute as if it were resumed.
        net.to(self.device, memory_format=self.memory_format)  # type: ignore[call-overload]
        if self.world_size == 1:
            return net
        # Buffers are averaged after every step, so DDP must not overwrite them before the next one. The parameter that
        # says so has two names, an old and a new one.
        known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")  # users cannot act on it
        devices = None if self.device.type == "cpu" else [self.device.index]
        return nn.parallel.DistributedDataParallel(net, device_ids=devices, **{name: False})  # type: ignore[arg-type]

    def no_sync(self, wrapped: nn.Module, enabled: bool = True) -> AbstractContextManager[Any]:
        """Do not sum gradients over the processes in this block: for all micro-batches of a batch but the last."""
        if enabled and isinstance(wrapped, nn.parallel.DistributedDataParallel):
            return wrapped.no_sync()
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients, which are scaled in 16-bit precision."""
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def clip_gradients(self, net: nn.Module, optimizer: torch.optim.Optimizer, norm: float) -> None:
        """Scale the gradient so that its norm is at most `norm`."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(net.parameters(), norm)

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step of the optimizer; in 16-bit precision it is skipped where a gradient is not finite."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum `tensor` over all processes, in place."""
        if self.world_size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    @torch.no_grad()
    def average_gradients(self, net: nn.Module) -> None:
        """Average the gradients over the processes, as DDP does in a backward pass.

        Needed when a process has no sample of a batch and therefore runs no backward pass.
        """
        trained = [p for p in net.parameters() if p.requires_grad]
        for p in trained:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        # One flat tensor: a single collective instead of one for each parameter.
        flat = self.all_reduce_sum(torch.cat([p.grad.reshape(-1) for p in trained if p.grad is not None]))
        flat = flat / self.world_size
        for p, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            p.grad = torch.empty_like(p).copy_(part.view_as(p))  # in the layout of the weights, for fused optimizers

    @torch.no_grad()
    def average_buffers(self, net: nn.Module) -> None:
        """Average the BatchNorm statistics, which each process collects from its own samples."""
        if self.world_size == 1:
            return
        buffers = [b for module in net.modules() if module.training for b in module.buffers(recurse=False)]
        for dtype in dict.fromkeys(b.dtype for b in buffers):
            same_type = [b for b in buffers if b.dtype == dtype]
            flat = torch.cat([b.reshape(-1) for b in same_type])
            if dtype.is_floating_point:
                flat = self.all_reduce_sum(flat) / self.world_size
            else:  # step counters: a process without a sample of this batch is one step behind
                torch.distributed.all_reduce(flat, torch.distributed.ReduceOp.MAX)
            for buffer, part in zip(same_type, flat.split([b.numel() for b in same_type]), strict=True):
                buffer.copy_(part.view_as(buffer))

    def scaler_state(self) -> dict[str, Any]:
        """State of the gradient scaler of 16-bit mixed precision; empty in any other precision."""
        return {} if self.scaler is None else self.scaler.state_dict()

    def load_scaler_state(self, state: dict[str, Any]) -> None:
        if self.scaler is not None:
            self.scaler.load_state_dict(state)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of the forward pass."""
        dtype = MIXED.get(self.precision)
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    @contextmanager
    def kernel_search(self, enabled: bool) -> Iterator[None]:
        """Search the fastest convolutions of a GPU for each shape in this block, which takes it seconds.

        It pays for shapes that come hundreds of times; elsewhere a choice without measuring is nearly as fast, and the
        same in every process, so that figures do not differ in the last digits.
        """
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = enabled and self.device.type == "cuda"
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def environment(self) -> dict[str, Any]:
        """The settings of the machine on which the last bits of a result depend."""
        return {
            "device": self.device.type,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **({"processes": self.world_size} if self.world_size > 1 else {}),
        }

    def describe(self, precision: str) -> str:
        """Device, threads, and precision of the training, in words. `precision`: as the recipe has it."""
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        elif self.device.type == "cpu":
            name = f"CPU ({platform.machine()}, {counted(torch.get_num_threads(), 'thread')})"
        else:
            name = self.device.type
        many = f", {self.world_size} processes" if self.world_size > 1 else ""
        machines = f" on {self.nodes} machines" if self.nodes > 1 else ""
        chosen_later = precision == "auto" and self.device.type == "cpu"
        return f"{name}{'' if chosen_later else f', {self.precision}'}{many}{machines}"


def seed_step(seed: int, epoch: int, step: int, rank: int = 0) -> None:
    """Seed the random numbers that a network draws itself (dropout), so that a step is the same when it is repeated.

    The rank is part of the seed: otherwise all processes would use the same dropout mask.
    """
    number = (((rank * 1_000_003 + seed) * 1_000_003 + epoch) * 1_000_003 + step) % 2**63
    # Not torch.manual_seed: for every kind of device that is not in use it formats a stack trace, half a millisecond.
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(number)
    if _has_mps():
        torch.mps.manual_seed(number)


@functools.cache
def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _join(kind: str, info: ProcessInfo) -> torch.device:
    """The device of this process, which joins the process group if there are several processes."""
    if info.world_size == 1:
        return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    _check_devices(kind, info)
    device = torch.device(kind, info.local_rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    _meet("nccl" if kind == "cuda" else "gloo", info)
    return device


def join_process_group(device: str) -> ProcessGroup:
    """Join the other processes of a command that trains nothing, such as `predict`.

    Every process runs its own network on `device`, without DDP and with the precision of a single process.
    """
    info, kind = process_info(), choose_device(device).type
    if info.world_size == 1:
        return ProcessGroup(info)
    _check_devices(kind, info)
    _meet("gloo", info)
    if kind == "cuda":
        torch.cuda.set_device(info.local_rank)
    return ProcessGroup(info)


def _meet(backend: str, info: ProcessInfo) -> None:
    """Make the process group, at the address that the variables of the launcher name."""
    if torch.distributed.is_initialized():
        return
    if info.slurm:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = slurm_address(os.environ)
    with meeting(info):  # a process that never comes is waited for in C++
        torch.distributed.init_process_group(backend, rank=info.rank, world_size=info.world_size, timeout=TIMEOUT)
    # A thread of gloo that frees the last tensor needs the interpreter: while it shuts down that aborts the process.
    atexit.register(_leave)


def _leave() -> None:
    """End the threads of the process group."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _check_devices(kind: str, info: ProcessInfo) -> None:
    """Raise UserError unless every process of this machine can have its own device."""
    if kind == "mps":
        raise UserError("--devices: an Apple GPU is a single device; use --device cpu for several processes")
    if kind == "cuda" and torch.cuda.device_count() < info.local_world_size:
        count = torch.cuda.device_count()
        raise UserError(
            f"{info.local_world_size} processes on this machine, but only {count} GPUs; start at most one process "
            "for each GPU"
        )


@functools.cache
def _object_group(kind: str) -> Any:
    """A gloo group for Python objects: NCCL would move them through GPU memory. None on CPU: the default is gloo."""
    return None if kind == "cpu" else torch.distributed.new_group(backend="gloo", timeout=TIMEOUT)


def hardware(device: torch.device) -> dict[str, Any]:
    """Description of the hardware that a run on `device` used, stored beside measured times."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _processor() -> str:
    """Name of the processor, as the operating system reports it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device file, not a path of ours
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"
