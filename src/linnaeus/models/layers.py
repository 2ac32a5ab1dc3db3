"""The layer table: what each layer gives, and what it costs."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.models import MODELS, arguments_of
from linnaeus.models.network import Network

FORMULAS = """\
A convolution with a k x k kernel, stride s and padding p, from c_in to c_out channels in g groups:
  output size     floor((size + 2 p - k) / s) + 1     in each direction
  parameters      k * k * c_in / g * c_out            and c_out more where it has a bias
  multiply-adds   k * k * c_in / g * c_out * (output height * output width)
A linear layer is the same with k = 1 and one position. Multiply-adds are those of convolutions and linear layers for
one image; BatchNorm, pooling, ReLU and additions are left out, as published figures leave them out. One multiply-add
is two floating-point operations."""

KNOWN: dict[str, tuple[int, int, int, float, float]] = {
    "resnet18": (1000, 3, 224, 11.690, 1.814),
    "resnet34": (1000, 3, 224, 21.798, 3.664),
    "resnet50": (1000, 3, 224, 25.557, 4.089),
    "resnet101": (1000, 3, 224, 44.549, 7.801),
    "resnet152": (1000, 3, 224, 60.193, 11.514),
    "inception_v1": (1000, 3, 224, 7.006, 1.583),
    "resnet20": (10, 3, 32, 0.270, 0.041),
    "resnet32": (10, 3, 32, 0.464, 0.069),
    "resnet44": (10, 3, 32, 0.659, 0.097),
    "resnet56": (10, 3, 32, 0.853, 0.125),
    "resnet110": (10, 3, 32, 1.728, 0.253),
    "plain20": (10, 3, 32, 0.270, 0.041),
    "plain32": (10, 3, 32, 0.464, 0.069),
    "plain44": (10, 3, 32, 0.659, 0.097),
    "plain56": (10, 3, 32, 0.853, 0.125),
    "mini_resnet": (10, 1, 28, 0.323, 0.009),
    "digit_resnet": (10, 1, 28, 0.106, 0.004),
}
"""Classes, channels and size -> millions of parameters, billions of multiply-adds: the totals of `layer_table`, kept
because listing all networks should not take the five seconds of counting them."""

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@dataclass(frozen=True)
class Layer:
    """One layer of a network, for one image."""

    name: str  # as in named_modules(): "layer1.0.conv1"
    stage: str
    kind: str  # "Conv2d", "BatchNorm2d", …
    output: tuple[int, ...]  # shape without the batch: (C, H, W) or (C,)
    kernel: tuple[int, ...]  # () where the layer has none
    stride: tuple[int, ...]
    parameters: int
    multiply_adds: int
    stage_output: tuple[int, ...] = ()  # what its stage gives in the end, which may be several layers side by side


def layer_table(network: Network, size: int | None = None, channels: int | None = None) -> list[Layer]:
    """The layers with parameters, and the pools, in the order in which one image of `size` pixels meets them.

    `size` is the image's side, by default what the network was designed for; `channels` by default its own.

    Nothing is computed: a copy runs on torch's meta device, which knows shapes only. It runs as for evaluation, so
    auxiliary heads are not in the table. `network` may itself be on the meta device and is not changed.
    """
    # Copying to meta tensor by tensor keeps a second set of weights from ever existing.
    memo: dict[int, Any] = {id(t): to_meta(t) for t in (*network.parameters(), *network.buffers())}
    shapes_only = copy.deepcopy(network, memo).eval()
    rows: list[Layer] = []
    hooks = []
    for name, module in shapes_only.named_modules():
        if isinstance(module, POOLS) or any(True for _ in module.parameters(recurse=False)):
            hooks.append(module.register_forward_hook(recorder(rows, name, network)))
    size = size or network.usual_size
    channels = channels or network.arch["channels"]
    with torch.no_grad():
        given, logits = shapes_only.look(torch.empty(1, channels, size, size, device="meta"), network.stages[:-1])
    for hook in hooks:
        hook.remove()
    shapes = {stage: tuple(x.shape[1:]) for stage, x in (*given.items(), (network.stages[-1], logits))}
    return [replace(row, stage_output=shapes[row.stage]) for row in rows]


def to_meta(tensor: Tensor) -> Tensor:
    """A tensor of the same shape and type without contents; a parameter stays a parameter."""
    empty = torch.empty_like(tensor, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


def recorder(rows: list[Layer], name: str, network: Network) -> Any:
    """A forward hook that appends the layer `name` to `rows`."""

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(
            Layer(
                name=name,
                stage=network.stage_of(name),
                kind=type(module).__name__,
                output=tuple(output.shape[1:]),
                kernel=pair(getattr(module, "kernel_size", ())),
                stride=pair(getattr(module, "stride", ())),
                parameters=sum(p.numel() for p in module.parameters(recurse=False)),
                multiply_adds=multiply_adds(module, output),
            )
        )

    return record


def multiply_adds(module: nn.Module, output: Tensor) -> int:
    """Multiply-adds of one layer for one image: every entry of the output is one dot product with the weights."""
    if isinstance(module, nn.Conv2d):
        return math.prod(output.shape[1:]) * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return math.prod(output.shape[1:]) * module.in_features
    return 0


def pair(value: int | Sequence[int]) -> tuple[int, ...]:
    """3 -> (3, 3); a sequence stays what it is."""
    return (value, value) if isinstance(value, int) else tuple(value)


def totals(rows: Iterable[Layer]) -> tuple[int, int]:
    """(parameters, multiply-adds) of all the rows."""
    rows = list(rows)
    return sum(row.parameters for row in rows), sum(row.multiply_adds for row in rows)


def render(rows: Sequence[Layer]) -> str:
    """The table as text in aligned columns: a heading for each stage, its layers, and the totals."""
    cells = [("layer", "kind", "output", "kernel", "stride", "parameters", "multiply-adds")]
    for stage in dict.fromkeys(row.stage for row in rows):
        members = [row for row in rows if row.stage == stage]
        parameters, adds = totals(members)
        cells.append((stage, "", times(members[-1].stage_output), "", "", f"{parameters:,}", f"{adds:,}"))
        for row in members:
            numbers = (f"{row.parameters:,}", f"{row.multiply_adds:,}" if row.multiply_adds else "")
            cells.append((f"  {row.name}", row.kind, times(row.output), times(row.kernel), times(row.stride), *numbers))
    parameters, adds = totals(rows)
    cells.append(("total", "", "", "", "", f"{parameters:,}", f"{adds:,}"))
    cells.append(("", "", "", "", "", f"{parameters / 1e6:.2f} M", f"{adds / 1e9:.2f} G"))
    return aligned(cells, right=(5, 6))


def summary() -> str:
    """All networks as text: what each costs at the size it was designed for, its arguments and their defaults."""
    cells = [("model", "parameters", "multiply-adds", "for", "arguments")]
    for name in MODELS:
        classes, channels, size, millions, billions = KNOWN[name]
        arguments = ", ".join(f"{key} = {toml(default)}" for key, default in arguments_of(name).items())
        task = f"{size} x {size} x {channels}, {classes} classes"
        cells.append((name, f"{millions:.2f} M", f"{billions:.2f} G", task, arguments))
    return aligned(cells, right=(1, 2))


def toml(value: object) -> str:
    """A default as one would write it in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def aligned(cells: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    """Lines of text cells as columns, those in `right` flush right."""
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for line in cells:
        columns = [t.rjust(w) if i in right else t.ljust(w) for i, (t, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(columns).rstrip())
    return "\n".join(lines)


def times(shape: Sequence[int]) -> str:
    """(64, 56, 56) -> '64 x 56 x 56'."""
    return " x ".join(map(str, shape))
