"""Pretrained weights of `hf/REPO`: their entry in the table of weights, with the preprocessing of the repository."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linnaeus.errors import UserError
from linnaeus.models.backbones.hub import endpoint, repository, repository_of
from linnaeus.models.backbones.transformers_library import network_config
from linnaeus.models.weights.pretrained import IMAGENET_MEAN, IMAGENET_STD, PretrainedWeights

RESAMPLING = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers of the filters, which preprocessor_config.json uses."""

CONVNEXT_SQUASHES = 384
"""ConvNeXt's preprocessing crops below this size, and squashes the whole image to it from there on."""


@dataclass(frozen=True)
class Geometry:
    """How images become squares: `resize` and `fit` as in a recipe, then the central `size` pixels."""

    resize: int
    size: int
    fit: str = "crop"


def pretrained_weights(name: str, folder: Path | None = None) -> PretrainedWeights:
    """The weights of a repository, with its configuration, preprocessing and license. `folder` may hold a copy of it.

    Raises UserError, with the next step, if the repository is unknown, gated or out of reach, or unusable.
    """
    repo, published = repository_of(name), repository(name, folder)
    config = network_config(name, published.config)
    mean, std = normalization(name, published.preprocessor)
    geometry = image_geometry(name, published.preprocessor, config)
    return PretrainedWeights(
        name,
        model=name,
        url=f"{endpoint()}/{repo}/resolve/main/model.safetensors",
        license=published.license or "unknown",
        arguments={"config": config},
        mean=mean,
        std=std,
        resize=geometry.resize,
        size=geometry.size,
        fit=geometry.fit,
        interpolation=RESAMPLING.get(published.preprocessor.get("resample", 2), "bicubic"),
        hub=repo,
        gated=published.gated,
    )


def normalization(name: str, preprocessor: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of pixels in 0..1, from a preprocessor_config.json; ImageNet's where it says nothing.

    The library computes (pixel * rescale_factor - mean) / std of pixels in 0..255.
    """
    # In the configuration mean and std are on the scale after rescaling; ours are on 0..1.
    scale = 255 * float(preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1)
    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    if preprocessor.get("do_normalize", True):
        mean = preprocessor.get("image_mean") or IMAGENET_MEAN
        std = preprocessor.get("image_std") or IMAGENET_STD
    try:
        values = [tuple(round(float(value) / scale, 6) for value in triple) for triple in (mean, std)]
    except (TypeError, ValueError, ZeroDivisionError):
        values = []
    if [len(triple) for triple in values] != [3, 3] or not all(map(math.isfinite, values[0])) or min(values[1]) <= 0:
        raise UserError(f"{name}: preprocessor_config.json: mean {mean} and std {std} cannot be used; get a fresh copy")
    return values[0], values[1]


def image_geometry(name: str, preprocessor: Mapping[str, Any], config: Mapping[str, Any]) -> Geometry:
    """The sizes in a preprocessor_config.json, or the network's own size where it names none."""
    usual = _side(config.get("image_size")) or 224
    if "max_num_patches" in preprocessor:  # as many patches as a square of this size
        usual = math.isqrt(int(preprocessor["max_num_patches"])) * int(preprocessor.get("patch_size", 16))
    size, crop = preprocessor.get("size"), _side(preprocessor.get("crop_size"))
    # A height and a width mean that the proportions are not kept.
    squashed = isinstance(size, Mapping) and "height" in size
    side = _side(size) or usual
    if "crop_pct" in preprocessor and preprocessor["crop_pct"] and side < CONVNEXT_SQUASHES:
        geometry = Geometry(int(side / float(preprocessor["crop_pct"])), side)
    elif "crop_pct" in preprocessor:
        geometry = Geometry(side, side, "squash")
    elif crop and preprocessor.get("do_center_crop", True):
        geometry = Geometry(max(side, crop), crop, "squash" if squashed else "crop")
    else:
        geometry = Geometry(side, side, "squash" if squashed else "crop")
    if not 1 <= geometry.size <= 4096:
        raise UserError(f"{name}: preprocessor_config.json: images of {geometry.size} pixels cannot be used")
    return geometry


def _side(value: object) -> int | None:
    """Pixels of a size that is stated as a number, a pair, or by name."""
    if isinstance(value, Mapping):
        value = next((value[key] for key in ("height", "shortest_edge") if value.get(key)), None)
    elif isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, int) and not isinstance(value, bool) else None
