"""The table `augment` of a phase: random changes to the training images."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from linnaeus.recipe.strict import NonNegative, Probability, Range, Strict


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
    trivial: bool = False
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
