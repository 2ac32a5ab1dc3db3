"""Runners compute the logits of cropped images: with the torch network, or with an ONNX file.

A runner also computes the distance of an image from what the model was trained on, where the model has references.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from linnaeus.device import choose_device
from linnaeus.errors import UserError
from linnaeus.metrics.ood import distances
from linnaeus.metrics.thumbnails import Thumbnails, area_weights
from linnaeus.modelfile.agreement import Agreement
from linnaeus.modelfile.onnx import DISTANCE, LOGITS, input_name
from linnaeus.modelfile.safetensors import ModelFile
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.models import Network
from linnaeus.preprocess import Preprocessing

NOT_FINITE = "the network computes values that are not finite, so there is no answer; train the model again"


@dataclass(frozen=True, eq=False)
class Scores:
    """What a model computes of N images."""

    logits: np.ndarray  # (N, classes) float32, uncalibrated
    # (N,) cosine distance from the training images; None where the model has no references.
    distances: np.ndarray | None

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of several batches of one model, at least one, in order."""
        distances = [part.distances for part in parts if part.distances is not None]
        return cls(np.concatenate([part.logits for part in parts]), np.concatenate(distances) if distances else None)


def to_numpy(values: Tensor | np.ndarray) -> np.ndarray:
    """A tensor of any precision and device as a float32 array; an array as it is."""
    return values.float().cpu().numpy() if isinstance(values, Tensor) else values


def network_scores(
    network: Network,
    references: np.ndarray | None,
    x: Tensor,
    thumbnails: Thumbnails | None = None,
    start: str | None = None,
) -> Scores:
    """Scores of normalized images x (N, C, H, W); without references (m, features) they have no distances.

    With `start`, x is what enters that stage, and there are no thumbnails.
    """
    if references is None:
        return Scores(to_numpy(network.run(x, start)), None)
    features, logits = network.features_and_logits(x, start)
    distance = distances(to_numpy(features), references)
    if thumbnails is not None:
        distance = thumbnails.farther(distance, to_numpy(thumbnails_of(x)))
    return Scores(to_numpy(logits), distance)


def thumbnails_of(x: Tensor) -> Tensor:
    """Normalized images (N, C, size, size) -> their thumbnails (N, SIDE * SIDE * C)."""
    weights = torch.from_numpy(area_weights(x.shape[-1])).to(x.device, x.dtype)
    return (weights @ x @ weights.T).flatten(1)


class Runner(Protocol):
    """Computes what a model says of cropped images."""

    kind: str  # `torch`, `onnx` or `onnx-int8`
    device: torch.device  # the device that images are best on; others are copied there

    @property
    def has_distance(self) -> bool:
        """Whether it computes the distance from the training images."""
        ...

    def scores(self, images: Tensor) -> Scores:
        """Scores of cropped images (N, size, size, C) uint8; their logits are not necessarily finite."""
        ...


class TorchRunner:
    """A network in evaluation mode, on a device."""

    kind = "torch"

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        device: torch.device,
        detector: UnknownDetector | None = None,
    ):
        self.network, self.preprocessing, self.device = network.to(device), preprocessing, device
        self.detector = detector

    @classmethod
    def of(cls, about: ModelFile, network: Network, device: torch.device) -> TorchRunner:
        """The runner of a network with the header of its model file."""
        return cls(network, about.preprocessing, device, UnknownDetector.read(about.unknown, about.unknown_tensors))

    def __reduce__(self) -> tuple[Any, ...]:
        """Tensors of a GPU could not be loaded without one; there the network is on the CPU then."""
        network = self.network if self.device.type == "cpu" else copy.deepcopy(self.network).cpu()
        return _restored, (network, self.preprocessing, self.device.type, self.detector)

    @property
    def has_distance(self) -> bool:
        return self.detector is not None and self.detector.references is not None

    @torch.inference_mode()
    def scores(self, images: Tensor) -> Scores:
        detector, x = self.detector, self.preprocessing.normalize(images.to(self.device))
        references, thumbnails = (None, None) if detector is None else (detector.references, detector.thumbnails)
        return network_scores(self.network, references, x, thumbnails)

    @torch.inference_mode()
    def scores_of_features(self, features: Tensor) -> Scores:
        """Scores of what enters the head, for images without thumbnails."""
        references = None if self.detector is None else self.detector.references
        return network_scores(self.network, references, features, start=self.network.stages[-1])


def _restored(network: Network, preprocessing: Preprocessing, device: str, detector: UnknownDetector | None) -> Runner:
    return TorchRunner(network, preprocessing, choose_device("cpu" if device == "cpu" else "auto"), detector)


class OnnxRunner:
    """An ONNX Runtime session of a file that `export` wrote.

    The graph resizes and crops its input. A cropped image is therefore put into the middle of a black square of side
    `resize`: the graph does not resize that, and its center crop is the image again, the same pixels as in torch.
    """

    device = torch.device("cpu")

    def __init__(self, session: Any, preprocessing: Preprocessing, kind: str, agreement: Agreement | None = None):
        self.session, self.kind, self.agreement = session, kind, agreement
        self.side, self.size = preprocessing.resize, preprocessing.size
        self.start = round((self.side - self.size) / 2)

    @property
    def has_distance(self) -> bool:
        return DISTANCE in (output.name for output in self.session.get_outputs())

    def scores(self, images: Tensor) -> Scores:
        n, *_, channels = images.shape
        padded = np.zeros((n, self.side, self.side, channels), np.uint8)
        inner = slice(self.start, self.start + self.size)
        padded[:, inner, inner] = images.cpu().numpy()
        logits, *distances = self.session.run(
            [LOGITS, DISTANCE][: 1 + self.has_distance], {input_name(self.session): padded}
        )
        return Scores(logits, distances[0] if distances else None)

    def raw(self, image: np.ndarray, output: str = LOGITS) -> np.ndarray:
        """Logits (classes,) of an image of any size, (H, W) or (H, W, C) uint8; the graph does the preprocessing."""
        image = image if image.ndim == 3 else image[:, :, None]
        feed = {input_name(self.session): np.ascontiguousarray(image)[None]}
        return self.session.run([output], feed)[0][0]


def finite_scores(score: Callable[[Tensor], Scores], images: Tensor) -> Scores:
    """The scores of images. Raises UserError if a logit is not finite: a figure must not count it as an answer."""
    scores = score(images)
    broken = int((~np.isfinite(scores.logits).all(1)).sum())
    if broken:
        raise UserError(f"{broken} of {len(scores.logits)} images: {NOT_FINITE}")
    return scores
