"""From the images of a request to its answers: decode in threads, classify in batches, explain where asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from linnaeus.data.decode import UnreadableError, header_size
from linnaeus.data.encode import data_uri, to_pillow
from linnaeus.device import available_cores
from linnaeus.errors import UserError
from linnaeus.explain.saliency import choose_stages, explain
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.report.heat_maps import overlay
from linnaeus.serve.batching import Batcher
from linnaeus.serve.limits import Limits
from linnaeus.serve.metrics import Metrics
from linnaeus.serve.uploads import Upload

if TYPE_CHECKING:
    from linnaeus.explain.neighbors import Gallery, Neighbor

LARGE = 25_000_000  # pixels, by the header; images above it are decoded in a lane of their own
NEIGHBORS = 5
THUMB = 112  # pixels a side of a neighbor
EXPLAINED_AT_ONCE = 2  # images, between which others get their turn in the network


@dataclass(eq=False)
class Answer:
    """A prediction, and why, where that was asked."""

    prediction: Prediction
    top: int
    why: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON line of `linnaeus predict`, and beside it the heat map and what looks alike."""
        return self.prediction.to_dict(self.top) | (self.why or {})


class Service:
    """A classifier that many clients share. Started and stopped with the event loop that it lives in."""

    def __init__(self, classifier: Classifier, limits: Limits | None = None, original: Classifier | None = None):
        """`original`: the network that heat maps and neighbors look into, where an ONNX file of it answers."""
        self.classifier, self.limits = classifier, limits or Limits()
        self.original = original or classifier
        self.metrics = Metrics()
        self.batcher = Batcher(
            classifier.probabilities, most=self.limits.batch, window=self.limits.window, queue=self.limits.queue,
            observe=self.metrics.batch,
        )  # fmt: skip
        self.metrics.in_hand.set_function(lambda: self.batcher.in_hand)
        self._decoders = ThreadPoolExecutor(available_cores(), "linnaeus-decode")
        self._large = ThreadPoolExecutor(1, "linnaeus-large")
        self.stages = _stages(self.original)
        self.gallery: Gallery | None = None
        self.ready = False

    async def start(self) -> None:
        """Start the batches, and warm the network up: the first images are slower than all others."""
        self.batcher.start()
        p = self.classifier.preprocessing
        blank = np.zeros((self.limits.batch, p.size, p.size, p.channels), np.uint8)
        for n in {1, self.limits.batch}:
            await self.batcher.in_network(lambda n=n: self.classifier.probabilities(blank[:n]))  # type: ignore[misc]
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        await self.batcher.stop()
        for pool in (self._decoders, self._large):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def explains(self) -> bool:
        """Whether there are heat maps."""
        return bool(self.stages)

    async def predict(self, uploads: Sequence[Upload], top: int, why: bool) -> list[Answer]:
        """Answers in the order of the images. One that cannot be read has `error` and does not stop the rest.

        Raises RefusedError where the queue is full.
        """
        with self.batcher.room(len(uploads)):
            predictions = await asyncio.gather(*map(self._one, uploads))
            answers = [Answer(prediction, top) for prediction in predictions]
            if why:
                await self._explain([each for each in answers if each.prediction.error is None])
        for each in predictions:
            result = "unreadable" if each.error is not None else "unsure" if each.unsure else "answered"
            self.metrics.images.labels(result).inc()
        return answers

    async def _one(self, upload: Upload) -> Prediction:
        c = self.classifier
        try:
            with self.batcher.on_the_way():
                pixels = await self._decode(upload.data)
        except UnreadableError as error:
            return Prediction(upload.name, c.classes, c.names, None, error=error.reason)
        except UserError as error:
            return Prediction(upload.name, c.classes, c.names, None, error=str(error))
        found = await self.batcher.submit(pixels)
        return Prediction(upload.name, c.classes, c.names, found, image=pixels, threshold=c.threshold)

    async def _decode(self, data: bytes) -> np.ndarray:
        """Very large images take turns in a thread of their own: however many come, others pass them by."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._load, data, True)
        if pixels is None:
            pixels = await loop.run_in_executor(self._large, self._load, data, False)
        assert pixels is not None
        return pixels

    def _load(self, data: bytes, look: bool) -> np.ndarray | None:
        """The image as the network sees it, or None where `look` finds it to be a large one."""
        if look:
            height, width = header_size(data) or (0, 0)
            most = self.limits.pixels
            if most is not None and height * width > most:
                reason = f"too large: {width} x {height} pixels, and this server takes {most:,}"
                raise UnreadableError("image", reason, kind="too-large")
            if height * width > LARGE:
                return None
        started = perf_counter()
        pixels = self.classifier.preprocessing.load(data)
        self.metrics.decode_seconds.observe(perf_counter() - started)
        return pixels

    async def _explain(self, answers: list[Answer]) -> None:
        """Add the heat map, and what looks alike where there is a gallery."""
        for start in range(0, len(answers), EXPLAINED_AT_ONCE):
            some = answers[start : start + EXPLAINED_AT_ONCE]
            found = await self.batcher.in_network(lambda some=some: self._why(some))  # type: ignore[misc]
            for answer, why in zip(some, found, strict=True):
                answer.why = why

    def _why(self, answers: Sequence[Answer]) -> list[dict[str, Any]]:
        predictions = [each.prediction for each in answers]
        told: list[dict[str, Any]] = [{} for _ in answers]
        if self.stages:
            for each, e in zip(told, explain(self.original, predictions, stages=self.stages), strict=True):
                assert e.prediction.image is not None
                what = {"class": e.prediction.classes[e.target], "name": e.name, "probability": e.probability}
                shown = overlay(e.prediction.image, e.maps[self.stages[0]])
                each |= {"explained": what, "stage": self.stages[0], "heat_map": data_uri(to_pillow(shown), "PNG")}
        gallery = self.gallery
        if gallery is not None:
            for each, p in zip(told, predictions, strict=True):
                # Without the name that the client gave: the gallery would look for a file of that name.
                unnamed = Prediction("", p.classes, p.names, p.probabilities, image=p.image)
                each["like"] = [_neighbor(n) for n in gallery.nearest(unnamed, NEIGHBORS)]
        return told


def _stages(classifier: Classifier) -> tuple[str, ...]:
    """The stage that heat maps are drawn at; none where the model has no network to look into."""
    try:
        return choose_stages(classifier.network, classifier.preprocessing.size)
    except UserError:
        return ()


def _neighbor(neighbor: Neighbor) -> dict[str, Any]:
    return neighbor.to_dict() | {"picture": thumbnail(neighbor.image)}


def thumbnail(pixels: np.ndarray) -> str:
    """(H, W, C) uint8 -> data URI of a JPEG of at most THUMB pixels a side."""
    image = to_pillow(pixels)
    image.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG")
