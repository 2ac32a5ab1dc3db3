"""Receptive fields: which image pixel each position of a feature map is centered on."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from linnaeus.models.layers import pair
from linnaeus.models.network import Network

Line = tuple[float, float]
"""(first, step) in pixels: position i is centered on first + i * step, counted from the middle of the first pixel."""

IDENTITY: Line = (0.0, 1.0)


@dataclass(frozen=True)
class Centers:
    """Centers of the receptive fields of a network's feature maps, by the size of the map."""

    rows: dict[int, Line]  # height of a map -> where its rows are centered
    columns: dict[int, Line]  # width of a map -> where its columns are centered
    sizes: dict[str, tuple[int, int]]  # stage -> height and width of its map, for the stages that have one


_known: WeakKeyDictionary[Network, dict[tuple[int, int], Centers]] = WeakKeyDictionary()


def receptive_field_centers(network: Network, height: int, width: int) -> Centers:
    """Where the positions of the feature maps are centered in images of height x width.

    A convolution with stride 2 on an even size is centered on every second position from the first on, not halfway
    between two. After five such layers, the 7 x 7 positions of a ResNet lie 16 pixels to the left of and above those of
    an even spread over 224 pixels. Each layer that shrinks a map shifts and stretches the line by its padding, kernel
    and stride (Araujo, Norris and Sim 2019, "Computing receptive fields of convolutional neural networks"). Of parallel
    branches the first one counts, because maps that are added or concatenated are centered alike.

    Sizes that such layers do not explain, as in a user's own code, are missing: use `evenly_spaced` for them.
    """
    known = _known.setdefault(network, {})
    if (height, width) not in known:
        known[height, width] = _follow_layers(network, height, width)
    return known[height, width]


def _follow_layers(network: Network, height: int, width: int) -> Centers:
    """The centers, by a forward pass of an empty image."""
    centers = Centers({height: IDENTITY}, {width: IDENTITY}, {})

    def follow(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for axis, lines in enumerate((centers.rows, centers.columns)):
            before, after = inputs[0].shape[2 + axis], output.shape[2 + axis]
            if before in lines and after not in lines:
                kernel, stride, padding = pair(module.kernel_size), pair(module.stride), pair(module.padding)
                dilation = pair(module.dilation)[axis] if hasattr(module, "dilation") else 1
                first, step = lines[before]
                middle = dilation * (kernel[axis] - 1) / 2 - padding[axis]  # of the first window, in input positions
                lines[after] = first + step * middle, step * stride[axis]

    # A copy of the modules, which shares their tensors: hooks must not be called by other threads. Not on the meta
    # device, which imports torch's compiler for two seconds.
    memo: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    try:
        followed = copy.deepcopy(network, memo).eval()
        for module in followed.modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                module.register_forward_hook(follow)
        return replace(centers, sizes=_map_sizes(followed, height, width))
    except Exception:  # a user's code need not survive a copy, or hooks
        return Centers({height: IDENTITY}, {width: IDENTITY}, _map_sizes(network, height, width))


def _map_sizes(network: Network, height: int, width: int) -> dict[str, tuple[int, int]]:
    """Stage -> height and width of its map for an empty image."""
    first = next(network.parameters(), torch.zeros(()))
    empty = torch.zeros(1, network.arch["channels"], height, width, device=first.device, dtype=first.dtype)
    with torch.no_grad():
        outputs, _ = network.stage_outputs(empty, network.stages)
    maps = {stage: network.as_map(stage, y) for stage, y in outputs.items()}
    return {stage: (y.shape[2], y.shape[3]) for stage, y in maps.items() if y is not None}


def evenly_spaced(pixels: int, positions: int) -> Line:
    """The line of `positions` that divide `pixels` into equal parts, each centered in its part."""
    step = pixels / positions
    return (step - 1) / 2, step


def upsample(maps: Tensor, centers: Centers, height: int, width: int) -> Tensor:
    """Maps (N, h, w) -> (N, height, width): exact at the receptive field centers, smoothly interpolated between them.

    Beyond the outermost centers a map keeps its value for half a step and then fades to zero, because no position looks
    there. No output exceeds the largest input.
    """
    rows, columns = centers.rows.get(maps.shape[1]), centers.columns.get(maps.shape[2])
    down = _weights(maps, 1, rows or evenly_spaced(height, maps.shape[1]), height)
    across = _weights(maps, 2, columns or evenly_spaced(width, maps.shape[2]), width)
    return down @ maps @ across.T


def _weights(maps: Tensor, axis: int, line: Line, pixels: int) -> Tensor:
    """Interpolation weights (pixels, positions). Rows sum to 1, or to less where the map fades."""
    positions = torch.arange(maps.shape[axis], device=maps.device, dtype=maps.dtype)
    at = (torch.arange(pixels, device=maps.device, dtype=maps.dtype) - line[0]) / line[1]
    inside = at.clamp(0, maps.shape[axis] - 1)
    # Neighboring raised cosines sum to 1, like the weights of linear interpolation, but without its visible creases.
    fade = _raised_cosine((at - inside).abs() - 0.5)
    return fade[:, None] * _raised_cosine((inside[:, None] - positions).abs())


def _raised_cosine(distance: Tensor) -> Tensor:
    """1 at distance 0 and below, 0 from distance 1 on, a half cosine between; in steps of the map."""
    return (1 + torch.cos(torch.pi * distance.clamp(0, 1))) / 2
