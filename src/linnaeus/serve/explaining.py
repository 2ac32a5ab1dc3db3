"""Heat maps and similar training images. They are bounded apart from predictions, and run between two batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from linnaeus.data.images.encode import data_uri, to_pillow
from linnaeus.errors import UserError
from linnaeus.explain.saliency import Explanation, choose_stages, explain
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.report.heat_maps import overlay
from linnaeus.serve.admission import Admission

if TYPE_CHECKING:
    from linnaeus.explain.neighbors import Gallery

NEIGHBORS = 5
MAPS = 6  # labels of an image that get a heat map, the most probable first
THUMBNAIL = 112  # longest side of a similar image, in pixels
Run = Callable[[Callable[[], dict[str, Any]]], Awaitable[dict[str, Any]]]


class Explainer:
    """Explains one image at a time, so that at most one explanation delays a batch of predictions."""

    def __init__(self, classifier: Classifier, capacity: int, run: Run):
        """`run`: runs a function in the thread of the network. `capacity`: images in progress, over all requests."""
        self.classifier, self._run = classifier, run
        self.stages = _heat_map_stages(classifier)
        self.gallery: Gallery | None = None
        self.admission = Admission(capacity, "explanations are in progress")
        self._one = asyncio.Semaphore(1)

    async def explain(self, prediction: Prediction) -> dict[str, Any]:
        """JSON of the heat map and the similar images, as far as they are available."""
        async with self._one:
            return await self._run(partial(self._explain, prediction))

    def _explain(self, prediction: Prediction) -> dict[str, Any]:
        record: dict[str, Any] = {}
        if self.stages:
            targets = prediction.given[:MAPS] or [prediction.index]
            explanations = explain(self.classifier, [prediction] * len(targets), target=targets, stages=self.stages)
            maps = [self._map(explanation) for explanation in explanations]
            record |= {**maps[0], "stage": self.stages[0]}
            if self.classifier.several:
                record["maps"] = maps
        if self.gallery is not None:
            # Without the client's name: the gallery would check whether that path is one of its own files.
            p = prediction
            anonymous = Prediction("", p.classes, p.names, p.probabilities, image=p.image)
            similar = self.gallery.nearest(anonymous, NEIGHBORS)
            record["like"] = [image.to_dict() | {"thumbnail": _thumbnail(image.image)} for image in similar]
        return record

    def _map(self, explanation: Explanation) -> dict[str, Any]:
        """JSON of the heat map of one class."""
        prediction, target = explanation.prediction, explanation.target
        assert prediction.image is not None
        heat_map = data_uri(to_pillow(overlay(prediction.image, explanation.maps[self.stages[0]])), "PNG")
        explained = {"class": prediction.classes[target], "name": explanation.name}
        return {
            "explained": explained | {"probability": explanation.probability},
            "heat_map": heat_map,
            "empty": explanation.empty,
        }


def _heat_map_stages(classifier: Classifier) -> tuple[str, ...]:
    """The stage for heat maps; empty if the model has no network to look into, as with ONNX files."""
    try:
        return choose_stages(classifier.network, classifier.preprocessing.size)
    except UserError:
        return ()


def _thumbnail(pixels: np.ndarray) -> str:
    """(H, W, C) uint8 -> data URI of a JPEG of at most THUMBNAIL pixels per side."""
    image = to_pillow(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG")
