"""A simulated GPU: tensors that say they are on `cuda:0`, are computed on the CPU, and refuse to meet tensors there.

It finds what fails on a machine with a GPU only: a tensor that was made on the other device, and `.numpy()` without
`.cpu()`. It says nothing about speed, kernels or autocast. `simulate_gpu` patches torch for the rest of the process,
so call it in a fork.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda", 0)
MEMORY = 8 << 30
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default, ATEN._foreach_copy_.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default)
"""Operations that take indices from the CPU."""


class GpuTensor(Tensor):
    """A tensor on the simulated GPU; its numbers lie in `on_cpu`.

    To autograd it is on the meta device, because a build of torch without CUDA has no backward pass for `cuda`.
    """

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> GpuTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            values.size(),
            strides=values.stride(),
            storage_offset=values.storage_offset(),
            dtype=values.dtype,
            device=torch.device("meta"),
            requires_grad=values.requires_grad,
        )

    def __init__(self, values: Tensor):
        self.on_cpu = values

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["on_cpu"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> GpuTensor:
        return GpuTensor(parts["on_cpu"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return compute(func, args, kwargs or {})


class GpuMode(TorchDispatchMode):
    """Makes tensors on the simulated GPU where `device` says so."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled, and to skip it imports `torch._dynamo`, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with self:  # in inference mode also operations that consist of others arrive here
            parts = func.decompose(*args, **(kwargs or {}))
        return compute(func, args, kwargs or {}) if parts is NotImplemented else parts


class WithIndex(TorchFunctionMode):
    """Says `cuda:0` for `cuda`: torch without CUDA cannot look up which GPU is the current one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is torch.nn.functional.one_hot and isinstance(args[0], GpuTensor):
            return func(args[0].cpu(), *args[1:], **(kwargs or {})).to(GPU)  # else it counts on the meta device
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], GpuTensor):
            x, index, *value = args
            index = tuple(map(_indices, index)) if isinstance(index, tuple) else _indices(index)
            if value and not isinstance(value[0], Tensor):
                value = [torch.as_tensor(value[0], dtype=x.dtype, device=GPU)]
            return func(x, index, *value)
        return func(*map(_with_index, args), **{name: _with_index(value) for name, value in (kwargs or {}).items()})


def _indices(part: Any) -> Any:
    """Indices on the GPU, which torch would move to the meta device, where they have no values."""
    return torch.as_tensor(part).to(GPU) if isinstance(part, list | np.ndarray | Tensor) else part


def _with_index(leaf: Any) -> Any:
    return GPU if isinstance(leaf, str | torch.device) and str(leaf) == "cuda" else leaf


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute one operation on the CPU, and say that its result is on the device where it would be."""
    tensors = [*_tensors(args), *_tensors(kwargs.values())]
    on_gpu = [t for t in tensors if isinstance(t, GpuTensor)]
    if on_gpu and func not in COPIES and not (func in INDEXING and isinstance(args[0], GpuTensor)):
        for t in tensors:
            if not isinstance(t, GpuTensor) and t.ndim > 0:
                raise RuntimeError(
                    f"Expected all tensors to be on the same device, but {func} got cuda:0 and {t.device} {[*t.shape]}"
                )
    to = kwargs.get("device")
    if to is not None and to.type == "meta" and (on_gpu or torch._C._current_graph_task_id() >= 0):
        to = GPU  # filled in by torch, from a tensor or for a gradient of zeros
    if to is not None:
        kwargs = {**kwargs, "device": torch.device("cpu") if to.type == "cuda" else to, "pin_memory": False}
    result = func(*_map(_values, args), **{name: _map(_values, value) for name, value in kwargs.items()})
    if not (on_gpu if to is None else to.type == "cuda"):
        return result
    alias = func._schema.returns[0].alias_info if func._schema.returns else None
    if alias is not None and alias.is_write:
        return kwargs.get("out", args[0])  # an operation in place
    of_inference = torch.is_inference_mode_enabled() if alias is None else args[0].is_inference()
    with torch.inference_mode(of_inference):  # a view has the kind of its tensor
        return _map(lambda leaf: GpuTensor(leaf) if isinstance(leaf, Tensor) else leaf, result)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _map(change: Callable[[Any], Any], value: Any) -> Any:
    """`torch.utils._pytree.tree_map` for lists and tuples, in a third of its time."""
    return type(value)(_map(change, part) for part in value) if type(value) in (list, tuple) else change(value)


def _values(leaf: Any) -> Any:
    return leaf.on_cpu if isinstance(leaf, GpuTensor) else leaf


@contextmanager
def simulated_gpu() -> Iterator[None]:
    """Let this process, which should be a fork, have a GPU."""
    vars(torch.cuda).update(
        is_available=lambda: True,
        _lazy_init=lambda: None,
        device_count=lambda: 1,
        is_bf16_supported=lambda *given, **more: True,
        get_device_name=lambda *given: "simulated GPU",
        mem_get_info=lambda *given: (MEMORY, MEMORY),
        get_rng_state=lambda *given: torch.get_rng_state(),
    )
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated"):
        vars(torch.cuda)[name] = lambda *given: 0
    for name in ("synchronize", "empty_cache", "set_device", "set_rng_state", "reset_peak_memory_stats"):
        vars(torch.cuda)[name] = lambda *given: None
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device=)` moves what it has made on the CPU
    Tensor.pin_memory = lambda self, *given: self  # type: ignore[method-assign]
    run = threading.Thread.run

    def run_on_gpu(self: threading.Thread) -> None:
        with WithIndex(), GpuMode():  # modes are local to a thread
            run(self)

    threading.Thread.run = run_on_gpu  # type: ignore[method-assign]
    export = torch.onnx.export

    def export_without(*args: Any, **more: Any) -> Any:
        """Tracing needs plain tensors; a thread with the real `run` has no modes."""
        thread = ThreadPoolExecutor(1)
        with patch.object(threading.Thread, "run", run):
            return thread.submit(export, *args, **more).result()

    torch.onnx.export = export_without
    with WithIndex(), GpuMode():
        yield
