"""Recipe keys as users write them: keys for every phase, and the names that other tools give to a key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from linnaeus.console import counted
from linnaeus.errors import UserError, did_you_mean, normalized
from linnaeus.recipe.spec import Data, Phase, Recipe, Split
from linnaeus.recipe.tables import Augment, Head, Model, Schedule

AMBIGUOUS = {"head": "phase.1.head or model.head", "train": "phase.1.train or data.train"}
"""Keys of a phase that are also keys of another table."""
OPTIMIZER = ("lr", "lr_decay", "optimizer", "momentum", "nesterov", "betas", "weight_decay", "decay_norms", "schedule")
"""Keys of a phase that a solved head does not use. A file may hold them: a run writes all keys to its recipe."""
NOT_SOLVED = ("epochs", *OPTIMIZER)
LISTED = ("batch", "epochs", "lr")  # keys that may be a list, with one value per phase

SYNONYMS = {
    "lr": ("learning_rate", "base_lr", "lr0", "initial_lr", "eta", "max_lr"),
    "batch": ("batch_size", "batchsize", "bs", "per_device_train_batch_size", "train_batch_size"),
    "epochs": ("epoch", "n_epochs", "num_epochs", "nb_epochs", "max_epochs", "num_train_epochs", "fine_tune_epochs"),
    "size": ("imgsz", "img_size", "image_size", "imagesize", "input_size", "img", "resolution", "crop_size"),
    "seed": ("random_state", "random_seed", "manual_seed"),
    "precision": ("amp", "fp16", "bf16", "half", "mixed_precision"),
    "best": ("metric", "eval_metric", "metric_for_best_model"),
    "model.name": ("arch", "architecture", "backbone", "network", "net", "model_name"),
    "model.weights": ("pretrained", "pretrain", "initial_checkpoint", "weights"),
    "data.normalize": ("normalise", "normalization", "mean", "std"),
    "data.split.valid": ("val_split", "validation_split", "valid_pct", "val_size", "valid_split"),
    "data.split.test": ("test_size", "test_split"),
    "phase.1.optimizer": ("opt", "optim", "optimiser"),
    "phase.1.weight_decay": ("wd", "l2", "weightdecay"),
    "phase.1.schedule": ("sched", "scheduler", "lr_scheduler", "lr_scheduler_type", "cos_lr"),
    "phase.1.schedule.warmup": ("warmup", "warmup_epochs", "warmup_steps", "warmup_ratio"),
    "phase.1.schedule.pct_start": ("rise",),
    "phase.1.schedule.div": ("div_factor", "start_div"),
    "phase.1.schedule.div_final": ("final_div", "end_div"),
    "phase.1.augment.trivial_augment": ("trivial", "trivialaugment", "trivialaugmentwide", "ta_wide"),
    "model.frozen_precision": ("frozen",),
    "phase.1.label_smoothing": ("smoothing", "label_smoothing_factor"),
    "phase.1.early_stop": ("patience", "early_stopping", "early_stopping_patience"),
    "phase.1.clip": ("clip_grad", "grad_clip", "max_grad_norm", "gradient_clip_val"),
    "phase.1.micro_batch": ("accumulate", "grad_accum", "gradient_accumulation_steps", "accumulation_steps"),
    "phase.1.train": ("freeze", "frozen_stages", "freeze_epochs", "trainable"),
    "phase.1.ema": ("model_ema", "ema_decay", "model_ema_decay"),
    "phase.1.mixup": ("mixup_alpha",),
    "phase.1.cutmix": ("cutmix_alpha",),
    "phase.1.class_weights": ("class_weight",),
    "phase.1.augment": ("augmentation", "augmentations", "transforms", "transform", "auto_augment"),
}
"""Recipe key -> its former names, and those of Ultralytics, fastai, Keras, timm, AutoGluon, transformers, sklearn."""
OURS = {name: key for key, names in SYNONYMS.items() for name in names}
WITHOUT_KEY = dict.fromkeys(
    ("workers", "num_workers", "nw", "j", "dataloader_num_workers", "nthreads"),
    "images are decoded once, by as many threads as there are cores; no number of workers is needed",
)
WITHOUT_KEY |= dict.fromkeys(("project", "output_dir", "exp_name", "save_dir"), "--out DIR names the run folder")
WITHOUT_KEY |= dict.fromkeys(
    ("data", "data_dir", "data_path", "dataset", "source", "train_dir"),
    "the data stands without an option, as in linnaeus train photos",
)
WITHOUT_KEY |= dict.fromkeys(("num_classes", "nb_classes", "n_classes", "nc"), "the data says which classes there are")
"""Names of other tools for what has no key here -> the reason."""
OPTIONS = {"model": "model.name", "weights": "model.weights", "seed": "seed", "epochs": "epochs"}
"""Option of a command -> the key that it stands for."""


def refuse_twice(settings: Mapping[str, Any], **options: Any) -> None:
    """Raise UserError where one of OPTIONS and a setting give a key different values: one would be ignored."""
    for option, value in options.items():
        for key, other in settings.items():
            same = key == OPTIONS[option] or (option == "epochs" and re.fullmatch(r"phase\.\d+\.epochs", key))
            if same and value is not None and str(other) != str(value):
                raise UserError(f"--{option} {value} and --set {key}={other} contradict each other; leave one out")


def _tables() -> Iterator[tuple[str, type[BaseModel]]]:
    yield from (("", Recipe), ("model.", Model), ("model.head.", Head), ("data.", Data), ("data.split.", Split))
    yield from (("phase.1.", Phase), ("phase.1.augment.", Augment))
    for schedule in get_args(get_args(Schedule)[0]):
        yield "phase.1.schedule.", schedule


def full_keys(name: str) -> list[str]:
    """The dotted keys that end in `name`: `size` -> ["data.size"]."""
    return list(dict.fromkeys(f"{prefix}{name}" for prefix, table in _tables() if name in table.model_fields))


def is_table(key: str) -> bool:
    """Whether a dotted key is that of a table: `data.split`, `phase.2`."""
    return _table(key.split(".")) in (prefix for prefix, _ in _tables())


def explain_unknown(key: str) -> str:
    """What to write instead of an unknown dotted key: " (did you mean phase.1.lr?)", a reason, or nothing."""
    *parents, last = key.split(".")
    name = normalized(last)
    if name in WITHOUT_KEY:
        return f": {WITHOUT_KEY[name]}"
    if name in OURS:
        return f" (did you mean {OURS[name]}?)"
    # The key may exist in another table: `lr` belongs to a phase.
    elsewhere = [place for place in full_keys(name) if place != key]
    if elsewhere:
        return f" (did you mean {' or '.join(elsewhere)}?)"
    siblings = {name for prefix, table in _tables() if prefix == _table(parents) for name in table.model_fields}
    everything = sorted({name for _, table in _tables() for name in table.model_fields})
    return did_you_mean(last, siblings if parents else everything) or did_you_mean(last, everything)


def _table(parents: Sequence[str]) -> str:
    """The prefix in `_tables` of a table: ("phase", "2") -> "phase.1."."""
    return "".join(f"{'1' if part.isdigit() else part}." for part in parents)


def expand(raw: Mapping[str, Any], origin: str, overrides: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The overrides as dotted keys and values, in their order: a later one wins. `raw` may change in between.

    `lr`, and any other key of a phase, stands for that key of every phase that trains; `lr = [1e-3, 1e-4]` gives each
    phase its own; `size` sets `data.size` and resizes images in proportion.
    """
    for key, value in overrides.items():
        first = key.partition(".")[0]
        if key == "size":
            yield from _resized(raw, value)
        elif first in AMBIGUOUS:
            raise UserError(f"--set {key}: write {AMBIGUOUS[first]}")
        elif first in Phase.model_fields and first not in Recipe.model_fields:
            yield from _spread(raw, origin, overrides, key)
        else:
            yield key, value


def _spread(raw: Mapping[str, Any], origin: str, overrides: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    """One key of a phase, for every phase."""
    phases, value = raw.get("phase"), overrides[key]
    if not (isinstance(phases, list) and phases and all(isinstance(phase, dict) for phase in phases)):
        raise UserError(f"{origin}: phase: expected a list of tables, each with the heading [[phase]]")
    heads = {i: overrides.get(f"phase.{i}.head", phase.get("head")) for i, phase in enumerate(phases, 1)}
    # A solved head uses no learning rate, so values are meant for the other phases.
    chosen = [i for i, head in heads.items() if key not in NOT_SOLVED or head != "auto"]
    if not chosen:
        raise UserError(_unused(key, origin, key))
    # Lists such as `train` are one value; for other keys a list holds one value per phase.
    if not (isinstance(value, list) and key in LISTED):
        value = [value] * len(chosen)
    if len(value) != len(chosen):
        raise UserError(
            f"--set {key}: {counted(len(value), 'value')}, but {origin} has {counted(len(chosen), 'phase')} for it; "
            "give one value, or one for each"
        )
    for i, item in zip(chosen, value, strict=True):
        yield f"phase.{i}.{key}", item


def refuse_unused(raw: Mapping[str, Any], origin: str, overrides: Mapping[str, Any]) -> None:
    """Raise UserError where an override names a key that its phase does not use: every value would do the same.

    Where `head` of that phase is set too, as by a sweep over it, the key may be meant for its other value.
    """
    for key in overrides:
        match = re.fullmatch(r"phase\.([1-9]\d*)\.(\w+)(\..+)?", key)
        if not match or match[2] not in (*OPTIMIZER, "batch") or f"phase.{match[1]}.head" in overrides:
            continue
        if raw["phase"][int(match[1]) - 1].get("head") == "auto":
            raise UserError(_unused(key, origin, match[2]))


def _unused(key: str, origin: str, last: str) -> str:
    return f"--set {key}: {origin} solves the head, which needs no {last}; choose another --recipe"


def _resized(raw: Mapping[str, Any], size: Any) -> Iterator[tuple[str, Any]]:
    """`data.size`, with `resize` and `train_resize` in their old proportion to it."""
    data = raw.get("data")
    old = data.get("size") if isinstance(data, dict) else None
    if isinstance(data, dict) and type(old) is int and old > 0 and type(size) is int:
        for key in ("resize", "train_resize"):
            if type(data.get(key)) is int:
                yield f"data.{key}", max(size, round(data[key] * size / old))
    yield "data.size", size
