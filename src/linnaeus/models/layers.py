"""The layer table: output shape, parameters and multiply-adds of each layer of a network.

A convolution from c_in to c_out channels with a k x k kernel, stride s, padding p and g groups has

    output size     floor((size + 2 p - k) / s) + 1     in each direction
    parameters      k * k * c_in / g * c_out            plus c_out if it has a bias
    multiply-adds   k * k * c_in / g * c_out * (output height * output width)

A linear layer counts as a convolution with k = 1 and one position. Multiply-adds are those of convolutions and linear
layers for one image; BatchNorm, pooling, ReLU and additions are not counted, as in published figures. One multiply-add
is two floating-point operations.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.models import MODELS, arguments_of
from linnaeus.models.network import Network
from linnaeus.text import align


@dataclass(frozen=True)
class Cost:
    """What a network costs for one image of its usual size."""

    classes: int
    channels: int
    size: int  # side of the image in pixels
    millions: float  # millions of parameters
    billions: float  # billions of multiply-adds


COSTS: dict[str, Cost] = {
    "resnet18": Cost(1000, 3, 224, 11.690, 1.814),
    "resnet34": Cost(1000, 3, 224, 21.798, 3.664),
    "resnet50": Cost(1000, 3, 224, 25.557, 4.089),
    "resnet101": Cost(1000, 3, 224, 44.549, 7.801),
    "resnet152": Cost(1000, 3, 224, 60.193, 11.514),
    "inception_v1": Cost(1000, 3, 224, 7.006, 1.583),
    "resnet20": Cost(10, 3, 32, 0.270, 0.041),
    "resnet32": Cost(10, 3, 32, 0.464, 0.069),
    "resnet44": Cost(10, 3, 32, 0.659, 0.097),
    "resnet56": Cost(10, 3, 32, 0.853, 0.125),
    "resnet110": Cost(10, 3, 32, 1.728, 0.253),
    "plain20": Cost(10, 3, 32, 0.270, 0.041),
    "plain32": Cost(10, 3, 32, 0.464, 0.069),
    "plain44": Cost(10, 3, 32, 0.659, 0.097),
    "plain56": Cost(10, 3, 32, 0.853, 0.125),
    "mini_resnet": Cost(10, 1, 28, 0.323, 0.0094),
    "digit_resnet": Cost(10, 1, 28, 0.106, 0.0043),
}
"""The totals of `layer_table`, stored because computing them for all networks would take five seconds."""

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Layer:
    """One layer of a network, for one image."""

    name: str  # as in `named_modules()`: "layer1.0.conv1"
    stage: str
    kind: str  # class of the module: "Conv2d", "BatchNorm2d", …
    output: tuple[int, ...]  # shape without the batch dimension: (C, H, W) or (C,)
    kernel: tuple[int, ...]  # (height, width); empty if the layer has no kernel
    stride: tuple[int, ...]
    parameters: int
    multiply_adds: int
    stage_output: tuple[int, ...] = ()  # output shape of the whole stage, which may end in several parallel layers


def layer_table(network: Network, size: int | None = None) -> list[Layer]:
    """All layers with parameters, and the poolings, in the order in which they run on one image.

    `size` is the side of the image in pixels, by default the network's usual size.

    A copy of the network runs on the meta device, which tracks shapes without computing anything. It runs in evaluation
    mode, so auxiliary heads are not in the table. `network` itself is not changed and may be on the meta device.
    """
    # Copying tensor by tensor to the meta device avoids a second set of weights in memory.
    memo: dict[int, Any] = {id(t): to_meta(t) for t in (*network.parameters(), *network.buffers())}
    shapes_only = copy.deepcopy(network, memo).eval()
    rows: list[Layer] = []
    hooks = []
    for name, module in shapes_only.named_modules():
        if isinstance(module, POOLS) or any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_hook(_recorder(rows, name, network.stage_of(name))))
    size = size or network.usual_size
    image = torch.empty(1, network.arch["channels"], size, size, device="meta")
    with torch.no_grad():
        outputs, logits = shapes_only.stage_outputs(image, network.stages[:-1])
    for hook in hooks:
        hook.remove()
    shapes = {stage: tuple(x.shape[1:]) for stage, x in (*outputs.items(), (network.stages[-1], logits))}
    return [replace(row, stage_output=shapes[row.stage]) for row in rows]


def to_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type without storage; a parameter stays a parameter."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def _recorder(rows: list[Layer], name: str, stage: str) -> Callable[[nn.Module, Any, Tensor], None]:
    """A forward hook that appends the layer `name` to `rows`."""

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(
            Layer(
                name=name,
                stage=stage,
                kind=type(module).__name__,
                output=tuple(output.shape[1:]),
                kernel=pair(getattr(module, "kernel_size", ())),
                stride=pair(getattr(module, "stride", ())),
                parameters=sum(p.numel() for p in module.parameters(recurse=False)),
                multiply_adds=_multiply_adds(module, output),
            )
        )

    return record


def _multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Multiply-adds of one layer for one image: each element of the output is a dot product with the weights."""
    if isinstance(module, nn.Conv2d):
        return math.prod(output.shape[1:]) * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return math.prod(output.shape[1:]) * module.in_features
    return 0


def pair(value: int | Sequence[int]) -> tuple[int, ...]:
    """3 -> (3, 3); a sequence becomes a tuple."""
    return (value, value) if isinstance(value, int) else tuple(value)


def totals(rows: Iterable[Layer]) -> tuple[int, int]:
    """(parameters, multiply-adds) of all rows together."""
    rows = list(rows)
    return sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)


def render(rows: Sequence[Layer]) -> str:
    """The table as text: a line for each stage, followed by its layers, and the totals at the end."""
    cells = [("layer", "kind", "output", "kernel", "stride", "parameters", "multiply-adds")]
    for stage in dict.fromkeys(row.stage for row in rows):
        members = [row for row in rows if row.stage == stage]
        parameters, adds = totals(members)
        cells.append((stage, "", _times(members[-1].stage_output), "", "", f"{parameters:,}", f"{adds:,}"))
        for row in members:
            numbers = (f"{row.parameters:,}", f"{row.multiply_adds:,}" if row.multiply_adds else "")
            cells.append(
                (f"  {row.name}", row.kind, _times(row.output), _times(row.kernel), _times(row.stride), *numbers)
            )
    parameters, adds = totals(rows)
    cells.append(("total", "", "", "", "", f"{parameters:,}", f"{adds:,}"))
    cells.append(("", "", "", "", "", f"{parameters / 1e6:.2f} M", multiply_adds(adds / 1e9)))
    return "\n".join(align(cells, "<<<<<>>", indent=""))


def summary() -> str:
    """All networks as a text table: the cost at their usual size, and their arguments with defaults."""
    cells = [("model", "parameters", "multiply-adds", "for", "arguments")]
    for name in MODELS:
        cost = COSTS[name]
        arguments = ", ".join(f"{key} = {_toml(default)}" for key, default in arguments_of(name).items())
        task = f"{cost.size} x {cost.size} x {cost.channels}, {cost.classes} classes"
        cells.append((name, f"{cost.millions:.2f} M", multiply_adds(cost.billions), task, arguments))
    return "\n".join(align(cells, "<>><<", indent=""))


def multiply_adds(billions: float) -> str:
    """`4.09 G`, or below 0.01 G millions: `3.7 M`."""
    return f"{billions:.2f} G" if billions >= 0.01 else f"{billions * 1e3:.1f} M"


def _toml(value: object) -> str:
    """A default value as it is written in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def _times(shape: Sequence[int]) -> str:
    """(64, 56, 56) -> '64 x 56 x 56'."""
    return " x ".join(map(str, shape))
