"""The schema of the description in a model file: which entries there are, and which values can be used.

A description may come from anybody, and a value that passes here is used without another look. Additions:

* An entry that changes answers becomes a field of its class here, with a default that files without it mean. A version
  that does not know it refuses the file and names the entry: ignoring it would give other answers.
* What changes no answer (figures, counts, sources) goes into `metrics`, `data` or `recipe`, which keep entries that
  they do not know.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from linnaeus.console import counted
from linnaeus.errors import UserError
from linnaeus.metrics.calibration import Calibration
from linnaeus.metrics.label_calibration import LabelCalibration
from linnaeus.preprocess import MAX_MEAN, MAX_SIZE, MAX_STD, MIN_STD

MAX_CLASSES = 10**6
MAX_ARGUMENTS = 200
"""The most values that the arguments of a network may hold: a list of widths can ask for a million layers."""

Count = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(min_length=1)]
Mean = Annotated[float, Field(ge=-MAX_MEAN, le=MAX_MEAN)]
Deviation = Annotated[float, Field(ge=MIN_STD, le=MAX_STD)]
Channels = Annotated[int, Field(ge=1, le=3)]


class Entry(BaseModel):
    """An object in which an unknown entry is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class Open(BaseModel):
    """An object that keeps entries that this version does not know, since they change no answer."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False, frozen=True)


class Arch(Entry):
    """What `models.create` takes."""

    name: Name
    classes: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    channels: Channels
    arguments: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("arguments")
    @classmethod
    def _few(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if _size(value) > MAX_ARGUMENTS:
            raise ValueError(f"more than {MAX_ARGUMENTS} values")
        return value


class Pixels(Entry):
    """The values of `Preprocessing`."""

    resize: Side
    size: Side
    fit: Literal["crop", "squash", "pad"]
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"]
    channels: Channels
    mean: list[Mean]
    std: list[Deviation]
    bits: Annotated[int, Field(ge=8, le=16)] = 16


class UnknownThresholds(Entry):
    """The values of `metrics.ood.Thresholds`."""

    distance: Annotated[float, Field(ge=0)] | None
    probability: Share
    n: Count
    accepted: Count
    target: Share
    cross_validated: Count = 0


class Unknown(Entry):
    """How unknown images are recognized."""

    metric: Literal["cosine"]
    k: Literal[1]
    references: Count
    features: Count
    thumbnails: Count = 0
    thumbnail_scale: Annotated[float, Field(gt=0)] = 1.0
    thresholds: UnknownThresholds
    measured: dict[str, JsonValue] = Field(default_factory=dict)


class HeldOut(Open):
    """The accuracy of a solved head on held-out training images."""

    n: Count
    accuracy: Share
    accuracy_ci95: Annotated[list[Share], Field(min_length=2, max_length=2)]
    most_frequent: Count | None = None
    groups: Count | None = None


class SplitFigures(Open):
    """Figures of a split. Those that are shown or compared are checked; others are kept."""

    n: Count | None = None
    correct: Count | None = None
    accuracy: Share | None = None
    accuracy_ci95: Annotated[list[Share], Field(min_length=2, max_length=2)] | None = None
    top5: Share | None = None
    balanced_accuracy: Share | None = None
    loss: Annotated[float, Field(ge=0)] | None = None
    groups: Count | None = None
    most_frequent: Count | None = None
    seen: Count | None = None
    held_out: HeldOut | None = None

    @model_validator(mode="after")
    def _agree(self) -> SplitFigures:
        if self.accuracy is None:
            return self
        if self.n is None or self.correct is None or not 0 <= self.correct <= self.n or not self.n:
            raise ValueError(f"an accuracy needs a number of images, and has {self.correct} correct of {self.n}")
        if abs(self.correct / self.n - self.accuracy) > 0.02:  # rounded, in files of earlier versions
            raise ValueError(f"accuracy {self.accuracy} with {self.correct} correct of {self.n}")
        return self


class Forgotten(Open):
    """Images that were removed from the training, and a hash of their content."""

    images: Count
    sha256: str


class Data(Open):
    """The source that the model was trained on."""

    kind: str = ""
    counts: dict[str, Count] = Field(default_factory=dict)
    fingerprint: str = ""
    forgotten: list[Forgotten] = Field(default_factory=list)
    unfinished: bool = False


class RecipeSplit(Open):
    """The values with which a source is split again as for the training."""

    valid: Share = 0.1
    test: Share = 0.0
    seed: Count = 0
    groups: str | None = None


class RecipeData(Open):
    """The part of a recipe's `data` with which a source is opened again."""

    train: str | None = None
    valid: str | None = None
    test: str | None = None
    separator: Literal["|", ";", ","] | None = None
    split: RecipeSplit | None = None


class RecipeModel(Open):
    """The part of a recipe's `model` that is shown."""

    weights: str | None = None


class Recipe(Open):
    """A record of the recipe. Later versions may have more keys, so only what is used again is checked."""

    name: str = ""
    model: RecipeModel = RecipeModel()
    data: RecipeData = RecipeData()


class Description(Entry):
    """All entries of a model file of format 1."""

    format: Literal[1]
    arch: Arch
    classes: list[Name]
    names: list[Name]
    preprocessing: Pixels
    task: Literal["single-label", "multi-label"] = "single-label"
    calibration: dict[str, JsonValue] | None = None
    unknown: Unknown | None = None
    metrics: dict[str, SplitFigures] = Field(default_factory=dict)
    data: Data = Data()
    recipe: Recipe = Recipe()
    versions: dict[str, str] = Field(default_factory=dict)
    tensors: str = ""
    sha256: str = ""

    @model_validator(mode="after")
    def _agree(self) -> Description:
        n, pixels = self.arch.classes, self.preprocessing
        if not len(self.classes) == len(self.names) == n:
            raise ValueError(f"{len(self.classes)} classes and {len(self.names)} class names for {n} outputs")
        if len(set(self.classes)) < n:
            # The first one that occurred before.
            twice = next(name for i, name in enumerate(self.classes) if name in self.classes[:i])
            raise ValueError(f"class {twice!r} occurs twice")
        if pixels.channels != self.arch.channels:
            raise ValueError(f"images of {counted(pixels.channels, 'channel')} for a network of {self.arch.channels}")
        if not len(pixels.mean) == len(pixels.std) == pixels.channels:
            raise ValueError(f"{counted(pixels.channels, 'channel')} but mean {pixels.mean} and std {pixels.std}")
        if pixels.size > pixels.resize:
            raise ValueError(f"size {pixels.size} is larger than resize {pixels.resize}")
        return self


def check_description(origin: str, header: dict[str, Any]) -> None:
    """Raise UserError, naming the file `origin`, the entry and the value, unless every value can be used."""
    try:
        Description.model_validate(header)
        if header.get("calibration") is not None:
            read_calibration(header, origin)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(error, header)}") from None
    except RecursionError:
        raise UserError(f"{origin}: its description is nested too deeply; get a fresh copy") from None


def read_calibration(header: dict[str, Any], origin: str) -> Calibration | LabelCalibration:
    """The calibration of a description with one, by its task. Raises UserError, naming the file `origin`."""
    if header.get("task") == "multi-label":
        return LabelCalibration.from_dict(header["calibration"], origin, len(header["classes"]))
    return Calibration.from_dict(header["calibration"], origin)


def _explain(error: ValidationError, header: dict[str, Any]) -> str:
    """The first error as one line. Unknown entries come first: they tell that the file is of a newer version."""
    first = min(error.errors(include_url=False), key=lambda detail: detail["type"] != "extra_forbidden")
    entry = ".".join(map(str, first["loc"]))[:120] or "its description"
    if first["type"] == "extra_forbidden":
        versions = header.get("versions")
        version = str(versions.get("linnaeus", "unknown") if isinstance(versions, dict) else "unknown")[:40]
        return (
            f"has the entry {entry!r}, which this version of linnaeus does not know (the file was written by version "
            f"{version}); upgrade linnaeus"
        )
    # Nested values would fill the line.
    value = "" if isinstance(first["input"], dict | list) else f" = {repr(first['input'])[:60]}"
    reason = first["msg"].removeprefix("Value error, ")[:200]
    return f"{entry}{value}: {reason}; the file was altered or written by other software, get a fresh copy"


def _size(value: Any) -> float:
    """The number of values in a JSON value; infinite beyond a depth of 20."""

    def count(value: Any, depth: int) -> float:
        if depth > 20:
            return math.inf
        if isinstance(value, dict | list):
            inside = value.values() if isinstance(value, dict) else value
            return 1 + sum(count(item, depth + 1) for item in inside)
        return 1

    return count(value, 0)
