"""A recipe: everything that changes a result, as validated models and strict TOML.

Every key is listed here with its default; an unknown or misspelt key is refused. Where a recipe is silent the default
holds, and `recipe.toml` in the run folder shows them all.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from linnaeus.errors import visible

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[float, float]


class Strict(BaseModel):
    """A model that refuses unknown keys and never changes after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


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


class Constant(Strict):
    name: Literal["constant"] = "constant"


class Step(Strict):
    """Multiply the learning rate by `factor` after every `every` epochs."""

    name: Literal["step"]
    every: Annotated[int, Field(ge=1)]
    factor: Positive = 0.1


class Plateau(Strict):
    """Multiply the learning rate by `factor` when `monitor` has not improved for more than `patience` epochs."""

    name: Literal["plateau"]
    monitor: Literal["train_loss", "train_accuracy", "valid_loss", "valid_accuracy"] = "valid_loss"
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    patience: Annotated[int, Field(ge=0)] = 10
    threshold: NonNegative = 1e-4
    threshold_mode: Literal["rel", "abs"] = "rel"
    cooldown: Annotated[int, Field(ge=0)] = 0
    minimum: NonNegative = 0.0
    eps: NonNegative = 1e-8


class Cosine(Strict):
    """Linear warm-up, then half a cosine down to `minimum` times the learning rate (Loshchilov and Hutter 2016)."""

    name: Literal["cosine"]
    warmup: NonNegative = 0.0
    """Epochs of warm-up; fractions are fine."""
    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.0


class OneCycle(Strict):
    """Up from lr/start_div to lr in the first `rise` of the steps, then down to lr/end_div (Smith and Topin 2017)."""

    name: Literal["onecycle"]
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    start_div: Annotated[float, Field(ge=1)] = 25.0
    end_div: Annotated[float, Field(ge=1)] = 1e4


Schedule = Annotated[Constant | Step | Plateau | Cosine | OneCycle, Field(discriminator="name")]


class HeadOf(Strict):
    stages: Annotated[list[str], Field(min_length=1)]
    """Stages whose pooled outputs the head sees side by side, such as ["layer3", "layer4"]."""


class Model(Strict):
    name: str
    """A network of `linnaeus models`, or `file.py:function` for one of your own."""
    weights: str = "none"
    """`imagenet`, the name of published weights, a file, or `none` for training from scratch."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network, such as `stem = "small"`; `linnaeus models NAME` shows them."""
    frozen: Literal["float", "int8"] = "float"
    """How frozen stages compute what is stored. int8 rounds, and is faster on CPU; the saved model is float."""
    head: HeadOf | None = None
    """What the head looks at, where it is not the last stage alone: `head = { stages = ["layer3", "layer4"] }`."""


class Split(Strict):
    """How an unsplit source is divided, by class and at random."""

    valid: Annotated[float, Field(gt=0, lt=1)] = 0.1
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    seed: Annotated[int, Field(ge=0)] = 0
    groups: str | None = None
    """Keep what belongs together on one side: a column of a CSV, such as patient, or `near-duplicates`."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Split:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test is {self.valid + self.test:g}, which leaves nothing to train on")
        return self


class Data(Strict):
    resize: Annotated[int, Field(ge=1, le=8192)]
    """Pixels of the short side after decoding (`crop`), or of the square's side (`squash`, `pad`)."""
    size: Annotated[int, Field(ge=1, le=8192)]
    """Pixels of the square that the network sees: the central crop of what `resize` gives."""
    train_resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    """`resize` for training pictures where it differs, so that augmentation has something to crop from."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    normalise: Literal["weights", "imagenet", "data", "none"] = "weights"
    """Mean and standard deviation: of the weights, of ImageNet, of the training pixels, or none: [0, 1]."""
    channels: Literal["auto", 1, 3] = "auto"
    train: str | None = None
    valid: str | None = None
    """Names of list files; `valid = "test"` selects the best model on the test split, as some publications do."""
    test: str | None = None
    split: Split = Split()

    @model_validator(mode="after")
    def _fits(self) -> Data:
        for key, value in (("resize", self.resize), ("train_resize", self.train_resize)):
            if value is not None and value < self.size:
                raise ValueError(f"{key} = {value} is smaller than size = {self.size}, so the crop would have a border")
        return self


class Phase(Strict):
    train: Annotated[list[str], Field(min_length=1)] = ["all"]
    """Stages that train, or `all`."""
    epochs: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=1)] = 64
    """Pictures in one step of the optimizer, over all processes."""
    micro_batch: Annotated[int, Field(ge=0)] = 0
    """Pictures that go through the network at once, which BatchNorm's statistics depend on; 0: what fits the memory.

    Where that is less than a batch, the run's recipe.toml says how many it was, so that it can be repeated."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    lr: float | str | None = None
    """The learning rate, or `auto`: found by a range test before the phase, and written into the run's recipe.toml."""
    head: Literal["train", "auto"] = "train"
    """`auto`: solve the head on stored vectors, its penalty by cross-validation; epochs and lr then mean nothing."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate for each stage further from the head."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegative = 0.0
    norms: Literal["train", "synced", "frozen"] = "train"
    """Statistics of BatchNorm where it trains: of what goes through the network at once in each process, or, `synced`,
    in all of them, or, `frozen`, those it came with.

    Synced costs time, and pays where a process has few pictures at once.
    With few pictures the old ones are the better estimate, and the network then starts the phase as it left the last.
    """
    decay_norms: bool = True
    """Whether weight decay also pulls on biases and BatchNorm, as torch's optimizers do by default."""
    schedule: Schedule = Constant()
    augment: Augment | None = None
    views: Annotated[int, Field(ge=0)] = 0
    """Draw this many augmented views of each picture once, and take turns; 0 draws afresh in every epoch.

    Only where the lower stages are frozen: what they make of the views is stored."""
    mixup: NonNegative = 0.0
    cutmix: NonNegative = 0.0
    """The alpha of the Beta distribution; 0 is off. With both, each batch takes one of them at random."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the exponential moving average of the weights, a step; 0 is off."""
    clip: NonNegative = 0.0
    """Largest norm of the gradient; 0 is off."""
    early_stop: Annotated[int, Field(ge=0)] = 0
    """Stop the phase after this many epochs without a better model; 0 is off."""
    aux_weight: NonNegative = 0.3
    """Weight of the auxiliary heads' loss, where the network has them."""

    @field_validator("lr")
    @classmethod
    def _rate(cls, value: float | str | None) -> float | str | None:
        if value is not None and value != "auto" and not (isinstance(value, float) and value > 0):
            raise ValueError('a number above 0, or "auto"')
        return value

    @model_validator(mode="after")
    def _agree(self) -> Phase:
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum above 0")
        mixes = self.mixup > 0 or self.cutmix > 0
        if self.head == "auto":
            if self.train != ["head"]:
                raise ValueError('head = "auto" needs train = ["head"]: only a linear head can be solved')
            if mixes or self.epochs != 1:
                raise ValueError('head = "auto" takes no mixing, and one epoch: it is solved, not trained')
        elif self.lr is None or "epochs" not in self.model_fields_set:
            raise ValueError('epochs and lr are missing, which only head = "auto" does without')
        if mixes and isinstance(self.schedule, Plateau) and self.schedule.monitor == "train_accuracy":
            raise ValueError("a plateau cannot watch train_accuracy where pictures are mixed: they have no one label")
        if self.views and self.augment is None:
            raise ValueError(f"views = {self.views} without augment: all of them would be alike")
        return self


class Recipe(Strict):
    """What is trained, on what, how. `Recipe.model_validate` of a dict, or `load_recipe` of a name or file."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "recipe"
    """What run folders are called by."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    best: Literal["accuracy", "balanced_accuracy", "loss"] = "accuracy"
    precision: Literal["auto", "32", "16-mixed", "bf16-mixed"] = "auto"
    log_every: Annotated[int, Field(ge=0)] = 0
    """Print the loss every so many steps; 0 is off."""
    model: Model
    data: Data
    phase: Annotated[list[Phase], Field(min_length=1)]

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        # It becomes part of a path: a recipe from elsewhere must not choose where that leads.
        if value in (".", "..") or set(value) & set("/\\:") or visible(value) != value:
            raise ValueError("a name for folders, without separators and control characters")
        return value

    def to_toml(self) -> str:
        """The recipe with its defaults, as `recipe.toml` holds it: reading it gives an equal recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is None is left out."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
