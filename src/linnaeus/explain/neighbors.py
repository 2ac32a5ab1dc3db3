"""Nearest neighbors: the training images whose features are most similar to those of an image."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from linnaeus.cache import OverBudgetError, default_cache
from linnaeus.console import Console, counted
from linnaeus.data.batches import Rows, Subset
from linnaeus.data.table import Table
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.models import Network
from linnaeus.stores.frozen import FrozenStages
from linnaeus.stores.samples import Samples, decode_split
from linnaeus.text import such_as

AT_ONCE = 4096  # images whose features are read at a time


@dataclass(frozen=True, eq=False)
class Neighbor:
    """A training image that is similar to a predicted one."""

    path: str  # as its source names it: relative to the source, or train[17]
    label: str  # its class
    name: str  # display name of the class
    similarity: float  # cosine similarity of the two feature vectors, -1 to 1
    image: np.ndarray  # (size, size, channels) uint8, as the network sees it

    def to_dict(self) -> dict[str, Any]:
        return {"path": self.path, "class": self.label, "name": self.name, "similarity": self.similarity}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images to compare with, and their features: the input of the network's head."""

    table: Table
    indices: np.ndarray  # (n,) the samples of the table
    rows: Rows  # pixels of the samples
    vectors: Tensor  # (n, features) float32 on the CPU, of length 1
    classifier: Classifier
    trained: bool  # whether the samples are known to be the training images of the model

    def __len__(self) -> int:
        return len(self.indices)

    def nearest(self, prediction: Prediction, k: int) -> list[Neighbor]:
        """The k images most similar to a predicted one, the nearest first, without the same file."""
        assert prediction.image is not None
        pixels = torch.from_numpy(prediction.image)[None].to(self.classifier.device)
        vector = vectors(self.classifier.network, self.classifier.preprocessing.normalize(pixels))[0].cpu()
        # One more than k, because the image itself may be in the gallery.
        similarity, positions = torch.topk(self.vectors @ vector, min(k + 1, len(self)))
        pairs = zip(positions.tolist(), similarity.clamp(max=1).tolist(), strict=True)
        return [
            training_image(self.classifier, self.table, int(self.indices[at]), self.rows, at, s)
            for at, s in pairs
            if not self._is(prediction.path, at)
        ][:k]

    def _is(self, path: str, at: int) -> bool:
        """Whether image `at` is the file at `path`."""
        if self.table.paths is not None:
            if os.path.abspath(path) == self.table.paths[self.indices[at]]:  # noqa: PTH100
                return True
            with suppress(OSError, ValueError):  # gone since, or in an archive
                return os.path.samefile(path, self.table.paths[self.indices[at]])  # noqa: PTH121 - texts, not Paths
        return False


def training_image(
    classifier: Classifier, table: Table, sample: int, rows: Rows, at: int, similarity: float = math.nan
) -> Neighbor:
    """Sample `sample` of a table, whose pixels are row `at`, with its labels and its similarity, if it was measured."""
    known = dict(zip(classifier.classes, classifier.names, strict=True))
    display = dict(zip(table.classes, table.names, strict=True)) | known
    labels = table.labels_of(sample)
    label, name = "|".join(labels), ", ".join(display[label] for label in labels) or "no label"
    pixels, shapes = rows.gather(np.array([at]))
    image = classifier.preprocessing.crop(torch.from_numpy(pixels), shapes)[0].numpy()
    return Neighbor(table.sample_id(sample), label, name, similarity, image)


def gallery(classifier: Classifier, source: str | Path, console: Console) -> Gallery:
    """The training images of `source`, with their vectors, which are computed once and kept in the cache.

    They are the images that the model was trained on, recognized by content (by path in the split.csv beside it for a
    model file of an earlier version). Where none is known they are the source's own training part, or all of it.
    Unreadable images are left out, with a warning. Raises UserError if nothing is left, if the network has
    nothing below a head, and where the cache is too small.
    """
    network, preprocessing, cache = classifier.network, classifier.preprocessing, default_cache()
    if len(network.stages) < 2:
        raise UserError(
            f"{network.arch['name']}: a network with a single stage has no features below its head; give it as an "
            "nn.Sequential that ends with the head"
        )
    table, indices, trained = _training(classifier, source)
    with console.progress("decoding") as advance:
        decoded = decode_split(table, indices, preprocessing.row_spec, cache, progress=advance)
    if decoded.left_out:
        n, example = len(decoded.left_out), ": ".join(decoded.left_out[0])
        console.warn(f"{source}: {n} of {counted(len(indices), 'image')} left out{such_as(n, example)}")
    # A subset even where it is the whole: earlier versions stored the features under the key of one.
    samples = Samples(Subset(decoded.store, decoded.readable), table.labels[decoded.indices])
    frozen = FrozenStages(network, preprocessing, classifier.device, console, cache)
    try:
        stored = frozen.rows([network.stages[-1]], samples, preprocessing.of_batch, "vectors", {})
    except OverBudgetError as error:
        raise UserError(
            f"{source}: its features do not fit into the cache ({error}); raise LINNAEUS_CACHE_GB"
        ) from None
    parts = np.split(np.arange(len(samples)), range(AT_ONCE, len(samples), AT_ONCE))
    values = torch.cat([_unit(network, torch.from_numpy(stored.gather(part)[0])) for part in parts])
    return Gallery(table, decoded.indices, samples.rows, values, classifier, trained)


def vectors(network: Network, x: Tensor) -> Tensor:
    """What the network's head sees of images (N, C, H, W), pooled, as directions: (N, features) of length 1."""
    with torch.inference_mode():
        return _unit(network, network.run(x, stop=network.stages[-1]))


def _unit(network: Network, x: Tensor) -> Tensor:
    return F.normalize(network.features(x.float()), dim=1)


def _training(classifier: Classifier, source: str | Path) -> tuple[Table, np.ndarray, bool]:
    """(table, samples to compare with, whether the model is known to have been trained on them)."""
    known = classifier.known_images(source)
    table = known.table
    trained = np.flatnonzero(known.all() == "train")
    if len(trained):
        return table, trained, True
    indices = table.where("train")
    indices = indices if len(indices) else np.arange(len(table))
    if not len(indices):
        raise UserError(f"{source}: holds no images to compare with; give the source of the training")
    return table, indices, False
