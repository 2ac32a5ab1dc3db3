"""The tables of a recipe that describe its network, the schedule of a phase and its augmentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[float, float]


class Strict(BaseModel):
    """A table that rejects unknown keys and does not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Head(Strict):
    """Input of the head."""

    stages: Annotated[list[str], Field(min_length=1)] | None = None
    """Stages whose pooled outputs are concatenated as the input of the head, such as ["layer3", "layer4"]. Without it,
    the last stage alone."""
    windows: Annotated[int, Field(ge=1, le=16)] = 1
    """For images with several labels: the head sees this many windows per side of the last feature map, each of which
    shows one of the labels or none. 1: it sees the average of the whole map."""

    @model_validator(mode="after")
    def _one_kind(self) -> Head:
        if self.stages is not None and self.windows > 1:
            raise ValueError(f"windows = {self.windows} uses the last stage alone; leave stages out")
        return self


class Model(Strict):
    """The network and its initial weights."""

    name: str
    """A network listed by `linnaeus models`, `timm/NAME`, `hf/REPO`, `onnx/FILE`, or `file.py:function` (your code)."""
    weights: str = "none"
    """`imagenet`, `pretrained` (timm and hub), a name from `linnaeus weights list`, a file, or `none` (random)."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network, such as `stem = "small"`; `linnaeus models NAME` lists them."""
    frozen_precision: Literal["float", "bf16", "int8"] = "float"
    """Precision of frozen stages. `bf16` (used only if a trial finds it faster) and `int8` are less exact but faster on
    some CPUs; the saved model stays in float."""
    head: Head | None = None
    """Input of the head, unless it is the average of the last stage: `head = { stages = ["layer3", "layer4"] }`."""


class Constant(Strict):
    """The learning rate does not change."""

    name: Literal["constant"] = "constant"
    """Name of the schedule."""


class Step(Strict):
    """Multiply the learning rate by `factor` each time `every` epochs have passed."""

    name: Literal["step"]
    """Name of the schedule."""
    every: Annotated[int, Field(ge=1)]
    """Epochs between two steps."""
    factor: Positive = 0.1
    """Factor on the learning rate."""


class Plateau(Strict):
    """Multiply the learning rate by `factor` when `monitor` has not improved for more than `patience` epochs."""

    name: Literal["plateau"]
    """Name of the schedule."""
    monitor: Literal["train_loss", "train_accuracy", "valid_loss", "valid_accuracy"] = "valid_loss"
    """The metric that should improve."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor on the learning rate."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Epochs without improvement that are tolerated."""
    threshold: NonNegative = 1e-4
    """The smallest change that counts as an improvement."""
    threshold_mode: Literal["rel", "abs"] = "rel"
    """`rel`: `threshold` is a share of the best value; `abs`: a difference from it."""
    cooldown: Annotated[int, Field(ge=0)] = 0
    """Epochs after a step that do not count as epochs without improvement."""
    minimum: NonNegative = 0.0
    """The lowest learning rate."""
    eps: NonNegative = 1e-8
    """Steps that change the learning rate by less than this are skipped."""


class Cosine(Strict):
    """Linear warm-up, then half a cosine down to `minimum` times the learning rate (Loshchilov and Hutter 2016)."""

    name: Literal["cosine"]
    """Name of the schedule."""
    warmup: NonNegative = 0.0
    """Epochs of warm-up; fractions are allowed."""
    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Value at the end of the cosine, as a share of the learning rate."""


class OneCycle(Strict):
    """Up from lr/div to lr in the first `pct_start` of the steps, then down to lr/div_final (Smith and Topin 2017)."""

    name: Literal["onecycle"]
    """Name of the schedule."""
    pct_start: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps in which the learning rate rises, in 0..1. The names are those of fastai."""
    div: Annotated[float, Field(ge=1)] = 25.0
    """The first learning rate is lr divided by this."""
    div_final: Annotated[float, Field(ge=1)] = 1e4
    """The last learning rate is lr divided by this."""


Schedule = Annotated[Constant | Step | Plateau | Cosine | OneCycle, Field(discriminator="name")]


class Augment(Strict):
    """Random changes to training images. Each is distributed as the torchvision transform named in its description.

    All geometric changes together are one resampling, all color changes one matrix; the others are separate passes.
    """

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Rotation in degrees, uniform in ±rotate (RandomRotation)."""
    hflip: Probability = 0.0
    """Probability of a horizontal flip (RandomHorizontalFlip)."""
    vflip: Probability = 0.0
    """Probability of a vertical flip (RandomVerticalFlip)."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Translation along each axis, uniform in ±shift of the image size (RandomAffine)."""
    scale: Range | None = None
    """Zoom factor, uniform between two values (RandomAffine); above 1 enlarges."""
    crop_scale: Range | None = None
    """Share of the image area that a random resized crop keeps, such as [0.08, 1.0]."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Range of the aspect ratio of the random resized crop, log-uniform."""
    pad_crop: Annotated[int, Field(ge=0)] = 0
    """Random crop after padding with this many black pixels on each side (the CIFAR augmentation)."""
    brightness: NonNegative = 0.0
    """Factor on all channels, uniform in [max(0, 1 - v), 1 + v] (ColorJitter)."""
    contrast: NonNegative = 0.0
    """Factor on the difference from the mean gray of the image, drawn like brightness (ColorJitter)."""
    saturation: NonNegative = 0.0
    """Factor on the difference from the gray of the pixel, drawn like brightness (ColorJitter)."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Rotation of the hue, uniform in ±hue of a full turn, computed as a rotation about the gray axis."""
    gray: Probability = 0.0
    """Probability of conversion to gray (RandomGrayscale)."""
    trivial_augment: bool = False
    """TrivialAugment (Müller and Hutter 2021): one random operation of random strength per image."""
    posterize: Probability = 0.0
    """Probability of reducing the levels to `posterize_bits` bits (RandomPosterize)."""
    posterize_bits: Annotated[int, Field(ge=1, le=8)] = 4
    """Bits that `posterize` keeps of eight."""
    solarize: Probability = 0.0
    """Probability of inverting the levels from `solarize_threshold` on (RandomSolarize)."""
    solarize_threshold: Annotated[int, Field(ge=0, le=255)] = 128
    """Lowest level that `solarize` inverts."""
    equalize: Probability = 0.0
    """Probability of histogram equalization, by channel (RandomEqualize)."""
    autocontrast: Probability = 0.0
    """Probability of stretching the levels to the full range, by channel (RandomAutocontrast)."""
    sharpness: Probability = 0.0
    """Probability of changing the sharpness by `sharpness_factor` (RandomAdjustSharpness)."""
    sharpness_factor: NonNegative = 2.0
    """0 smooths, 1 changes nothing, 2 sharpens."""
    erase: Probability = 0.0
    """Probability of erasing a rectangle (Zhong et al. 2017, RandomErasing)."""
    erase_scale: Range = (0.02, 0.33)
    """Share of the image area that the rectangle covers, uniform."""
    erase_ratio: Range = (0.3, 3.3)
    """Range of the aspect ratio of the rectangle, log-uniform."""

    @field_validator("scale", "crop_scale", "crop_ratio", "erase_scale", "erase_ratio")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("expected two numbers above 0, the smaller first")
        return value
