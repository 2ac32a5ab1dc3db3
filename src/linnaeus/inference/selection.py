"""Choose the images of a source to evaluate: never training images, unless they are asked for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from linnaeus.data.table import SPLIT_NAMES
from linnaeus.errors import UserError
from linnaeus.inference.membership import KnownImages

UNSEEN = "unseen"


@dataclass(frozen=True, eq=False)
class Selection:
    """The images of a source to measure a model on."""

    split: str  # what they are called: train, valid, test, all, or unseen (where the source holds others, too)
    measured: np.ndarray  # (n,) int64, indices in the table
    # (v,) int64: images that chose the model, to be counted apart; none where they are all that can be measured.
    validation: np.ndarray
    training: int  # number of images left out because the model was trained on them
    total: int  # number of images asked for


def select(known: KnownImages, requested: str | None, source: str) -> Selection:
    """The images of the split `requested`; None means test if the source has one, else valid, else all.

    Raises UserError if there is no such split, or the model was trained on all of its images.
    """
    requested = SPLIT_NAMES.get(requested or "", requested)
    named = known.table.split if (known.own != "").any() else known.own
    split = requested or next((name for name in ("test", "valid") if (named == name).any()), "all")
    if split == UNSEEN and not known.basis:
        raise UserError(
            f"{source}: no image is known to be unseen, because the model file has no record of its training images, "
            "and there is no split.csv of its run beside it; choose another --split"
        )
    candidates = _candidates(known, split)
    if known.table.accepted is not None and split != "train":
        candidates = candidates[~known.table.accepted[candidates]]
    splits = known.split_of(candidates)
    # Images of unknown origin may be from training; with --split train they are wanted.
    if split == "train":
        candidates = candidates[np.isin(splits, ("train", ""))]
    if not len(candidates):
        names = [name or "all" for name in known.table.counts()]
        raise UserError(f"{source}: has no split {split!r}; choose from {', '.join(dict.fromkeys([*names, 'all']))}")
    if split == "train":
        return Selection(split, candidates, candidates[:0], 0, len(candidates))
    # By content, not by the split that the source states: a test image may have been trained on elsewhere.
    trained, chose = splits == "train", splits == "valid"
    rest, validation = candidates[~trained & ~chose], candidates[chose]
    training, total = int(trained.sum()), len(candidates)
    if not len(rest) and (split == UNSEEN or not len(validation)):
        others = "; --split valid evaluates on those that selected it" if len(validation) else ""
        raise UserError(
            f"{source}: the model was trained on {training:,} of these {total:,} images, and none is unseen, so "
            f"it cannot be evaluated; add images, or evaluate on its training images with --split train{others}"
        )
    # Nothing is unseen: the images that selected the model are the least biased ones.
    if not len(rest):
        return Selection(requested or "valid", validation, rest, training, total)
    # The source states no split, but the images are recognized as one, so the figures are named after it.
    if requested is None and split == "all" and (splits != "").any():
        split = "test" if (splits[~trained & ~chose] == "test").all() else UNSEEN
    return Selection(split, rest, validation, training, total)


def _candidates(known: KnownImages, split: str) -> np.ndarray:
    """(k,) int64: the images of a split, as the source names it, else as the training did."""
    if split in ("all", UNSEEN):
        return np.arange(len(known.table))
    rows = known.table.where(split)
    return rows if len(rows) else np.flatnonzero(known.all() == split)
