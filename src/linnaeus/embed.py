"""Pictures as vectors: what published weights at hand make of them below the head, computed once and stored."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.data.batches import Batch, Subset
from linnaeus.data.table import Table
from linnaeus.device import choose_device
from linnaeus.models.published import PUBLISHED
from linnaeus.models.weights import at_hand, load_weights, lookup
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.cache import Cache, OverBudgetError
from linnaeus.stores.frozen import Frozen, Samples
from linnaeus.stores.pixels import build_pixels

LIKED = ("resnet50", "resnet34", "resnet18", "resnet101", "resnet152")
"""Networks whose vectors are preferred, in this order, where several have weights at hand."""

SMALLEST = 64  # pixels: below it the last stage of a network with stride 32 has nothing left to average over


@dataclass(frozen=True)
class Vectors:
    """Pooled vectors of the readable pictures of a table."""

    values: np.ndarray
    """(k, features) float32"""
    indices: np.ndarray
    """(k,) int64: the sample of the table that each vector is of, ascending"""
    weights: str
    """The published name of what made them"""


@dataclass(frozen=True)
class Plain:
    """One device at full precision, with no training engine around it."""

    device: torch.device
    precision: str = "32-true"
    rank: int = 0
    world: int = 1

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()


def usual_weights() -> str | None:
    """The published weights at hand that make the most useful vectors; None where none are at hand."""
    found = {PUBLISHED[name].model: name for name in reversed(at_hand())}
    return next((found[model] for model in LIKED if model in found), next(iter(found.values()), None))


def embed(table: Table, weights: str, *, cache: Cache, console: Console, device: str = "auto") -> Vectors | None:
    """Vectors of all pictures of `table` by published weights at hand; None where the cache's budget is too small.

    Decoded pictures and vectors are kept in the cache, so a second call reads them. Pictures that cannot be read have
    no vector. Small pictures, where the source holds arrays, go through the network near their own size.
    Raises UserError where the weights are not at hand.
    """
    published = lookup(weights)
    with console.progress(f"weights {weights}", "bytes"):
        loaded = load_weights(published.model, weights, classes=1)
    resize, size = published.resize, published.size
    if table.images is not None:
        resize = size = min(size, max(SMALLEST, *table.images.shape[1:3]))
    known = loaded.normalisation
    preprocessing = Preprocessing(
        resize, size, "crop", published.interpolation, 3, tuple(known["mean"]), tuple(known["std"])
    )
    with console.progress("decoding for the network") as advance:
        rows = build_pixels(table, np.arange(len(table)), preprocessing.row_spec, cache=cache, progress=advance)
    good = np.setdiff1d(np.arange(len(table)), np.fromiter(rows.failed, np.int64, len(rows.failed)))
    if not len(good):
        return None
    samples = Samples(rows if len(good) == len(table) else Subset(rows, good), table.labels[good])
    machine = Plain(choose_device(device))
    frozen = Frozen(loaded.model.to(machine.device).eval(), preprocessing, machine, console, cache)

    def prepare(batch: Batch) -> torch.Tensor:
        return preprocessing(batch.pixels, batch.shapes)

    try:
        stored = frozen.rows(["head"], samples, prepare, "vectors", {})
    except OverBudgetError:
        return None
    values, _ = stored.gather(np.arange(len(good)))
    return Vectors(np.asarray(values, dtype=np.float32), good, weights)
