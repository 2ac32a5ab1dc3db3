"""Weights of convolutions that meet nothing but padding, such as those around the center of a 5x5 kernel on one pixel.

Their gradient is 0. In bfloat16 on a CPU, torch 2.13 leaves it as it finds it in memory: NaN, from time to time, in
weights that no answer depends on, so that the loss stays as it was and the model file is refused afterwards.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.training.phase import TrainablePart


@torch.no_grad()
def zero_unseen_gradients(net: TrainablePart, x: Tensor) -> None:
    """Set the gradients of such weights to 0 from now on. `x` (N, …) is an input of `net`, with the size of all."""
    seen: dict[nn.Conv2d, Tensor] = {}

    def hook(layer: nn.Conv2d, inputs: tuple[Any, ...], _: Tensor) -> None:
        if not isinstance(layer.padding, str):
            found = _seen(layer, inputs[0].shape[-2:])
            seen[layer] = seen[layer] | found if layer in seen else found

    handles = [m.register_forward_hook(hook) for m in net.modules() if isinstance(m, nn.Conv2d)]
    modes = {module: module.training for module in net.modules()}
    net.eval()(x)
    for module, mode in modes.items():
        module.training = mode
    for handle in handles:
        handle.remove()
    for layer, mask in seen.items():
        if layer.weight.requires_grad and not mask.all():
            layer.weight.register_hook(partial(_zeroed, ~mask.to(layer.weight.device)))


def _seen(layer: nn.Conv2d, size: torch.Size) -> Tensor:
    """(height, width) bool: the positions of the kernel that meet at least one pixel of a map of this size."""
    sides = []
    for k, (length, kernel) in enumerate(zip(size, layer.kernel_size, strict=True)):
        stride, padding, dilation = layer.stride[k], int(layer.padding[k]), layer.dilation[k]
        outputs = (length + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        pixels = torch.arange(outputs)[:, None] * stride - padding + torch.arange(kernel) * dilation
        sides.append(((pixels >= 0) & (pixels < length)).any(0))
    return sides[0][:, None] & sides[1]


def _zeroed(mask: Tensor, gradient: Tensor) -> Tensor:
    return gradient.masked_fill(mask, 0)
