"""A recipe: everything that changes a result, as validated models and strict TOML.

Every key is listed here with its default; an unknown or misspelt key is refused. Where a recipe is silent the default
holds, and `recipe.toml` in the run folder shows them all.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from linnaeus.errors import UserError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[float, float]

RECIPES = Path(__file__).parent / "recipes"


class Strict(BaseModel):
    """A model that refuses unknown keys and never changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Augment(Strict):
    """Random changes to training pictures. The distribution of each follows torchvision's transform of the same idea.

    Geometry is one matrix and one resample, color is one matrix; the rest are passes of their own.
    """

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Angle in degrees, uniform in ±rotate (RandomRotation)."""
    hflip: Probability = 0.0
    vflip: Probability = 0.0
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Translation, uniform in ±shift of the picture's size, on each axis (RandomAffine)."""
    scale: Range | None = None
    """Zoom factor, uniform between the two (RandomAffine): above 1 enlarges."""
    crop_scale: Range | None = None
    """Share of the picture's area that a random resized crop keeps, e.g. [0.08, 1.0]."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Aspect ratios of the random resized crop, log-uniform."""
    pad_crop: Annotated[int, Field(ge=0)] = 0
    """Random crop after padding this many pixels on each side with black (the CIFAR augmentation)."""
    brightness: NonNegative = 0.0
    contrast: NonNegative = 0.0
    saturation: NonNegative = 0.0
    """Brightness, contrast, saturation: factor uniform in [max(0, 1 - v), 1 + v] (ColorJitter)."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn of the color wheel, uniform in ±hue of a full turn, made as a rotation about the gray axis."""
    gray: Probability = 0.0
    trivial: bool = False
    """TrivialAugment (Müller and Hutter 2021): one random operation of random strength a picture."""
    posterize: Probability = 0.0
    posterize_bits: Annotated[int, Field(ge=1, le=8)] = 4
    solarize: Probability = 0.0
    solarize_threshold: Annotated[int, Field(ge=0, le=255)] = 128
    equalize: Probability = 0.0
    autocontrast: Probability = 0.0
    sharpness: Probability = 0.0
    sharpness_factor: NonNegative = 2.0
    erase: Probability = 0.0
    erase_scale: Range = (0.02, 0.33)
    erase_ratio: Range = (0.3, 3.3)

    @field_validator("scale", "crop_scale", "crop_ratio", "erase_scale", "erase_ratio")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("two numbers above 0, the smaller first")
        return value
