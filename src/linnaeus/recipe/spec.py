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
    """Random changes to training images. The distribution of each follows torchvision's transform of the same idea.

    Geometry is one matrix and one resample, color is one matrix; the rest are passes of their own.
    """

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Angle in degrees, uniform in ±rotate (RandomRotation)."""
    hflip: Probability = 0.0
    """Share of images that are mirrored, left for right (RandomHorizontalFlip)."""
    vflip: Probability = 0.0
    """Share of images that are turned upside down as a mirror does (RandomVerticalFlip)."""
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Translation, uniform in ±shift of the image's size, on each axis (RandomAffine)."""
    scale: Range | None = None
    """Zoom factor, uniform between the two (RandomAffine): above 1 enlarges."""
    crop_scale: Range | None = None
    """Share of the image's area that a random resized crop keeps, e.g. [0.08, 1.0]."""
    crop_ratio: Range = (3 / 4, 4 / 3)
    """Aspect ratios of the random resized crop, log-uniform."""
    pad_crop: Annotated[int, Field(ge=0)] = 0
    """Random crop after padding this many pixels on each side with black (the CIFAR augmentation)."""
    brightness: NonNegative = 0.0
    """Factor on all channels, uniform in [max(0, 1 - v), 1 + v] (ColorJitter)."""
    contrast: NonNegative = 0.0
    """Factor on the distance to the image's mean gray, drawn as that of brightness."""
    saturation: NonNegative = 0.0
    """Factor on the distance to the pixel's own gray, drawn as that of brightness."""
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Turn of the color wheel, uniform in ±hue of a full turn, made as a rotation about the gray axis."""
    gray: Probability = 0.0
    """Share of images that lose their color (RandomGrayscale)."""
    trivial: bool = False
    """TrivialAugment (Müller and Hutter 2021): one random operation of random strength an image."""
    posterize: Probability = 0.0
    """Share of images whose levels are cut to `posterize_bits` bits."""
    posterize_bits: Annotated[int, Field(ge=1, le=8)] = 4
    """Bits that are kept of eight."""
    solarize: Probability = 0.0
    """Share of images whose levels from `solarize_threshold` on are inverted."""
    solarize_threshold: Annotated[int, Field(ge=0, le=255)] = 128
    """The level from which on `solarize` inverts."""
    equalize: Probability = 0.0
    """Share of images whose histogram is made flat, each channel by itself."""
    autocontrast: Probability = 0.0
    """Share of images whose levels are stretched to the whole range, each channel by itself."""
    sharpness: Probability = 0.0
    """Share of images that are sharpened, or smoothed, by `sharpness_factor`."""
    sharpness_factor: NonNegative = 2.0
    """0 smooths, 1 changes nothing, 2 sharpens."""
    erase: Probability = 0.0
    """Share of images that lose a rectangle (Zhong et al. 2017, RandomErasing)."""
    erase_scale: Range = (0.02, 0.33)
    """Share of the image's area that the rectangle has, uniform."""
    erase_ratio: Range = (0.3, 3.3)
    """Aspect ratio of the rectangle, log-uniform."""

    @field_validator("scale", "crop_scale", "crop_ratio", "erase_scale", "erase_ratio")
    @classmethod
    def _ordered(cls, value: Range | None) -> Range | None:
        if value is not None and not 0 < value[0] <= value[1]:
            raise ValueError("two numbers above 0, the smaller first")
        return value


class Constant(Strict):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"
    """Which schedule this is."""


class Step(Strict):
    """Multiply the learning rate by `factor` after every `every` epochs."""

    name: Literal["step"]
    """Which schedule this is."""
    every: Annotated[int, Field(ge=1)]
    """Epochs between two steps."""
    factor: Positive = 0.1
    """What the learning rate is multiplied by."""


class Plateau(Strict):
    """Multiply the learning rate by `factor` when `monitor` has not improved for more than `patience` epochs."""

    name: Literal["plateau"]
    """Which schedule this is."""
    monitor: Literal["train_loss", "train_accuracy", "valid_loss", "valid_accuracy"] = "valid_loss"
    """What should improve."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied by."""
    patience: Annotated[int, Field(ge=0)] = 10
    """Epochs without improvement that are borne."""
    threshold: NonNegative = 1e-4
    """The smallest change that counts as improvement."""
    threshold_mode: Literal["rel", "abs"] = "rel"
    """Whether `threshold` is a share of the best value or a difference to it."""
    cooldown: Annotated[int, Field(ge=0)] = 0
    """Epochs after a step in which none is counted as without improvement."""
    minimum: NonNegative = 0.0
    """The lowest learning rate."""
    eps: NonNegative = 1e-8
    """A step that would change the learning rate by less is not taken."""


class Cosine(Strict):
    """Linear warm-up, then half a cosine down to `minimum` times the learning rate (Loshchilov and Hutter 2016)."""

    name: Literal["cosine"]
    """Which schedule this is."""
    warmup: NonNegative = 0.0
    """Epochs of warm-up; fractions are fine."""
    minimum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Where the cosine ends, as a share of the learning rate."""


class OneCycle(Strict):
    """Up from lr/start_div to lr in the first `rise` of the steps, then down to lr/end_div (Smith and Topin 2017)."""

    name: Literal["onecycle"]
    """Which schedule this is."""
    rise: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """Share of the steps in which the learning rate rises."""
    start_div: Annotated[float, Field(ge=1)] = 25.0
    """The first learning rate is lr divided by this."""
    end_div: Annotated[float, Field(ge=1)] = 1e4
    """The last learning rate is lr divided by this."""


Schedule = Annotated[Constant | Step | Plateau | Cosine | OneCycle, Field(discriminator="name")]


class HeadOf(Strict):
    """What the head looks at."""

    stages: Annotated[list[str], Field(min_length=1)]
    """Stages whose pooled outputs the head sees side by side, such as ["layer3", "layer4"]."""


class Model(Strict):
    """The network, and what it starts from."""

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
    """Share of the images that become validation."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the images that become test."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draw; it is apart from the run's seed, so that runs can share a split."""
    groups: str | None = None
    """Keep what belongs together on one side: a column of a CSV, such as patient, or `near-duplicates`."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Split:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test is {self.valid + self.test:g}, which leaves nothing to train on")
        return self


class Data(Strict):
    """Which images, and what the network sees of them."""

    resize: Annotated[int, Field(ge=1, le=8192)]
    """Pixels of the short side after decoding (`crop`), or of the square's side (`squash`, `pad`)."""
    size: Annotated[int, Field(ge=1, le=8192)]
    """Pixels of the square that the network sees: the central crop of what `resize` gives."""
    train_resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    """`resize` for training images where it differs, so that augmentation has something to crop from."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How an image becomes square: its middle, the whole of it distorted, or the whole of it with a border."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Of the resizing, antialiased."""
    normalise: Literal["weights", "imagenet", "data", "none"] = "weights"
    """Mean and standard deviation: of the weights, of ImageNet, of the training pixels, or none: [0, 1]."""
    channels: Literal["auto", 1, 3] = "auto"
    """1 gray, 3 color; auto: as the images are."""
    train: str | None = None
    """Name of the list file of training, such as `trainda.txt`, where it is not the usual one."""
    valid: str | None = None
    """The list file of validation; `test`: select the best model on the test split, as some publications do."""
    test: str | None = None
    """The list file of test."""
    split: Split = Split()
    """How a source without splits of its own is divided."""

    @model_validator(mode="after")
    def _fits(self) -> Data:
        for key, value in (("resize", self.resize), ("train_resize", self.train_resize)):
            if value is not None and value < self.size:
                raise ValueError(f"{key} = {value} is smaller than size = {self.size}, so the crop would have a border")
        return self


class Phase(Strict):
    """One stretch of training: which stages train, for how long, how fast. It starts from the best weights so far."""

    train: Annotated[list[str], Field(min_length=1)] = ["all"]
    """Stages that train, or `all`."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Times that every training image is seen."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Images in one step of the optimizer, over all processes."""
    micro_batch: Annotated[int, Field(ge=0)] = 0
    """Images that go through the network at once, which BatchNorm's statistics depend on; 0: what fits the memory.

    Where that is less than a batch, the run's recipe.toml says how many it was, so that it can be repeated."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Stochastic gradient descent with momentum, Adam, or Adam with decoupled weight decay."""
    lr: float | str | None = None
    """The learning rate, or `auto`: found by a range test before the phase, and written into the run's recipe.toml."""
    head: Literal["train", "auto"] = "train"
    """`auto`: solve the head on stored vectors, its penalty by cross-validation; epochs and lr then mean nothing."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate for each stage further from the head."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of `sgd`."""
    nesterov: bool = False
    """Nesterov's form of the momentum of `sgd`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the two moving averages of `adam` and `adamw`."""
    weight_decay: NonNegative = 0.0
    """Pull of the weights towards zero, as torch's optimizers have it."""
    norms: Literal["train", "synced", "frozen"] = "train"
    """Statistics of BatchNorm where it trains: of what goes through the network at once in each process, or, `synced`,
    in all of them, or, `frozen`, those it came with.

    Synced costs time, and pays where a process has few images at once.
    With few images the old ones are the better estimate, and the network then starts the phase as it left the last.
    """
    decay_norms: bool = True
    """Whether weight decay also pulls on biases and BatchNorm, as torch's optimizers do by default."""
    schedule: Schedule = Constant()
    """How the learning rate moves: a table with `name`, see below."""
    augment: Augment | None = None
    """Random changes to training images, see below; without it there are none."""
    views: Annotated[int, Field(ge=0)] = 0
    """Draw this many augmented views of each image once, and take turns; 0 draws afresh in every epoch.

    Only where the lower stages are frozen: what they make of the views is stored."""
    mixup: NonNegative = 0.0
    """Blend pairs of images and their labels: alpha of the Beta distribution of the share; 0 is off."""
    cutmix: NonNegative = 0.0
    """Paste a rectangle of one image into another: alpha as for mixup. With both, each batch takes one at random."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: the loss of an image weighs inversely to the size of its class."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """`balanced`: draw images so that every class comes equally often, rare ones again and again."""
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
            if self.sampling == "balanced":
                raise ValueError('head = "auto" sees every image once; use class_weights = "balanced", not sampling')
            for key in ("label_smoothing", "ema", "clip", "early_stop"):
                if getattr(self, key):
                    raise ValueError(f'head = "auto" has no use for {key}: it is solved, not trained')
        elif self.lr is None or "epochs" not in self.model_fields_set:
            raise ValueError('epochs and lr are missing, which only head = "auto" does without')
        if mixes and isinstance(self.schedule, Plateau) and self.schedule.monitor == "train_accuracy":
            raise ValueError("a plateau cannot watch train_accuracy where images are mixed: they have no one label")
        if self.views and self.augment is None:
            raise ValueError(f"views = {self.views} without augment: all of them would be alike")
        return self


class Recipe(Strict):
    """What is trained, on what, how. `Recipe.model_validate` of a dict, or `load_recipe` of a name or file."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "recipe"
    """What run folders are called by."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Of everything random, but the split."""
    best: Literal["accuracy", "balanced_accuracy", "loss"] = "accuracy"
    """By which figure on validation the best epoch is kept; ties go to the lower loss."""
    precision: Literal["auto", "32", "16-mixed", "bf16-mixed"] = "auto"
    """Of the computation; auto: mixed on a GPU, 32 bits elsewhere."""
    log_every: Annotated[int, Field(ge=0)] = 0
    """Print the loss every so many steps; 0 is off."""
    model: Model
    """The network, see below."""
    data: Data
    """The images, see below."""
    phase: Annotated[list[Phase], Field(min_length=1)]
    """The phases of training in their order, see below."""

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
