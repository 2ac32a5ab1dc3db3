"""Where in the image the positions of a stage's map lie."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from linnaeus.models.layers import pair, to_meta
from linnaeus.models.network import Network

Line = tuple[float, float]
"""(first, step), in pixels: position i looks at first + i * step, counted from the middle of the first pixel."""


def centers(network: Network, height: int, width: int) -> tuple[dict[int, Line], dict[int, Line]]:
    """Where rows and columns of maps lie in images of height x width: (height of a map -> line, width -> line).

    A convolution of stride 2 on an even size looks at every second position from the first on, not at the middle of
    each two: five such layers put the 7 x 7 positions of a ResNet 16 pixels left and above of where an even spread
    over 224 would have them. Each layer that makes the map smaller moves and stretches the line by its padding, kernel
    and stride (Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks"); of branches
    side by side the first counts, for what is added or concatenated lies at the same place. Where such layers do not
    explain a map's size, as may be in code of one's own, it is not there: `evenly` is the next best.
    """
    lines: tuple[dict[int, Line], dict[int, Line]] = ({height: (0.0, 1.0)}, {width: (0.0, 1.0)})

    def follow(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for axis, known in enumerate(lines):
            before, after = inputs[0].shape[2 + axis], output.shape[2 + axis]
            if before in known and after not in known:
                kernel, stride, padding = (
                    pair(each)[axis] for each in (module.kernel_size, module.stride, module.padding)
                )
                first, step = known[before]
                reach = (pair(module.dilation)[axis] if hasattr(module, "dilation") else 1) * (kernel - 1)
                known[after] = first + step * (reach / 2 - padding), step * stride

    # A copy without weights knows all shapes, and the network itself is left alone.
    memo: dict[int, Any] = {id(t): to_meta(t) for t in (*network.parameters(), *network.buffers())}
    try:
        twin = copy.deepcopy(network, memo).eval()
        for module in twin.modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                module.register_forward_hook(follow)
        with torch.no_grad():
            twin(torch.empty(1, network.arch["channels"], height, width, device="meta"))
    except Exception:  # code of one's own may ask for values, which this copy has not
        return {height: (0.0, 1.0)}, {width: (0.0, 1.0)}
    return lines


def evenly(pixels: int, positions: int) -> Line:
    """Positions each in the middle of its share of the pixels."""
    step = pixels / positions
    return (step - 1) / 2, step


def stretch(maps: Tensor, where: tuple[dict[int, Line], dict[int, Line]], height: int, width: int) -> Tensor:
    """Maps (N, h, w) -> (N, height, width): as they are at the places that `where` gives, smooth between them.

    Outside of the outermost places it stays for half a step and then fades, for nobody looks there. Nothing gets above
    the largest value.
    """
    rows, columns = where[0].get(maps.shape[1]), where[1].get(maps.shape[2])
    down = _weights(maps, 1, rows or evenly(height, maps.shape[1]), height)
    across = _weights(maps, 2, columns or evenly(width, maps.shape[2]), width)
    return down @ maps @ across.T


def _weights(maps: Tensor, axis: int, line: Line, pixels: int) -> Tensor:
    """(pixels, positions): how much each position counts at each pixel; rows sum to 1, less where they fade."""
    positions = torch.arange(maps.shape[axis], device=maps.device, dtype=maps.dtype)
    at = (torch.arange(pixels, device=maps.device, dtype=maps.dtype) - line[0]) / line[1]
    inside = at.clamp(0, maps.shape[axis] - 1)
    # A raised cosine sums to 1 as straight lines do, without their creases, which would look like diamonds.
    fade = _raised_cosine((at - inside).abs() - 0.5)
    return fade[:, None] * _raised_cosine((inside[:, None] - positions).abs())


def _raised_cosine(steps: Tensor) -> Tensor:
    """1 up to 0 steps away, 0 from 1 step on."""
    return (1 + torch.cos(torch.pi * steps.clamp(0, 1))) / 2
