"""Any ONNX graph from images to features as a frozen backbone: `onnx/FILE`, with a new linear head.

The graph runs in ONNX Runtime on the CPU and cannot be trained. It is a tensor of bytes of the network, so that the
model file holds it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linnaeus.errors import UserError
from linnaeus.models.backbones.library_body import pool_tokens, token_map
from linnaeus.models.backbones.onnx_features import (
    MOST_BYTES,
    USUAL_SIZE,
    GraphInfo,
    image_size,
    read_graph,
    run,
    session_of,
)
from linnaeus.models.network import Network, StageFunction, check_choice, classifier
from linnaeus.models.weights.pretrained import PretrainedWeights

PREFIX = "onnx/"
POOLS = ("", "cls", "mean", "cls+mean", "flatten")
"""How tokens and maps become features: the first token, the mean, both, or all values; empty: the mean of maps."""


class OnnxBackbone(Network):
    """A graph of ONNX, frozen, and a linear head."""

    frozen = ("body",)

    def __init__(
        self,
        name: str,
        classes: int,
        channels: int = 3,
        *,
        output: str = "",
        pool: str = "",
        normalize: dict[str, list[float]] | None = None,
        graph: dict[str, Any] | None = None,
    ):
        """`output`: a tensor of the graph; empty for its only output. `pool`: one of POOLS.

        `normalize`: `mean` and `std` of the images; ImageNet's by default. `graph`: the entries of `GraphInfo`, from a
        model file that holds the graph; None to read FILE.
        """
        super().__init__()
        check_choice(name, "pool", pool, POOLS)
        if graph is None:
            content, info = read_graph(_file(name), output)
            with torch.device("cpu"):  # also where only shapes are wanted: the graph is read once
                data = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        else:
            info = GraphInfo(**graph)
            # The size comes from a file, and decides an allocation.
            if not 0 < info.bytes <= MOST_BYTES:
                raise UserError(f"{name}: a graph of {info.bytes} bytes does not fit into a model file")
            data = torch.zeros(info.bytes, dtype=torch.uint8)
        _check_normalize(name, normalize)
        self.info = info
        self.register_buffer("body", data)
        _check_pool(name, pool, info)
        self._pool, self._session = pool, None
        arguments = {"output": output, "pool": pool, "normalize": normalize, "graph": info.to_dict()}
        # The name without its folder: model files must not depend on where the graph was.
        self.arch = {"name": f"{PREFIX}{_file(name).name}", "classes": classes, "channels": channels}
        self.arch["arguments"] = arguments
        self.usual_size = info.size or USUAL_SIZE
        self.head_input = int(self.pool(torch.zeros(1, *info.shape)).shape[1])
        self.fc = classifier(self.head_input, classes)

    @property
    def stages(self) -> tuple[str, ...]:
        return ("body", "head")

    def function_of(self, stage: str) -> StageFunction:
        return self._head if stage == "head" else self._features

    def pool(self, x: Tensor) -> Tensor:
        """The output of the graph -> features (N, F); features (N, F) pass unchanged."""
        if x.dim() == 2:
            return x
        if self._pool == "flatten":
            return x.flatten(1)
        if x.dim() == 4:
            return x.mean((1, 2) if self.info.layout == "NHWC" else (2, 3))
        return pool_tokens(x, self._pool)

    def as_map(self, stage: str, x: Tensor) -> Tensor | None:
        if x.dim() == 3 and self._pool == "mean":
            return token_map(x)
        if x.dim() == 4 and self.info.layout == "NHWC":
            return x.permute(0, 3, 1, 2)
        return super().as_map(stage, x)

    def _head(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x))

    def _features(self, x: Tensor) -> Tensor:
        if self.info.size and x.shape[-1] != self.info.size:
            raise ValueError(f"the graph takes images of {self.info.size} pixels")
        if x.device.type == "meta":
            return torch.empty(len(x), *self.info.shape, device=x.device)
        if x.requires_grad and torch.is_grad_enabled():
            raise UserError(f"{self.arch['name']}: an ONNX graph has no gradients; use --method occlusion")
        if self._session is None:
            self._session = session_of(self.content())
        features = run(self._session, self.info, x.detach().float().cpu().numpy())
        return torch.from_numpy(np.ascontiguousarray(features)).to(x.device)

    def content(self) -> bytes:
        """The graph, serialized."""
        data: Any = self.body
        return data.cpu().numpy().tobytes()

    def __getstate__(self) -> dict[str, Any]:
        """For copies: each opens a session of its own, which cannot be copied."""
        return {**self.__dict__, "_session": None}

    def stage_of(self, name: str) -> str:
        return "body" if name.split(".", 1)[0] == "body" else "head"


def _file(name: str) -> Path:
    return Path(name.removeprefix(PREFIX)).expanduser()


def _check_pool(name: str, pool: str, info: GraphInfo) -> None:
    """Raise UserError if `pool` does not fit the output, or has to be chosen."""
    shape = [None, *info.shape]
    if len(shape) == 3 and not pool:
        raise UserError(
            f"{name}: output {info.output!r} has {info.shape[0]} tokens of {info.shape[1]} values; choose how they "
            'become features with arguments = { pool = "cls" }, "mean" or "cls+mean"'
        )
    if (len(shape) == 2 and pool) or (len(shape) == 4 and "cls" in pool):
        raise UserError(
            f"{name}: pool = {pool!r} does not fit output {info.output!r} of shape {info.shape}; leave it out"
        )


def _check_normalize(name: str, normalize: Any) -> None:
    """Raise UserError unless these are `mean` and `std`, each a list of three numbers."""
    if normalize is None:
        return
    lists: list[Any] = (
        [normalize.get(key) for key in ("mean", "std")] if isinstance(normalize, dict) and len(normalize) == 2 else []
    )
    numbers = [isinstance(v, int | float) for values in lists if isinstance(values, list) for v in values]
    if len(numbers) != 6 or not all(numbers) or min(lists[1]) <= 0:
        example = "{ mean = [0.5, 0.5, 0.5], std = [0.5, 0.5, 0.5] }"
        raise UserError(f"{name}: normalize = {normalize}: write {example}")


def pretrained_weights(name: str, folder: Path | None = None) -> PretrainedWeights:
    """The graph of a file as weights: they need no other file, and no preprocessing is known but their size."""
    size = image_size(_file(name))
    return PretrainedWeights(
        name,
        model=name,
        # 0.875 is the usual share of the center crop (224 of 256).
        resize=round(size / 0.875),
        size=size,
    )
