"""Published ImageNet weights, as data: where they are, what they reach, and what they must be fed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)

TORCHVISION = "https://download.pytorch.org/models/"
RSB = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/"


@dataclass(frozen=True)
class Published:
    """One set of weights for 1000 classes of ImageNet."""

    name: str
    model: str
    url: str  # "" where there is none: importable only
    sha256: str  # of the file at `url`: whole, or the prefix that its publisher put into the name
    top1: float  # percent of the 50,000 validation images, as published, measured at `size`
    license: str
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the network: what the weights were trained with
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resize: int = 256  # pixels of the short side, then the central `size`
    size: int = 224
    interpolation: str = "bilinear"
    hub: str = ""  # repository on the Hugging Face hub that has the same tensors as model.safetensors

    @property
    def file(self) -> str:
        """The file's name among the weights at hand: its published name where it has one."""
        return PurePosixPath(self.url).name or f"{self.name}.safetensors"


def torchvision(model: str, version: int, file: str, top1: float, **others: Any) -> Published:
    """Weights of torchvision: V1 by the recipe of the papers' time, V2 by a longer one of 2021 (resized to 232)."""
    resize = 256 if version == 1 else 232
    arguments = others.pop("arguments", {"stride_in": "3x3"} if model in BOTTLENECKS else {})
    return Published(
        f"{model}-torchvision-v{version}",
        model,
        TORCHVISION + file,
        sha256=prefix(file),
        top1=top1,
        license="BSD-3-Clause",
        arguments=arguments,
        resize=resize,
        **others,
    )


def timm_a1(model: str, file: str, top1: float) -> Published:
    """Weights of timm by recipe A1 of "ResNet strikes back" (Wightman et al. 2021, arXiv:2110.00476): 600 epochs.

    Trained at 224; the published accuracy is at 288, where they do best.
    """
    return Published(
        f"{model}-timm-a1",
        model,
        RSB + file,
        sha256=prefix(file),
        top1=top1,
        license="Apache-2.0",
        arguments={"stride_in": "3x3"} if model in BOTTLENECKS else {},
        resize=288,
        size=288,
        interpolation="bicubic",
        hub=f"timm/{model}.a1_in1k",
    )


def prefix(file: str) -> str:
    """The start of the SHA-256 that publishers put last into a file's name: 'resnet50-0676ba61.pth' -> '0676ba61'."""
    return PurePosixPath(file).stem.rpartition("-")[2]


BOTTLENECKS = ("resnet50", "resnet101", "resnet152")  # where the place of the stride is a choice

PUBLISHED: dict[str, Published] = {
    published.name: published
    for published in (
        torchvision("resnet18", 1, "resnet18-f37072fd.pth", 69.758),
        torchvision("resnet34", 1, "resnet34-b627a593.pth", 73.314),
        torchvision("resnet50", 1, "resnet50-0676ba61.pth", 76.130),
        Published(
            "resnet50-v1-imagenet",
            "resnet50",
            url="",
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
        # torchvision first maps ImageNet's normalisation to this one ("transform_input"); here it is the normalisation.
        torchvision(
            "inception_v1",
            1,
            "googlenet-1378be20.pth",
            69.778,
            arguments={"branch5x5": "3x3"},
            mean=HALF,
            std=HALF,
        ),
    )
}
"""Name -> weights. For a model, those that come first are what `weights = "imagenet"` prefers.

V1 before V2 and A1: the longer recipes gain on ImageNet itself, but their features serve a frozen network's new head
no better, and the published experiments that come as recipes used V1.
"""
