"""The table of pretrained ImageNet weights: download address, checksum, accuracy, license and preprocessing of each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any

from linnaeus.models.weights.records import key_of

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)
SUGGESTED = "resnet50-torchvision-v1"  # what messages tell people to download, who have no weights

TORCHVISION = "https://download.pytorch.org/models/"
RSB = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/"


@dataclass(frozen=True)
class PretrainedWeights:
    """One set of published weights, trained on the 1000 classes of ImageNet."""

    name: str
    model: str  # name of the network in `linnaeus.models.MODELS`
    url: str = ""  # download address; empty if the weights can only be imported from a local file
    # SHA-256 of the file at `url`, in hexadecimal: complete, or the prefix that is part of the published file name;
    # empty if none is published.
    sha256: str = ""
    top1: float = math.nan  # published top-1 accuracy on the 50,000 validation images, in percent, measured at `size`
    license: str = "unknown"
    # Arguments of the network that the weights were trained with.
    arguments: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int = 256  # pixels of the short side after resizing; the central `size` x `size` pixels are then cut out
    size: int = 224
    interpolation: str = "bilinear"
    hub: str = ""  # hugging Face repository whose model.safetensors holds the same tensors; empty if there is none
    fit: str = "crop"  # how images that are not square are made so, as in a recipe
    gated: bool = False  # whether the authors ask for consent before a download

    @property
    def file(self) -> str:
        """File name in the local weights folder: the name in `url`, or NAME.safetensors without a URL."""
        return (PurePosixPath(self.url).name if self.sha256 else "") or f"{self.key}.safetensors"

    @property
    def key(self) -> str:
        """The name without slashes, for files in the local weights folder."""
        return key_of(self.name)


def torchvision(model: str, version: int, file: str, top1: float) -> PretrainedWeights:
    """An entry for weights from torchvision.

    Version 1 was trained with the recipe of the papers, version 2 with a longer recipe from 2021, evaluated at
    `resize` 232.
    """
    return PretrainedWeights(
        f"{model}-torchvision-v{version}",
        model,
        TORCHVISION + file,
        sha256=checksum_prefix(file),
        top1=top1,
        license="BSD-3-Clause",
        arguments={"stride_in": "3x3"} if model in BOTTLENECK_NETWORKS else {},
        resize=256 if version == 1 else 232,
    )


def timm_a1(model: str, file: str, top1: float) -> PretrainedWeights:
    """An entry for weights from timm, trained for 600 epochs with recipe A1 of "ResNet strikes back".

    Wightman et al. 2021, arXiv:2110.00476, table 1. They were trained at 224 pixels; the published accuracy was
    measured at 288, where it is highest.
    """
    return PretrainedWeights(
        f"{model}-timm-a1",
        model,
        RSB + file,
        sha256=checksum_prefix(file),
        top1=top1,
        license="Apache-2.0",
        # timm strides in the 3x3 convolution, like torchvision.
        arguments={"stride_in": "3x3"} if model in BOTTLENECK_NETWORKS else {},
        resize=288,
        size=288,
        interpolation="bicubic",
        hub=f"timm/{model}.a1_in1k",
    )


def checksum_prefix(file: str) -> str:
    """The SHA-256 prefix at the end of a published file name: 'resnet50-0676ba61.pth' -> '0676ba61'."""
    return PurePosixPath(file).stem.rpartition("-")[2]


RESTRICTED = ("-nc", "noncommercial", "apple-amlr", "seer-license")
"""Parts of the names of licenses that allow research or other noncommercial use only."""

PERMISSIVE = ("apache", "bsd", "cc-by-4.0", "mit")  # beginnings of the names of licenses that permit any use


def license_warning(license: str, gated: bool = False) -> str:
    """What a user of weights under this license must know before training; empty if it permits any use."""
    if any(part in license.lower() for part in RESTRICTED):
        return f"the license of these weights, {license}, forbids commercial use of the model"
    if gated:
        return (
            f"the authors give these weights (license {license or 'unknown'}) only to those who accept their "
            "conditions: read them before you use or publish the model"
        )
    if license and not license.lower().startswith(PERMISSIVE):
        return f"the license of these weights is {license}: read its conditions before you use or publish the model"
    return ""


BOTTLENECK_NETWORKS = ("resnet50", "resnet101", "resnet152")
"""Networks for which `stride_in` has to be recorded: both settings accept the same tensors."""

PRETRAINED: dict[str, PretrainedWeights] = {
    entry.name: entry
    for entry in (
        torchvision("resnet18", 1, "resnet18-f37072fd.pth", 69.758),
        torchvision("resnet34", 1, "resnet34-b627a593.pth", 73.314),
        torchvision("resnet50", 1, "resnet50-0676ba61.pth", 76.130),
        PretrainedWeights(
            "resnet50-v1-imagenet",
            "resnet50",
            sha256="577c44fdad83ffb103c39ae3b78276bcdf89a1a9755831105d80b3c8d2098e1b",
            top1=74.9,
            license="MIT",
            arguments={"stride_in": "1x1"},
        ),
        torchvision("resnet50", 2, "resnet50-11ad3fa6.pth", 80.858),
        torchvision("resnet101", 1, "resnet101-63fe2227.pth", 77.374),
        torchvision("resnet101", 2, "resnet101-cd907fc2.pth", 81.886),
        torchvision("resnet152", 1, "resnet152-394f9c45.pth", 78.312),
        torchvision("resnet152", 2, "resnet152-f82ba261.pth", 82.284),
        timm_a1("resnet18", "resnet18_a1_0-d63eafa0.pth", 73.158),
        timm_a1("resnet34", "resnet34_a1_0-46f8f793.pth", 77.918),
        timm_a1("resnet50", "resnet50_a1_0-14fe96d1.pth", 81.214),
        timm_a1("resnet101", "resnet101_a1_0-cdcb52a9.pth", 82.322),
        timm_a1("resnet152", "resnet152_a1_0-2eee8a7a.pth", 82.732),
        # torchvision's GoogLeNet converts inputs from ImageNet's normalization to (x - 0.5) / 0.5 inside the network
        # ("transform_input"). Here the images are normalized that way in the first place.
        replace(
            torchvision("inception_v1", 1, "googlenet-1378be20.pth", 69.778),
            arguments={"branch5x5": "3x3"},
            mean=HALF,
            std=HALF,
        ),
    )
}
"""Name -> weights. `weights = "imagenet"` prefers the first entry of a network.

V1 comes before V2 and A1: the longer recipes gain accuracy on ImageNet itself, but their frozen features are no better
for a new linear head, and the published experiments that the recipes repeat used V1.
"""
