"""The decoded images of a run, by split."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from linnaeus.cache import default_cache
from linnaeus.console import Console, counted
from linnaeus.data.table import SPLITS, Table, class_counts
from linnaeus.errors import UserError
from linnaeus.preprocess import Preprocessing
from linnaeus.recipe import Recipe
from linnaeus.stores.contents import HashedImages, with_copies
from linnaeus.stores.image_statistics import StatisticsBuilder
from linnaeus.stores.samples import EarlierRows, Samples, decode_split
from linnaeus.text import such_as
from linnaeus.training.setup.request import EarlierRun


def load_samples(
    table: Table,
    recipe: Recipe,
    preprocessing: Preprocessing,
    strict: bool,
    console: Console,
    statistics: StatisticsBuilder | None = None,
) -> tuple[dict[str, Samples], list[tuple[str, str]], np.ndarray]:
    """Decode every image of every split once, for its pixels and for `statistics`.

    Returns samples by split, (path, reason) of every unreadable image, and the content hash of every image (n,).

    Warns of unreadable images, unless `strict`: the caller then refuses them. Raises UserError if a split has no
    readable image, or training has none of some class.
    """
    samples: dict[str, Samples] = {}
    unreadable: list[tuple[str, str]] = []
    images = HashedImages(table, default_cache(), None if statistics is None else statistics.observe)
    evaluation = preprocessing.row_spec
    # Training rows may be larger than those of evaluation, so that crops have room.
    training = replace(evaluation, size=recipe.data.train_resize or evaluation.size)
    for split in SPLITS:
        indices = table.where(split)
        if not len(indices):
            continue
        spec = training if split == "train" else evaluation
        with console.progress(f"decoding {split}") as advance:
            kind = f"{split} images"
            decoded = decode_split(table, indices, spec, default_cache(), kind=kind, progress=advance, images=images)
        if decoded.store.note:
            console.say(f"{split:9} {decoded.store.note}")
        unreadable += decoded.left_out
        kept = decoded.indices
        samples[split] = Samples(decoded.rows, table.labels[kept])
        samples[split].accepted = None if table.accepted is None else table.accepted[kept]
    if unreadable and not strict:
        path, reason = unreadable[0]
        alike = sum(other == reason for _, other in unreadable)
        many = "" if alike == len(unreadable) else f" (so are {alike:,})" if alike > 1 else ""
        console.warn(
            f"{counted(len(unreadable), 'unreadable image')} left out{such_as(len(unreadable), path)}: {reason}{many}; "
            "bad_images.csv lists all"
        )
    _refuse_missing(table, samples["train"])
    contents = images.hashes(np.arange(len(table)))
    for split, part in samples.items():
        kept = part.kept(table.where(split))
        part.groups = with_copies(table.group_numbers(kept), contents[kept])
    return samples, unreadable, contents


def keep_together(table: Table, samples: dict[str, Samples], copies: np.ndarray | None) -> None:
    """Note which images are copies; `copies` (n,) are numbers that copies in a table share, altered ones too.

    Of training images for cross-validation: a head that has seen a copy would be evaluated on what it knows, and so
    would its penalty. Of the others for intervals: five copies of a photo are not five independent images.
    """
    for split, part in samples.items():
        # Counted from 1, because 0 is no copy of others.
        numbers = None if copies is None else copies[part.kept(table.where(split))] + 1
        groups = part.groups if numbers is None else with_copies(part.groups, numbers)
        if split == "train":
            part.folds = groups
        else:
            part.groups = groups


def _refuse_missing(table: Table, train: Samples) -> None:
    """Raise UserError if no training image of some class is readable."""
    n = len(table.classes)
    # An image is missed only where its class has no other one.
    missing = np.flatnonzero((class_counts(train.labels, n) == 0) & (class_counts(table.labels, n) > 0))
    if len(missing):
        names = ", ".join(table.names[i] for i in missing)
        raise UserError(f"{table.source}: no readable training image of {names}; add some, or remove the class")


def link_earlier(samples: dict[str, Samples], table: Table, earlier: EarlierRun | None) -> None:
    """Note for each sample which image of an earlier run it is, if there is such a run."""
    for split, part in samples.items():
        if earlier is not None and split in earlier.samples:
            others = earlier.samples[split]
            known = others.kept(earlier.table.where(split))
            position = {earlier.table.sample_id(i): k for k, i in enumerate(known.tolist())}
            wanted = part.kept(table.where(split)).tolist()
            positions = np.array([position.get(table.sample_id(i), -1) for i in wanted], np.int64)
            part.earlier = EarlierRows(others.rows, positions, earlier.exact, earlier.taken_over)


def measure_normalization(train: Samples, preprocessing: Preprocessing) -> Preprocessing:
    """`normalize = "data"`: the preprocessing with mean and standard deviation of the training pixels, by channel."""
    channels = preprocessing.channels
    count, total, squares = 0, np.zeros(channels), np.zeros(channels)
    # In batches, because all pixels may exceed the memory.
    for start in range(0, len(train), 256):
        pixels, shapes = train.rows.gather(np.arange(start, min(start + 256, len(train))))
        for row, (height, width) in zip(pixels, shapes, strict=True):
            values = row[:height, :width].reshape(-1, channels).astype(np.float64) / 255  # without the padding
            count += len(values)
            total += values.sum(0)
            squares += (values**2).sum(0)
    mean = total / count
    # A lower bound: images of one color have no deviation to divide by.
    std = np.sqrt(np.maximum(squares / count - mean**2, 1e-8))
    return replace(
        preprocessing,
        mean=tuple(round(float(v), 4) for v in mean),
        std=tuple(round(float(v), 4) for v in std),
    )
