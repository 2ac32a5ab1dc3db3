"""Embeddings: the pooled features that a pretrained network computes for each image, stored by source and weights."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from linnaeus.cache import Cache, OverBudgetError
from linnaeus.console import Console
from linnaeus.data.images.decode import DECODE_VERSION
from linnaeus.data.table import Table
from linnaeus.device import available_cores, choose_device, steady_heap
from linnaeus.errors import UserError
from linnaeus.models.network import Network
from linnaeus.models.weights.files import WeightsInfo
from linnaeus.models.weights.loading import describe_weights, file_of, load_weights
from linnaeus.models.weights.pretrained import IMAGENET_MEAN, IMAGENET_STD, PRETRAINED
from linnaeus.models.weights.records import sha256_of
from linnaeus.models.weights.store import local_weights
from linnaeus.preprocess import Preprocessing
from linnaeus.stores.activations import IMAGES, image_stores
from linnaeus.stores.decoding import Decoding
from linnaeus.stores.frozen import FrozenStages
from linnaeus.stores.rows import save_array
from linnaeus.stores.samples import NoneReadableError, Samples, decode_split

PREFERRED = ("resnet50", "resnet34", "resnet18", "resnet101", "resnet152")
"""Networks in the order in which they are chosen when weights of several are present."""

VERSION = 1
VALUES, INDICES = "values.npy", "indices.npy"
SMALLEST = 64  # pixels: below this the last stage of a network with stride 32 has only one position to pool


@dataclass(frozen=True)
class Embeddings:
    """Pooled features of the readable images of a table."""

    values: np.ndarray  # (k, features) float32
    indices: np.ndarray  # (k,) int64: the table index of each image, ascending
    weights: str  # name of the pretrained weights
    images: tuple[str, ...] = ()  # the stores of the images, where they were computed just now


def default_weights() -> str | None:
    """The local pretrained weights of the most preferred network; None where there are no local weights."""
    by_model = {PRETRAINED[name].model: name for name in reversed(local_weights())}
    return next((by_model[model] for model in PREFERRED if model in by_model), next(iter(by_model.values()), None))


def embed(
    table: Table, weights: str, *, cache: Cache, console: Console, device: str = "auto", compute: bool = True
) -> Embeddings | None:
    """Embeddings of all readable images of `table` by local weights, a name or a file.

    They are kept in the cache, as are the decoded images. Returns None where the cache has none and `compute` is
    false, where the cache's budget is too small, and where no image can be read. Images of a source that holds arrays
    go through the network near their own size. Raises UserError if the weights are not local.
    """
    if Path(weights).is_dir():
        raise UserError(f"{weights}: a folder; give the name or the file of pretrained weights")
    info, file = describe_weights(weights), file_of(weights)
    if info.model is None:
        raise UserError(f"{weights}: does not say which network it is for; give another file of weights")
    preprocessing = _preprocessing(table, info)
    decoding = Decoding(table, np.arange(len(table)), preprocessing.row_spec, available_cores(), None)
    signatures = decoding.signatures
    # A file may be replaced under its name.
    identity = weights if file is None else sha256_of(file)
    key = json.dumps([VERSION, DECODE_VERSION, identity, preprocessing.to_dict()]).encode() + signatures.tobytes()
    name = f"vectors-{hashlib.sha256(key).hexdigest()[:32]}"
    with cache.lock(name):
        entry = cache.find(name)
        if entry is not None:
            values, indices = np.load(entry.path / VALUES), np.load(entry.path / INDICES)
            return Embeddings(values.astype(np.float32), indices, weights)
        if not compute:
            return None
        network = load_weights(info.model, weights, classes=1).model.to(choose_device(device)).eval()
        embeddings = _compute(table, weights, network, preprocessing, cache, console)
        if embeddings is not None:
            with suppress(OverBudgetError):  # they are returned even where they cannot be kept
                _write(cache, name, embeddings)
        return embeddings


def _write(cache: Cache, name: str, embeddings: Embeddings) -> None:
    # The features come from an activation store, mostly in float16, and are then float16 values already.
    half = embeddings.values.astype(np.float16)
    values = half if np.array_equal(half, embeddings.values) else embeddings.values
    with cache.building(name) as folder:
        cache.room(name, values.nbytes)
        save_array(folder / VALUES, values)
        save_array(folder / INDICES, embeddings.indices)
        cache.commit(name, {"n": len(embeddings.indices), IMAGES: list(embeddings.images)})


def _preprocessing(table: Table, info: WeightsInfo) -> Preprocessing:
    size = info.size or 224
    resize = info.resize or round(size / 0.875)  # the usual share of the center crop
    if table.images is not None:
        resize = size = min(size, max(SMALLEST, *table.images.shape[1:3]))
    mean, std = info.mean or IMAGENET_MEAN, info.std or IMAGENET_STD
    return Preprocessing(resize, size, "crop", info.interpolation or "bilinear", 3, mean, std)


def _compute(
    table: Table, weights: str, network: Network, preprocessing: Preprocessing, cache: Cache, console: Console
) -> Embeddings | None:
    with console.progress("decoding for the network") as advance:
        try:
            decoded = decode_split(table, np.arange(len(table)), preprocessing.row_spec, cache, progress=advance)
        except NoneReadableError:
            return None
    samples = Samples(decoded.rows, table.labels[decoded.indices])
    frozen = FrozenStages(network, preprocessing, next(network.parameters()).device, console, cache)
    try:
        with steady_heap():
            rows = frozen.rows(["head"], samples, preprocessing.of_batch, "embeddings", {})
    except OverBudgetError:
        return None
    values, _ = rows.gather(np.arange(len(samples)))
    images = image_stores(decoded.rows)
    return Embeddings(np.asarray(values, dtype=np.float32), decoded.indices, weights, images)
