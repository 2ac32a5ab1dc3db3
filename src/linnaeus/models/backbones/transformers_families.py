"""How the classes of the library transformers compute their features: which modules run in which order."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

GROUPS = 3
"""Stages that the blocks of a vision transformer below its last one are divided into.

The last block is a stage of its own: in it the class token reads the patch tokens for the last time, so those that
enter it are the last ones that can be explained.
"""


@dataclass(frozen=True)
class Family:
    """How the networks of one class compute their features, as names of modules that are called in order."""

    kind: Literal["whole", "tokens", "rotary", "patches", "windows", "maps"] = "whole"
    """`tokens`: blocks on tokens; `rotary`: with the angles of their positions; `patches`: the stem takes patches;
    `windows`: blocks on tokens with the size of their grid; `maps`: blocks on maps; `whole`: a single stage."""
    stem: tuple[str, ...] = ()
    """The first is called on images."""
    blocks: str = ""
    norm: str = ""
    """Called at the end of the last stage."""
    pooler: str = ""
    """Module of the library's own pooling, where the network has it; otherwise the class token, or the mean."""
    prefix: int = 0
    """Class and distillation tokens. The configuration counts register tokens."""

    @property
    def tokens(self) -> bool:
        return self.kind in ("tokens", "rotary", "patches")

    def library_pool(self, body: Any, x: Tensor) -> Tensor:
        """Tokens (N, T, C) or maps (N, C, H, W) -> features (N, F), as the library does it by default."""
        pooler = getattr(body, self.pooler, None) if self.pooler else None
        if x.dim() == 4:
            x = x.mean((2, 3))
            return pooler(x) if isinstance(pooler, nn.LayerNorm) else x
        if pooler is not None:
            return pooler(x)
        return x[:, 0] if self.prefix else x.mean(1)


VIT = Family("tokens", ("embeddings",), "layers", "layernorm", "pooler", prefix=1)
DINO = Family("tokens", ("embeddings",), "encoder.layer", "layernorm", prefix=1)
CONVNEXT = Family("maps", ("embeddings",), "encoder.stages", "", "layernorm")
RESNET = Family("maps", ("embedder",), "encoder.stages")
SWIN = Family("windows", ("embeddings",), "encoder.layers", "layernorm")

FAMILIES = {
    "ViTModel": VIT,
    "ViTMSNModel": VIT,
    "DeiTModel": Family("tokens", ("embeddings",), "layers", "layernorm", "pooler", prefix=2),
    "Dinov2Model": DINO,
    "Dinov2WithRegistersModel": DINO,
    "DINOv3ViTModel": Family("rotary", ("embeddings",), "model.layer", "norm", prefix=1),
    "SiglipVisionModel": Family("tokens", ("embeddings",), "encoder.layers", "post_layernorm", "head"),
    "Siglip2VisionModel": Family("patches", ("embeddings",), "encoder.layers", "post_layernorm", "head"),
    "CLIPVisionModel": Family("tokens", ("embeddings", "pre_layrnorm"), "encoder.layers", "post_layernorm", prefix=1),
    "ConvNextModel": CONVNEXT,
    "ConvNextV2Model": CONVNEXT,
    "DINOv3ConvNextModel": Family("maps", (), "model.stages", "", "layer_norm"),
    "ResNetModel": RESNET,
    "RegNetModel": RESNET,
    "SwinModel": SWIN,
    "Swinv2Model": SWIN,
}
"""Class in transformers -> its stages. All other classes are a single stage."""


def family_of(body: nn.Module) -> Family:
    """How a network computes its features: as a whole where another version of the library names its modules anew."""
    family, modules = FAMILIES.get(type(body).__name__, Family()), dict(body.named_modules())
    needed = [name for name in (*family.stem, family.blocks, family.norm) if name]
    return family if all(name in modules for name in needed) else Family()


def layout(body: nn.Module, family: Family) -> dict[str, tuple[str, ...]]:
    """Stage -> the modules of `body` that it calls, in order. The empty name is `body` itself."""
    if family.kind == "whole":
        return {"body": ("",)}
    blocks: Any = body.get_submodule(family.blocks)
    # Blocks of tokens all have one shape, so they are grouped; maps change theirs from stage to stage.
    bounds = _bounds(len(blocks)) if family.tokens else [(i, i) for i in range(len(blocks))]
    prefix = "blocks" if family.tokens else "layers" if family.kind == "windows" else "stages"
    stages = {"stem": family.stem} if family.stem else {}
    for first, last in bounds:
        name = f"{prefix}.{first}" if first == last else f"{prefix}.{first}-{last}"
        stages[name] = tuple(f"{family.blocks}.{i}" for i in range(first, last + 1))
    if family.norm:
        stages[name] = (*stages[name], family.norm)
    return stages


def _bounds(count: int) -> list[tuple[int, int]]:
    """(first, last) of each group of blocks: at most GROUPS of equal length, and the last block alone."""
    size = max(1, math.ceil((count - 1) / GROUPS))
    groups = [(i, min(i + size, count - 1) - 1) for i in range(0, count - 1, size)]
    return [*groups, (count - 1, count - 1)]
