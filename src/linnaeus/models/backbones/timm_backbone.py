"""Any image network of the library timm as a backbone: `timm/NAME`, with named stages and a new linear head.

Weights keep timm's parameter names below `body.`. The families in FAMILIES have the stages of their papers; every other
network is a single stage `body`. Running the stages in order equals timm's own forward pass.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from linnaeus.errors import UnknownNameError, UserError, first_line, install
from linnaeus.models.backbones.hub import endpoint
from linnaeus.models.backbones.library_body import Chain, import_errors, stage_calling, token_map, without_prefix
from linnaeus.models.network import Network, StageFunction, classifier, resampling
from linnaeus.models.weights.pretrained import PretrainedWeights
from linnaeus.models.weights.records import key_of, read_record

PREFIX = "timm/"
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class Family:
    """How the networks of one class of timm compute their features, as names of attributes that are called in order."""

    stem: tuple[str, ...]
    # Stages. `blocks.*` stands for the children of `blocks`, each a stage.
    body: tuple[str, ...]
    tail: tuple[str, ...] = ()  # computed at the end of the last stage
    groups: int = 0  # merge the children of `body` into this many stages of equal length


FAMILIES = {
    "ConvNeXt": Family(("stem",), ("stages.*",), ("norm_pre",)),
    "EfficientNet": Family(("conv_stem", "bn1"), ("blocks.*",), ("conv_head", "bn2")),
    "MobileNetV3": Family(("conv_stem", "bn1"), ("blocks.*",)),
    "RegNet": Family(("stem",), ("s1", "s2", "s3", "s4"), ("final_conv",)),
    "ResNet": Family(("conv1", "bn1", "act1", "maxpool"), ("layer1", "layer2", "layer3", "layer4")),
    "SwinTransformer": Family(("patch_embed",), ("layers.*",), ("norm",)),
    "VisionTransformer": Family(
        ("patch_embed", "_pos_embed", "patch_drop", "norm_pre"), ("blocks.*",), ("norm",), groups=4
    ),
}
"""Class in timm -> its stages. MobileNetV4 is a MobileNetV3 there; DeiT, DINOv2 and SigLIP are VisionTransformers."""


class TimmBackbone(Network):
    """A network of timm without its classifier, and a linear head.

    Source: Wightman 2019, "PyTorch Image Models", https://github.com/huggingface/pytorch-image-models.
    """

    def __init__(self, name: str, classes: int, channels: int = 3, *, pool: str = ""):
        """`pool`: how tokens or maps become features, such as `token`, `avg` or `max`; empty for timm's own choice."""
        super().__init__()
        self.arch = {"name": name, "classes": classes, "channels": channels, "arguments": {"pool": pool}}
        body: Any = _create(name, channels, pool)
        self.body = body
        self.usual_size = int(body.pretrained_cfg["input_size"][-1])
        self.head_input = int(getattr(body, "head_hidden_size", None) or body.num_features)
        self.fc = classifier(self.head_input, classes)
        self._layout = _layout(body)
        if getattr(body, "output_fmt", "NCHW") == "NHWC":
            self.map_axes = (1, 2)

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self._layout, "head")

    def function_of(self, stage: str) -> StageFunction:
        return self._head if stage == "head" else Chain([attrgetter(call)(self.body) for call in self._layout[stage]])

    def pool(self, x: Tensor) -> Tensor:
        """The output of the last stage below the head -> features (N, F); features (N, F) pass unchanged."""
        return x if x.dim() == 2 else self.body.forward_head(x, pre_logits=True)

    def as_map(self, stage: str, x: Tensor) -> Tensor | None:
        """Tokens (N, T, C) without class and register tokens as (N, C, H, W); channels-last maps as channels-first."""
        if x.dim() == 3:
            # The class token reads the patch tokens in the blocks: those that leave the last one reach no logit.
            unread = getattr(self.body, "global_pool", "") == "token" and stage == self.stages[-2]
            return None if unread else token_map(x, int(getattr(self.body, "num_prefix_tokens", 0)))
        if x.dim() == 4 and getattr(self.body, "output_fmt", "NCHW") == "NHWC":
            return x.permute(0, 3, 1, 2)
        return super().as_map(stage, x)

    def size_note(self, size: int) -> str:
        table: Any = getattr(self.body, "pos_embed", None)
        patches: Any = getattr(self.body, "patch_embed", None)
        if not isinstance(table, Tensor) or not hasattr(patches, "grid_size"):
            return ""
        return resampling(int(patches.grid_size[0]), size // int(patches.patch_size[0]))

    def _head(self, x: Tensor) -> Tensor:
        return self.fc(self.head_features(x))

    def stage_of(self, name: str) -> str:
        """'body.blocks.0.conv.weight' -> 'blocks.0'. What follows the last stage, such as a norm, belongs to it."""
        if (stage := stage_calling(self._layout, name)) is not None:
            return stage
        # Position embeddings and class tokens are parameters of the network itself; they enter below the first block.
        first, last = next(iter(self._layout)), list(self._layout)[-1]
        parameters = dict(self.body.named_parameters(recurse=False))
        return first if name.removeprefix("body.") in parameters and hasattr(self.body, "pos_embed") else last


def _layout(body: nn.Module) -> dict[str, tuple[str, ...]]:
    """Stage -> the attributes of `body` that it calls, in order."""
    family = FAMILIES.get(type(body).__name__)
    # An unknown family is one stage: it can be frozen as a whole.
    if family is None:
        return {"body": ("forward_features",)}
    children: list[str] = []
    for path in family.body:
        name = path.removesuffix(".*")
        children += [f"{name}.{i}" for i in range(len(getattr(body, name)))] if path != name else [name]
    groups = [(child,) for child in children] if not family.groups else _groups(children, family.groups)
    stages = {_name(group): group for group in groups}
    last = _name(groups[-1])
    stages[last] = (*stages[last], *family.tail)
    return {"stem": family.stem, **stages}


def _groups(children: list[str], count: int) -> list[tuple[str, ...]]:
    size = -(-len(children) // count)
    return [tuple(children[i : i + size]) for i in range(0, len(children), size)]


def _name(group: tuple[str, ...]) -> str:
    """("blocks.0", "blocks.1", "blocks.2") -> "blocks.0-2"."""
    return group[0] if len(group) == 1 else f"{group[0]}-{group[-1].rpartition('.')[2]}"


def library() -> Any:
    """The module timm. Raises UserError, with the command that installs it, if it cannot be imported."""
    with import_errors(PREFIX, "timm", install("timm")):
        import timm
    return timm


def _known(name: str) -> str:
    """timm's name of a network. Raises UserError, with suggestions, if there is none."""
    timm, short = library(), name.removeprefix(PREFIX)
    if not timm.is_model(short):
        close = difflib.get_close_matches(short, timm.list_models(), n=3)
        hint = f"; did you mean {', '.join(PREFIX + match for match in close)}?" if close else ""
        raise UnknownNameError(f"unknown model {name!r}: timm {timm.__version__} has no such network{hint}")
    return short


def _create(name: str, channels: int, pool: str) -> nn.Module:
    timm, short = library(), _known(name)
    options: dict[str, Any] = {"num_classes": 0, "in_chans": channels}
    if pool:
        options["global_pool"] = pool
    try:
        try:
            # Position embeddings are resampled to the size of the images.
            return timm.create_model(short, pretrained=False, dynamic_img_size=True, **options)
        except TypeError:  # most families have no position embeddings, and not this option
            return timm.create_model(short, pretrained=False, **options)
    except Exception as error:  # each family checks its options in its own way
        raise UserError(
            f"{name}: timm cannot create it with pool = {pool!r} and {channels} channels ({first_line(error)})"
        ) from None


def pretrained_weights(name: str, folder: Path | None = None) -> PretrainedWeights:
    """timm's pretrained weights of a network, with their preprocessing and license. UserError for an unknown name.

    timm itself knows all of this, so that a copy of the repository in `folder` adds nothing.
    """
    known = _known(name)
    config = library().get_pretrained_cfg(known) or library().get_pretrained_cfg(known, allow_unregistered=True)
    if config is None:  # a network that timm has no weights of
        return PretrainedWeights(name, model=name)
    # Networks may accept several sizes; this is the one of the weights.
    size = int(config.input_size[-1])
    repository = config.hf_hub_id or ""
    return PretrainedWeights(
        name,
        model=name,
        url=f"{endpoint()}/{repository}/resolve/main/model.safetensors" if repository else "",
        license=config.license or read_record(key_of(name)).get("license") or "unknown",
        mean=tuple(config.mean),
        std=tuple(config.std),
        resize=int(size / config.crop_pct),
        size=size,
        interpolation=config.interpolation if config.interpolation in INTERPOLATIONS else "bicubic",
        hub=repository,
        fit="squash" if getattr(config, "crop_mode", "") == "squash" else "crop",
    )


def body_tensors(
    name: str, tensors: dict[str, Tensor], arguments: dict[str, Any], source: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors of a `TimmBackbone`, no arguments) from a state dict of timm's network, without its classifier."""
    config = library().get_pretrained_cfg(name.removeprefix(PREFIX))
    heads = (config.classifier,) if isinstance(config.classifier, str) else tuple(config.classifier or ())
    tensors = without_prefix(tensors, lambda: _create(name, 3, ""))
    below = {key: t for key, t in tensors.items() if not any(key.startswith(f"{head}.") for head in heads)}
    return {f"body.{key}": tensor for key, tensor in below.items()}, {}
