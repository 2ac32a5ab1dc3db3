"""What stands before the first epoch: recipe, split, network, decoded images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from linnaeus.check.inspection import group_copies
from linnaeus.console import Console
from linnaeus.data.decode import RowSpec
from linnaeus.data.download import fetch
from linnaeus.data.split import split_table
from linnaeus.data.table import NEAR_DUPLICATES, SPLITS, Table
from linnaeus.errors import UserError
from linnaeus.inference.source import open_for_recipe
from linnaeus.models import Network, create, load_module, wrap
from linnaeus.models.weight_store import local_weights
from linnaeus.models.weights import load_weights
from linnaeus.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from linnaeus.recipe import Recipe, load_recipe, override
from linnaeus.stores import default_cache
from linnaeus.stores.samples import Samples, decode_split
from linnaeus.training.choose import choose_recipe

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std), a value a channel, on the scale [0, 1]."""


def resolve_recipe(
    source: str | Path | Table,
    recipe: str | Recipe | None,
    model: str | nn.Module | None,
    weights: str | None,
    epochs: int | str | list[int] | None,
    settings: dict[str, Any] | None,
    seed: int | None,
    console: Console,
) -> tuple[Recipe, Table]:
    """The recipe with everything the caller overrides, and the source's table, unsplit."""
    overrides = dict(settings or {})
    if isinstance(model, str):
        overrides["model.name"] = model
    elif model is not None:
        overrides["model.name"] = "custom"
    if model is not None and (not isinstance(model, str) or ".py:" in model):
        # What the recipe's network is given means nothing to another.
        overrides |= {"model.arguments": {}, "model.head": None}
        overrides.setdefault("model.weights", "none")
    if weights is not None:
        overrides["model.weights"] = weights
    if seed is not None:
        overrides["seed"] = seed
    table: Table | None = None
    if recipe is None:
        table = _open(source, *(overrides.get(f"data.{key}") for key in ("train", "valid", "test", "split.groups")))
        recipe, why = choose_recipe(table, local_weights())
        console.say(f"recipe    {recipe}: {why}")
    if isinstance(recipe, Recipe):
        raw = recipe.model_dump(mode="json", exclude_none=True)
        resolved = override(raw, recipe.name, overrides, _epochs(epochs))
    else:
        resolved = load_recipe(recipe, overrides, _epochs(epochs))
    if table is None:
        data = resolved.data
        table = _open(source, data.train, data.valid, data.test, data.split.groups)
    return resolved, table


def open_split(table: Table, recipe: Recipe, console: Console) -> Table:
    """Every sample in its split, by the recipe's shares and seed; groups stay together."""
    split = recipe.data.split
    if split.groups and not (table.split == "").any() and (len(table.where("valid")) or recipe.data.valid == "test"):
        raise UserError(
            f"{table.source}: data.split.groups = {split.groups!r} has nothing to divide, since the source comes with "
            "its own parts; leave it out, or give the images as one folder or CSV without parts"
        )
    if split.groups == NEAR_DUPLICATES:
        table = group_copies(table, console)
    elif table.offer:
        console.say(f"groups    {table.offer}")
    return split_table(
        table, valid=split.valid, test=split.test, seed=split.seed, valid_is_test=recipe.data.valid == "test"
    )


def build_network(
    recipe: Recipe, classes: int, channels: int, module: nn.Module | None, console: Console
) -> tuple[Network, Normalisation | None]:
    """The network with its weights, and the normalisation that these were trained with (None without weights)."""
    name, arguments = recipe.model.name, dict(recipe.model.arguments)
    own = module is not None or ".py:" in name
    if own and recipe.model.weights != "none":
        raise UserError(f"weights = {recipe.model.weights!r}: a network of your own loads its weights itself; use none")
    if recipe.model.head is not None:
        if own:
            raise UserError("model.head: what the head of a network of your own looks at is a matter of its code")
        arguments["head_stages"] = recipe.model.head.stages
    if module is not None:
        return wrap(module, classes, channels), None
    if ".py:" in name:
        return load_module(name, classes, channels), None
    if recipe.model.weights == "none":
        return create(name, classes, channels, **arguments), None
    with console.progress(f"weights {recipe.model.weights}", "bytes") as advance:
        loaded = load_weights(
            name, recipe.model.weights, classes=classes, channels=channels, arguments=arguments, fetch=fetch,
            progress=advance,
        )  # fmt: skip
    for note in loaded.notes:
        console.say(f"weights   {note}")
    return loaded.model, (tuple(loaded.normalization["mean"]), tuple(loaded.normalization["std"]))


def check_size(network: Network, recipe: Recipe, channels: int) -> None:
    """Raise UserError where the images are too small for one of our networks: tried without memory or work."""
    size = recipe.data.size
    if network.arch["name"] == "custom":
        return
    arch = network.arch
    with torch.device("meta"):
        twin = create(arch["name"], arch["classes"], channels, **arch["arguments"])
    try:
        twin.eval()(torch.empty(1, channels, size, size, device="meta"))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        usual = f"{arch['name']}, which is used with {network.usual_size}"
        raise UserError(f"data.size = {size}: too small for {usual} ({reason})") from None


def preprocessing_of(recipe: Recipe, channels: int, weights: Normalisation | None) -> Preprocessing:
    """The preprocessing of evaluation, as the recipe says; `normalise = "data"` is measured later, on the rows."""
    data = recipe.data
    mean, std = (0.0,) * channels, (1.0,) * channels
    if data.normalise == "weights" and weights is not None:
        mean, std = weights
    elif data.normalise in ("weights", "imagenet"):
        mean, std = IMAGENET_MEAN, IMAGENET_STD
    if len(mean) != channels:  # one gray channel stands for three: their means agree well enough
        mean, std = (float(np.mean(mean)),) * channels, (float(np.mean(std)),) * channels
    return Preprocessing(data.resize, data.size, data.fit, data.interpolation, channels, mean, std)


def load_samples(
    table: Table, recipe: Recipe, preprocessing: Preprocessing, strict: bool, console: Console
) -> tuple[dict[str, Samples], list[tuple[str, str]]]:
    """Decode every image of every split, once. Returns the samples by split, and (path, reason) of the unreadable.

    They are warned of, unless `strict`, where the caller refuses them. Raises UserError where too little is left.
    """
    samples: dict[str, Samples] = {}
    bad: list[tuple[str, str]] = []
    evaluation = preprocessing.row_spec
    training = RowSpec(
        recipe.data.train_resize or evaluation.size, evaluation.fit, evaluation.interpolation, evaluation.channels
    )
    for split in SPLITS:
        indices = table.where(split)
        if not len(indices):
            continue
        with console.progress(f"decoding {split}") as advance:
            spec = training if split == "train" else evaluation
            decoded = decode_split(table, indices, spec, default_cache(), kind=f"{split} images", progress=advance)
        if decoded.store.note:
            console.say(f"{split:9} {decoded.store.note}")
        bad += decoded.left_out
        kept = decoded.indices
        samples[split] = Samples(decoded.rows, table.labels[kept], table.group_numbers(kept))
    if bad and not strict:
        said = f"unreadable image(s), such as {bad[0][0]}: {bad[0][1]}"
        console.warn(f"{len(bad)} {said}; left out, all named in bad_images.csv")
    lost = np.setdiff1d(np.unique(table.labels), np.unique(samples["train"].labels))
    if len(lost):
        names = ", ".join(table.names[i] for i in lost)
        raise UserError(f"{table.source}: no readable training image of {names}; add some, or remove the class")
    return samples, bad


def measure_pixels(train: Samples, preprocessing: Preprocessing) -> Preprocessing:
    """`normalise = "data"`: mean and standard deviation of the training pixels, by channel, on [0, 1]."""
    channels = preprocessing.channels
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    for start in range(0, len(train), 256):
        pixels, shapes = train.rows.gather(np.arange(start, min(start + 256, len(train))))
        for row, (height, width) in zip(pixels, shapes, strict=True):  # without the padding
            values = row[:height, :width].reshape(-1, channels).astype(np.float64) / 255
            count += len(values)
            total += values.sum(0)
            squares += (values**2).sum(0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return Preprocessing(
        preprocessing.resize, preprocessing.size, preprocessing.fit, preprocessing.interpolation, channels,
        tuple(round(float(v), 4) for v in mean), tuple(round(float(v), 4) for v in std),
    )  # fmt: skip


def _open(
    source: str | Path | Table, train: str | None, valid: str | None, test: str | None, groups: str | None
) -> Table:
    if isinstance(source, Table):
        return source
    return open_for_recipe(source, {"train": train, "valid": valid, "test": test, "split": {"groups": groups}})


def _epochs(epochs: int | str | list[int] | None) -> list[int] | None:
    """`5`, `"5,2"` or [5, 2] -> a number for each phase."""
    if epochs is None or isinstance(epochs, list):
        return epochs
    parts = str(epochs).split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UserError(f"--epochs {epochs}: expected a number, or one for each phase, as in 5,2")
    return [int(part) for part in parts]
