"""A recipe: everything that changes a result, as validated tables.

Every key is listed here with its default; unknown and misspelled keys are rejected. `recipe.toml` in the run folder
shows all keys with their values.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import tomli_w
from pydantic import Field, field_validator, model_validator

from linnaeus.errors import visible
from linnaeus.recipe.tables import Augment, Constant, Model, NonNegative, Plateau, Schedule, Strict


class Split(Strict):
    """Random split, by class, of a source that does not define splits."""

    valid: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the images for validation."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the images for test."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Random seed of the split. It is independent of the run's seed, so that several runs can share a split."""
    groups: str | None = None
    """Keep related images in one split: a column of the CSV, such as patient, or `near-duplicates`."""

    @model_validator(mode="after")
    def _leaves_training(self) -> Split:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid + test is {self.valid + self.test:g}, which leaves nothing to train on")
        return self


class Data(Strict):
    """The images, and how they are presented to the network."""

    resize: Annotated[int, Field(ge=1, le=8192)]
    """Size after decoding, in pixels: of the short side (`crop`), or of the side of the square (`squash`, `pad`)."""
    size: Annotated[int, Field(ge=1, le=8192)]
    """Input size of the network, in pixels: a central square of the resized image."""
    train_resize: Annotated[int, Field(ge=1, le=8192)] | None = None
    """`resize` for training images, if it differs: a larger image leaves room for random crops."""
    fit: Literal["crop", "squash", "pad"] = "crop"
    """How an image becomes square: cut to its center, distorted, or padded with a border."""
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    """Interpolation of resizing, antialiased."""
    normalize: Literal["weights", "imagenet", "data", "none"] = "weights"
    """Source of mean and standard deviation: the weights, ImageNet, the training pixels, or `none` for [0, 1]."""
    channels: Literal["auto", 1, 3] = "auto"
    """1 for gray, 3 for color; `auto`: as in the images."""
    bits: Annotated[int, Field(ge=8, le=16)] | None = None
    """Used bits of 16-bit gray images: 12 makes 4095 white. Without it, they are measured on the training images."""
    train: str | None = None
    """List file of the training images, such as `trainda.txt`, if it does not have the usual name."""
    valid: str | None = None
    """List file of the validation images. `test` selects the best model on the test images, as some publications do."""
    test: str | None = None
    """List file of the test images."""
    split: Split = Split()
    """Split of a source that does not define splits."""
    task: Literal["single-label", "multi-label"] | None = None
    """Labels per image: exactly one, or any number including none. Recognized from the cells of a CSV if not set."""
    separator: Literal["|", ";", ","] | None = None
    """Separator of several labels in a cell of a CSV. Recognized from the cells if not set."""

    @model_validator(mode="after")
    def _fits(self) -> Data:
        for key, value in (("resize", self.resize), ("train_resize", self.train_resize)):
            if value is not None and value < self.size:
                raise ValueError(
                    f"{key} = {value} is smaller than size = {self.size}, so the crop would have a border; "
                    f"raise {key} or lower size"
                )
        return self


class Phase(Strict):
    """One stretch of training: which stages train, for how long, how fast. It starts from the best weights so far."""

    train: Annotated[list[str], Field(min_length=1)] = ["all"]  # noqa: RUF012 - pydantic copies it
    """Stages that train, or `all`."""
    epochs: Annotated[int, Field(ge=1)] = 1
    """Number of passes over the training images."""
    batch: Annotated[int, Field(ge=1)] = 64
    """Images in one optimizer step, over all processes."""
    micro_batch: Annotated[int, Field(ge=0)] = 0
    """Images that go through the network at once; BatchNorm computes its statistics over them. 0: as many as fit the
    memory.

    If it is smaller than a batch, the run's recipe.toml records it, so that the run can be repeated."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """Stochastic gradient descent with momentum, Adam, or Adam with decoupled weight decay."""
    lr: float | str | None = None
    """Learning rate. `auto`: chosen by a range test before the phase, and recorded in the run's recipe.toml."""
    head: Literal["train", "auto"] = "train"
    """`auto`: solve the linear head on stored features and choose its penalty by cross-validation; epochs and lr are
    not used."""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate for each stage away from the head."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Momentum of `sgd`."""
    nesterov: bool = False
    """Nesterov momentum for `sgd`."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the two moving averages of `adam` and `adamw`."""
    weight_decay: NonNegative = 0.0
    """Weight decay, as defined by the torch optimizers."""
    norms: Literal["train", "synced", "frozen"] = "train"
    """BatchNorm statistics in the stages that train. `train`: computed over the micro-batch of each process. `synced`:
    computed over all processes, which costs time and helps if each has few images. `frozen`: those of the initial
    weights, which are the better estimate if there are few training images."""
    decay_norms: bool = True
    """Apply weight decay also to biases and BatchNorm, as the torch optimizers do by default."""
    schedule: Schedule = Constant()
    """Schedule of the learning rate: a table with `name`, see below."""
    augment: Augment | None = None
    """Random changes to training images, see below; none if the table is missing."""
    views: Annotated[int, Field(ge=0)] = 0
    """Number of augmented versions (views) that are drawn of each image once and used in turn, so that the output of
    frozen stages can be stored; 0 draws a new one in every epoch."""
    mixup: NonNegative = 0.0
    """Mixup, which blends pairs of images and labels: alpha of the Beta distribution; 0 is off."""
    cutmix: NonNegative = 0.0
    """CutMix, which pastes a part of another image: alpha as for mixup. With both, each batch uses one at random."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the label that is spread over all classes."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: weight the loss of an image inversely to the size of its class."""
    sampling: Literal["shuffle", "balanced"] = "shuffle"
    """`balanced`: draw images so that all classes are equally frequent; images of rare classes are repeated."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay per step of the exponential moving average of the weights; 0 is off."""
    clip: NonNegative = 0.0
    """Largest norm of the gradient; 0 is off."""
    early_stop: Annotated[int, Field(ge=0)] = 0
    """Stop the phase after this many epochs without a better model; 0 is off."""
    aux_weight: NonNegative = 0.3
    """Weight of the auxiliary heads in the loss, if the network has them."""

    @field_validator("lr")
    @classmethod
    def _rate(cls, value: float | str | None) -> float | str | None:
        if value is not None and value != "auto" and not (isinstance(value, float) and value > 0):
            raise ValueError('expected a number above 0, or "auto"')
        return value

    @model_validator(mode="after")
    def _agree(self) -> Phase:
        if self.optimizer == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov = true needs momentum above 0")
        if self.head == "auto":
            self._check_solved_head()
        elif self.lr is None or "epochs" not in self.model_fields_set:
            raise ValueError('epochs and lr are required, unless head = "auto"')
        mixes = self.mixup > 0 or self.cutmix > 0
        if mixes and isinstance(self.schedule, Plateau) and self.schedule.monitor == "train_accuracy":
            raise ValueError(
                "a plateau cannot monitor train_accuracy with mixup or cutmix: mixed images have no single label"
            )
        if self.views and self.augment is None:
            raise ValueError(f"views = {self.views} without augment: all views would be the same")
        return self

    def _check_solved_head(self) -> None:
        """Reject settings that a solved head would ignore."""
        if self.train != ["head"]:
            raise ValueError('head = "auto" needs train = ["head"]: only a linear head can be solved')
        if self.epochs != 1:
            raise ValueError(
                f'epochs = {self.epochs}: head = "auto" is solved in one step, so more epochs change nothing; leave '
                'epochs out, or set head = "train" and lr = "auto" to train the head, or --recipe scratch to train all'
            )
        if self.mixup > 0 or self.cutmix > 0:
            raise ValueError(
                'head = "auto" allows no mixing: the head is solved, not trained; leave mixup and cutmix out, or set '
                'head = "train" and lr = "auto"'
            )
        if self.sampling == "balanced":
            raise ValueError('head = "auto" uses every image once; use class_weights = "balanced" instead of sampling')
        # Only values that were changed from their defaults, which are all false, are refused.
        for key in ("label_smoothing", "ema", "clip", "early_stop"):
            if getattr(self, key):
                raise ValueError(f'head = "auto" does not use {key}: the head is solved, not trained')


PRECISIONS = {
    **dict.fromkeys(("auto",), "auto"),
    **dict.fromkeys(("32", "32-true", "fp32", "float32"), "32"),
    **dict.fromkeys(("16", "16-mixed", "fp16", "float16", "half"), "16-mixed"),
    **dict.fromkeys(("bf16", "bf16-mixed", "bfloat16"), "bf16-mixed"),
}
"""Names of a precision -> the value of the recipe."""


class Sweep(Strict):
    """What `linnaeus sweep` records in best.toml: figures on the images that it measured on are optimistic."""

    trials: Annotated[int, Field(ge=1)]
    """Number of trials of which this recipe was the best."""
    fingerprint: str
    """Fingerprint of the source, as in sweep.json. A run of another source does not keep this table."""


class Recipe(Strict):
    """The model, the data and the phases of training. Use `Recipe.model_validate` for a dict, `load_recipe` for a name
    or a file."""

    name: Annotated[str, Field(min_length=1, max_length=200)] = "recipe"
    """Name of the recipe, and of its run folders."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Random seed of everything but the split."""
    best: Literal["accuracy", "balanced_accuracy", "loss", "map"] = "accuracy"
    """Validation metric that selects the best epoch; ties go to the lower loss. `map`, mean average precision, takes
    the place of `accuracy` if images may have several labels."""
    error: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of wrong answers that is allowed among the images that the model is sure of; without it, 0.02."""
    label_precision: Annotated[float, Field(gt=0, lt=1)] | None = None
    """For several labels per image: the threshold of each label is the lowest probability that reaches this precision
    on validation. Without it, it is the one with the largest F1."""
    precision: Literal["auto", "32", "16-mixed", "bf16-mixed"] = "auto"
    """Precision of training. `auto`: mixed precision on a GPU; float32 on a CPU, or bfloat16 in phases of more than two
    minutes if a trial shows that it is faster; float32 elsewhere."""
    compile: Literal["auto"] | bool = "auto"
    """Compile the training pass with torch.compile. `auto`: on a GPU, in phases in which a trial shows a gain."""
    log_every: Annotated[int, Field(ge=0)] = 0
    """Print the loss every this many steps; 0 is off."""
    model: Model
    """The network, see below."""
    data: Data
    """The images, see below."""
    sweep: Sweep | None = None
    """The sweep that selected the recipe; it changes no result."""
    phase: Annotated[list[Phase], Field(min_length=1)]
    """The phases of training in order, see below."""

    @field_validator("precision", mode="before")
    @classmethod
    def _bits(cls, value: Any) -> Any:
        """The name of a precision as it is also written: 32 or 16 as numbers, and the names of torch and Lightning."""
        if isinstance(value, bool):
            return value
        text = str(int(value)) if value in (16, 32) else value
        return PRECISIONS.get(text.strip().lower(), value) if isinstance(text, str) else value

    @field_validator("name")
    @classmethod
    def _plain(cls, value: str) -> str:
        # The name becomes part of a path: a recipe from elsewhere must not choose another folder.
        if value in (".", "..") or set(value) & set("/\\:") or visible(value) != value:
            raise ValueError("expected a file name without separators and control characters")
        return value

    def to_toml(self) -> str:
        """The recipe with all defaults, as recipe.toml holds it: reading it gives an equal recipe."""
        return tomli_w.dumps(_without_none(self.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    """Leave out keys that are None, because TOML has no null."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value
