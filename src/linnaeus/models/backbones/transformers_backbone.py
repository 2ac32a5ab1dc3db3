"""Any image network of the library transformers as a backbone: `hf/REPO`, with named stages and a new linear head.

Weights keep the parameter names of the library's own class below `body.`. The classes in FAMILIES have stages; every
other network is a single stage `body`. Running the stages in order equals the library's own forward pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from linnaeus.errors import UserError
from linnaeus.models.backbones import transformers_library as library
from linnaeus.models.backbones.hub import repository
from linnaeus.models.backbones.library_body import Chain, pool_tokens, stage_calling, token_map
from linnaeus.models.backbones.transformers_families import family_of, layout
from linnaeus.models.network import Network, StageFunction, check_choice, classifier, resampling

POOLS = ("", "cls", "mean", "cls+mean")
"""How tokens become features: the library's own way, the class token, the mean of the patch tokens, or both."""


class TransformersBackbone(Network):
    """A network of transformers without its classifier, and a linear head.

    Source: Wolf et al. 2020, "Transformers: State-of-the-Art Natural Language Processing", arXiv:1910.03771.
    """

    def __init__(
        self, name: str, classes: int, channels: int = 3, *, pool: str = "", config: Mapping[str, Any] | None = None
    ):
        """`pool`: one of POOLS. `config`: the content of the repository's config.json; None to look it up."""
        super().__init__()
        check_choice(name, "pool", pool, POOLS)
        settings = library.network_config(name, repository(name).config if config is None else config)
        body: Any = library.create_body(name, settings, channels)
        self.body = body
        self.family = family_of(body)
        self.arch = {"name": name, "classes": classes, "channels": channels}
        self.arch["arguments"] = {"pool": pool, "config": settings}
        self._pool, self._layout = pool, layout(body, self.family)
        self.usual_size = self._usual_size()
        if pool.startswith("cls") and not self.family.prefix:
            problem = f"{type(body).__name__} has no class token"
            raise UserError(f"{name}: pool = {pool!r}: {problem}; use mean, or leave it out")
        self.head_input = self._features(channels)
        self.fc = classifier(self.head_input, classes)

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self._layout, "head")

    def function_of(self, stage: str) -> StageFunction:
        return self._head if stage == "head" else Chain([partial(self.step, path) for path in self._layout[stage]])

    def pool(self, x: Tensor) -> Tensor:
        """The output of the last stage below the head -> features (N, F); features (N, F) pass unchanged."""
        if x.dim() == 2:
            return x
        if not self._pool:
            return self.family.library_pool(self.body, x)
        if x.dim() == 4:
            return x.mean((2, 3))
        return pool_tokens(x, self._pool, self._prefix)

    def as_map(self, stage: str, x: Tensor) -> Tensor | None:
        """Tokens (N, T, C) without class and register tokens as (N, C, H, W)."""
        if x.dim() != 3:
            return super().as_map(stage, x)
        # The class token reads the patch tokens in the blocks: those that leave the last one reach no logit.
        unread = stage == self.stages[-2] and (self._pool == "cls" or (not self._pool and self.family.prefix > 0))
        return None if unread else token_map(x, self._prefix)

    def size_note(self, size: int) -> str:
        embeddings = getattr(self.body, "embeddings", None)
        names = ("position_embeddings", "position_embedding")
        table = next((t for name in names if (t := getattr(embeddings, name, None)) is not None), None)
        if table is None or not self.family.tokens:
            return ""
        # One or two entries may belong to class tokens, which do not change the square root.
        count = table.num_embeddings if isinstance(table, nn.Embedding) else table.shape[1]
        return resampling(math.isqrt(count), size // self._patch)

    @property
    def _prefix(self) -> int:
        """Tokens before the patches: class, distillation and register tokens."""
        return self.family.prefix + int(getattr(self.body.config, "num_register_tokens", 0) or 0)

    @property
    def _patch(self) -> int:
        """Pixels a side of a patch; 1 for networks that take images of any size."""
        patch = getattr(self.body.config, "patch_size", 1) if self.family.tokens else 1
        return int(patch if isinstance(patch, int) else max(patch))

    def _usual_size(self) -> int:
        config = self.body.config
        if self.family.kind == "patches":
            return math.isqrt(config.num_patches) * self._patch
        size = getattr(config, "image_size", None) or 224
        return int(size if isinstance(size, int) else max(size))

    def _head(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(x))

    def _features(self, channels: int) -> int:
        """The number of features, found with an image that is small where the network takes any size."""
        size = {"maps": 64, "whole": self.usual_size, "windows": self.usual_size}.get(self.family.kind, self._patch)
        image = torch.zeros(1, channels, size, size, device=next(self.body.parameters()).device)
        self.body.eval()
        with torch.no_grad():
            features = self.pool(self.run(image, stop="head"))
        self.body.train()
        return int(features.shape[1])

    def step(self, path: str, x: Tensor) -> Tensor:
        """Run one module of the body on images (N, C, H, W), maps (N, C, H, W) or tokens (N, T, C)."""
        if not path:
            return self._whole(x)
        module = self.body.get_submodule(path)
        if self.family.stem[:1] == (path,):
            # The stem gets images, all other modules get what the stem makes.
            return self._embed(module, x)
        if not path.startswith(f"{self.family.blocks}.") or self.family.kind == "maps":
            return module(x)
        if self.family.kind == "windows":
            side = math.isqrt(x.shape[1])
            return module(x, (side, side))[0]
        options: dict[str, Any] = {"attention_mask": None}
        if self.family.kind == "rotary":
            # The number of tokens without the prefix gives the side of the image in patches.
            side = math.isqrt(x.shape[1] - self._prefix) * self._patch
            # The module reads only size, type and device of the images.
            options["position_embeddings"] = self.body.rope_embeddings(x.new_empty(1, 1, side, side))
        return module(x, **options)

    def _embed(self, module: nn.Module, x: Tensor) -> Tensor:
        """Images (N, C, H, W) -> tokens or maps. Position embeddings are resampled to the size of the images."""
        size, patch = x.shape[-1], self._patch
        if size % patch:
            near = f"{size // patch * patch or patch} or {(size // patch + 1) * patch}"
            raise ValueError(f"{size} is not divisible by its patches of {patch} pixels; use {near}")
        if self.family.kind == "patches":
            return _patch_tokens(module, x, patch)
        y = module(x, interpolate_pos_encoding=True) if _resamples(module) else module(x)
        return y[0] if isinstance(y, tuple) else y

    def _whole(self, x: Tensor) -> Tensor:
        """The whole network in one stage: what its pooler gives, or tokens or maps for another pooling."""
        options = {"interpolate_pos_encoding": True} if _resamples(self.body) else {}
        outputs = self.body(pixel_values=x, **options)
        pooled = getattr(outputs, "pooler_output", None)
        if pooled is not None and not self._pool:
            return pooled.flatten(1)
        return outputs.last_hidden_state

    def stage_of(self, name: str) -> str:
        """'body.encoder.layer.0.norm1.weight' -> 'blocks.0-2'. What follows the blocks belongs to the last stage."""
        if (stage := stage_calling(self._layout, name)) is not None:
            return stage
        first, last = next(iter(self._layout)), list(self._layout)[-1]
        return first if name.startswith("body.rope_embeddings") else last


def _patch_tokens(module: Any, x: Tensor, patch: int) -> Tensor:
    """The embedding of SigLIP 2 for images of any shape (Tschannen et al. 2025, arXiv:2502.14786, section 2.4.2).

    The library's own takes the shape of each image as a tensor, and looks at its values, which no export can follow.
    Here all images are squares of one size.
    """
    patches = x.unflatten(2, (-1, patch)).unflatten(4, (-1, patch)).permute(0, 2, 4, 3, 5, 1)
    side = x.shape[-1] // patch
    table = module.position_embedding.weight.unflatten(0, (module.position_embedding_size, -1)).permute(2, 0, 1)[None]
    if table.shape[-1] != side:
        table = F.interpolate(table, (side, side), mode="bilinear", align_corners=False, antialias=True)
    return module.patch_embedding(patches.flatten(3).flatten(1, 2)) + table.flatten(2).transpose(1, 2)


def _resamples(module: nn.Module) -> bool:
    """Whether the module resamples position embeddings to the size of the images, on request."""
    return "interpolate_pos_encoding" in inspect.signature(module.forward).parameters
