"""Images as vectors: what published weights at hand make of them below the head, computed once and stored."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from linnaeus.console import Console
from linnaeus.data.batches import Batch
from linnaeus.data.decode import DECODE_VERSION
from linnaeus.data.table import Table
from linnaeus.device import available_cores, choose_device
from linnaeus.malloc import steady_heap
from linnaeus.models.pretrained import PRETRAINED, PretrainedWeights
from linnaeus.models.weight_store import local_weights, lookup
from linnaeus.models.weights import load_weights
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.cache import Cache, OverBudgetError
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.frozen import FrozenStages
from linnaeus.stores.samples import NoneReadableError, Samples, decode_split

LIKED = ("resnet50", "resnet34", "resnet18", "resnet101", "resnet152")
"""Networks whose vectors are preferred, in this order, where several have weights at hand."""

VERSION = 1
VALUES, INDICES = "values.npy", "indices.npy"
SMALLEST = 64  # pixels: below it the last stage of a network with stride 32 has nothing left to average over


@dataclass(frozen=True)
class Vectors:
    """Pooled vectors of the readable images of a table."""

    values: np.ndarray
    """(k, features) float32"""
    indices: np.ndarray
    """(k,) int64: the sample of the table that each vector is of, ascending"""
    weights: str
    """The published name of what made them"""


def usual_weights() -> str | None:
    """The published weights at hand that make the most useful vectors; None where none are at hand."""
    found = {PRETRAINED[name].model: name for name in reversed(local_weights())}
    return next((found[model] for model in LIKED if model in found), next(iter(found.values()), None))


def embed(
    table: Table, weights: str, *, cache: Cache, console: Console, device: str = "auto", compute: bool = True
) -> Vectors | None:
    """Vectors of all images of `table` by published weights at hand; None where the cache's budget is too small.

    Decoded images and vectors are kept in the cache, so that a second call reads them; without `compute` there is
    None instead of a first. Images that cannot be read have no vector. Small images, where the source holds arrays,
    go through the network near their own size. Raises UserError where the weights are not at hand.
    """
    preprocessing = _preprocessing(table, lookup(weights))
    signatures = Decoding(table, np.arange(len(table)), preprocessing.row_spec, available_cores(), None).signatures(
        False
    )
    about = json.dumps([VERSION, DECODE_VERSION, weights, preprocessing.to_dict()])
    name = f"vectors-{hashlib.sha256(about.encode() + signatures.tobytes()).hexdigest()[:32]}"
    with cache.lock(name):
        if (found := cache.find(name)) is not None:
            values = np.load(found.path / VALUES).astype(np.float32)
            return Vectors(values, np.load(found.path / INDICES), weights)
        vectors = _compute(table, weights, preprocessing, cache, console, choose_device(device)) if compute else None
        if vectors is not None:
            with suppress(OverBudgetError), cache.building(name) as folder:
                half = vectors.values.astype(np.float16)  # as activations are stored, unless they overflow
                exact = np.array_equal(half, vectors.values)
                cache.room(name, (half if exact else vectors.values).nbytes)
                np.save(folder / VALUES, half if exact else vectors.values)
                np.save(folder / INDICES, vectors.indices)
                cache.commit(name, {"n": len(vectors.indices)})
        return vectors


def _preprocessing(table: Table, published: PretrainedWeights) -> Preprocessing:
    resize, size = published.resize, published.size
    if table.images is not None:
        resize = size = min(size, max(SMALLEST, *table.images.shape[1:3]))
    return Preprocessing(resize, size, "crop", published.interpolation, 3, published.mean, published.std)


def _compute(
    table: Table, weights: str, preprocessing: Preprocessing, cache: Cache, console: Console, device: torch.device
) -> Vectors | None:
    network = load_weights(lookup(weights).model, weights, classes=1).model
    with console.progress("decoding for the network") as advance:
        try:
            decoded = decode_split(table, np.arange(len(table)), preprocessing.row_spec, cache, progress=advance)
        except NoneReadableError:
            return None
    samples = Samples(decoded.rows, table.labels[decoded.indices])
    frozen = FrozenStages(network.to(device).eval(), preprocessing, device, console, cache)

    def prepare(batch: Batch) -> torch.Tensor:
        return preprocessing(batch.pixels, batch.shapes)

    try:
        with steady_heap():
            stored = frozen.rows(["head"], samples, prepare, "vectors", {})
    except OverBudgetError:
        return None
    values, _ = stored.gather(np.arange(len(samples)))
    return Vectors(np.asarray(values, dtype=np.float32), decoded.indices, weights)
