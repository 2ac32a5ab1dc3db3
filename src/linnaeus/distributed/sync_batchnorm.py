"""BatchNorm whose statistics are those of all processes' samples, so that a batch divided among them is one batch.

Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1, over the whole batch; what others call synchronized BatchNorm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextmanager
def synced_norms(model: nn.Module) -> Iterator[None]:
    """Every BatchNorm of `model` synchronized meanwhile, with its own parameters and statistics.

    On a GPU by torch's SyncBatchNorm, which refuses tensors on CPU; there by `SyncNorm`.
    """
    replaced: list[tuple[nn.Module, str, nn.modules.batchnorm._BatchNorm]] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, SyncNorm):
                replaced.append((parent, name, child))
    for parent, name, child in replaced:
        setattr(parent, name, _twin(child))
    try:
        yield
    finally:
        for parent, name, child in replaced:
            child.train(getattr(parent, name).training)
            setattr(parent, name, child)


def _twin(norm: nn.modules.batchnorm._BatchNorm) -> nn.Module:
    """A synchronized BatchNorm that shares the parameters and buffers of `norm`."""
    on_gpu = next(iter(norm.state_dict().values())).is_cuda if norm.state_dict() else False
    kind: type[Any] = nn.SyncBatchNorm if on_gpu else SyncNorm
    twin = kind(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    twin._parameters.update(norm._parameters)
    twin._buffers.update(norm._buffers)
    return twin.train(norm.training)


class SyncNorm(nn.modules.batchnorm._BatchNorm):
    """(N, C, …) -> the same shape; N may differ from process to process, and be 0. For CPU."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, …), got {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        dims, shape = [0, *range(2, x.ndim)], (1, -1, *[1] * (x.ndim - 2))
        count = torch.full((1,), x.numel() / x.shape[1], dtype=x.dtype, device=x.device)
        sums = _Sum.apply(torch.cat([x.sum(dims), count]))
        n = sums[-1]
        mean = sums[:-1] / n
        centered = x - mean.view(shape)  # in two passes: a difference of large squares would cost digits
        variance = _Sum.apply(centered.square().sum(dims)) / n
        if self.track_running_stats and self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                keep = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), keep)
                self.running_var.lerp_((variance * n / (n - 1).clamp(min=1)).to(self.running_var), keep)
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        return y if self.weight is None else y * self.weight.view(shape) + self.bias.view(shape)


class _Sum(torch.autograd.Function):
    """The sum over all processes. Each of them has it, so the gradient is a sum as well."""

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
