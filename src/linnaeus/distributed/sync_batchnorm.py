"""Synchronized BatchNorm: statistics over the samples of all processes, as if one process had the whole batch.

Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1, over the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from linnaeus.errors import UserError


@contextmanager
def synced_batchnorm(model: nn.Module) -> Iterator[None]:
    """Synchronize every BatchNorm of `model` inside this block; parameters and buffers stay the same objects.

    Uses torch's SyncBatchNorm on a GPU, and `CpuSyncBatchNorm` on CPU, where torch's refuses to run. Raises UserError
    for a norm that does something else besides, which its replacement would leave out.
    """
    # Collected first, because replacing modules changes what is walked through.
    places = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in list(parent.named_children())
        if isinstance(child, _BatchNorm) and not isinstance(child, CpuSyncBatchNorm)
    ]
    for parent, name, norm in places:
        setattr(parent, name, _synced_twin(norm))
    try:
        yield
    finally:
        for parent, name, norm in places:
            # The mode may have changed inside the block.
            norm.train(getattr(parent, name).training)
            setattr(parent, name, norm)


def _synced_twin(norm: _BatchNorm) -> nn.Module:
    """A synchronized BatchNorm that shares the parameters and buffers of `norm`."""
    on_gpu = next(iter(norm.state_dict().values())).is_cuda if norm.state_dict() else False
    kind: type[Any] = nn.SyncBatchNorm if on_gpu else CpuSyncBatchNorm
    twin = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin._parameters.update(norm._parameters)
    twin._buffers.update(norm._buffers)
    if type(norm).forward is not _BatchNorm.forward:
        _continue_as(norm, twin)
    return twin.train(norm.training)


def _continue_as(norm: _BatchNorm, twin: nn.Module) -> None:
    """Let `twin` go on as the norms of timm do, which include dropout and activation."""
    parts = dict(norm.named_children())
    if [*parts] != ["drop", "act"]:
        raise UserError(
            f"{type(norm).__name__}: computes more than BatchNorm, so its statistics cannot be synchronized; leave "
            'phase.norms at "train", or train in one process'
        )
    for name, part in parts.items():  # under the same names, so that names of weights stay
        twin.add_module(name, part)
    twin.register_forward_hook(lambda module, inputs, output: parts["act"](parts["drop"](output)))


class CpuSyncBatchNorm(_BatchNorm):
    """BatchNorm over the samples of all processes, on CPU.

    (N, C, …) -> the same shape. N may differ between processes, and be 0.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, …), got {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
        sums = _AllReduceSum.apply(torch.cat([x.sum(dims), count]))
        n = sums[-1]
        mean = sums[:-1] / n
        # Two passes: E[x²] - E[x]² would lose digits as the difference of two large numbers.
        centered = x - mean.view(shape)
        variance = _AllReduceSum.apply(centered.square().sum(dims)) / n
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), momentum)
                # The running variance is the unbiased estimate, as in torch.
                self.running_var.lerp_((variance * n / (n - 1).clamp(min=1)).to(self.running_var), momentum)
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes. Every process uses the sum, so its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total
