"""From the images of a request to predictions: decode in threads, classify in batches, explain on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
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

LARGE = 25_000_000  # pixels according to the header; larger images are decoded one at a time
NEIGHBORS = 5
THUMBNAIL = 112  # longest side of a similar image, in pixels
EXPLAIN_BATCH = 2  # images explained at a time; predictions of other clients run in between


@dataclass(eq=False)
class Result:
    """A prediction, with its explanation if one was requested."""

    prediction: Prediction
    top: int
    explanation: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The JSON of `linnaeus predict`, plus the heat map and similar images."""
        return self.prediction.to_dict(self.top) | (self.explanation or {})


class Service:
    """A classifier shared by many clients. Started and stopped inside one event loop."""

    def __init__(self, classifier: Classifier, limits: Limits | None = None, original: Classifier | None = None):
        """`original`: the network that explains predictions, if `classifier` is an ONNX export of it."""
        self.classifier, self.limits = classifier, limits or Limits()
        self.original = original or classifier
        self.metrics = Metrics()
        self.batcher = Batcher(
            classifier.probabilities,
            batch=self.limits.batch,
            window=self.limits.window,
            queue=self.limits.queue,
            observe=self.metrics.observe_batch,
        )
        self.metrics.in_progress.set_function(lambda: self.batcher.in_progress)
        self._decoders = ThreadPoolExecutor(available_cores(), "linnaeus-decode")
        self._large_decoder = ThreadPoolExecutor(1, "linnaeus-large")
        self.stages = _heat_map_stages(self.original)
        self.gallery: Gallery | None = None
        self.ready = False

    async def start(self) -> None:
        """Start batching and warm up the network, whose first predictions are slow."""
        self.batcher.start()
        p = self.classifier.preprocessing
        blank = np.zeros((self.limits.batch, p.size, p.size, p.channels), np.uint8)
        for n in {1, self.limits.batch}:
            await self.batcher.run_in_network_thread(partial(self.classifier.probabilities, blank[:n]))
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        await self.batcher.stop()
        for pool in (self._decoders, self._large_decoder):
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def explains(self) -> bool:
        """Whether heat maps are available."""
        return bool(self.stages)

    async def predict(self, uploads: Sequence[Upload], top: int, with_explanation: bool) -> list[Result]:
        """Results in the order of the images. An unreadable image gets an `error`; the others are answered.

        Raises RefusedError if the queue is full.
        """
        with self.batcher.admit(len(uploads)):
            predictions = await asyncio.gather(*map(self._predict, uploads))
            results = [Result(prediction, top) for prediction in predictions]
            if with_explanation:
                await self._explain([result for result in results if result.prediction.error is None])
        for p in predictions:
            label = "unreadable" if p.error is not None else "unsure" if p.unsure else "answered"
            self.metrics.images.labels(label).inc()
        return results

    async def _predict(self, upload: Upload) -> Prediction:
        c = self.classifier
        try:
            with self.batcher.prepare():
                pixels = await self._decode(upload.data)
        except UnreadableError as error:
            return Prediction(upload.name, c.classes, c.names, None, error=error.reason)
        except UserError as error:
            return Prediction(upload.name, c.classes, c.names, None, error=str(error))
        probabilities = await self.batcher.submit(pixels)
        return Prediction(upload.name, c.classes, c.names, probabilities, image=pixels, threshold=c.threshold)

    async def _decode(self, data: bytes) -> np.ndarray:
        """Decode an image. Very large ones share one thread, so that they cannot occupy all decoders."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._decoders, self._load_unless_large, data)
        if pixels is None:
            pixels = await loop.run_in_executor(self._large_decoder, self._load, data)
        return pixels

    def _load_unless_large(self, data: bytes) -> np.ndarray | None:
        """The image as the network sees it; None if its header says that it is large.

        Raises UnreadableError if the image exceeds the limit.
        """
        height, width = header_size(data) or (0, 0)
        limit = self.limits.pixels
        if limit is not None and height * width > limit:
            reason = f"too large: {width} x {height} pixels; this server accepts up to {limit:,} pixels"
            raise UnreadableError("image", reason, kind="too-large")
        return None if height * width > LARGE else self._load(data)

    def _load(self, data: bytes) -> np.ndarray:
        """The image as the network sees it."""
        started = perf_counter()
        pixels = self.classifier.preprocessing.load(data)
        self.metrics.decode_seconds.observe(perf_counter() - started)
        return pixels

    async def _explain(self, results: list[Result]) -> None:
        """Add explanations to the results of a request."""
        for start in range(0, len(results), EXPLAIN_BATCH):
            batch = results[start : start + EXPLAIN_BATCH]
            predictions = [result.prediction for result in batch]
            explanations = await self.batcher.run_in_network_thread(partial(self._explanations, predictions))
            for result, explanation in zip(batch, explanations, strict=True):
                result.explanation = explanation

    def _explanations(self, predictions: list[Prediction]) -> list[dict[str, Any]]:
        """JSON of the heat map and the similar images of each prediction, as far as they are available."""
        records: list[dict[str, Any]] = [{} for _ in predictions]
        if self.stages:
            for record, e in zip(records, explain(self.original, predictions, stages=self.stages), strict=True):
                assert e.prediction.image is not None
                explained = {"class": e.prediction.classes[e.target], "name": e.name, "probability": e.probability}
                heat_map = data_uri(to_pillow(overlay(e.prediction.image, e.maps[self.stages[0]])), "PNG")
                record |= {"explained": explained, "stage": self.stages[0], "heat_map": heat_map}
        gallery = self.gallery
        if gallery is not None:
            for record, p in zip(records, predictions, strict=True):
                # Without the client's name: the gallery would check whether that path is one of its own files.
                anonymous = Prediction("", p.classes, p.names, p.probabilities, image=p.image)
                record["like"] = [_similar_image(n) for n in gallery.nearest(anonymous, NEIGHBORS)]
        return records


def _heat_map_stages(classifier: Classifier) -> tuple[str, ...]:
    """The stage for heat maps; empty if the model has no network to look into, as with ONNX files."""
    try:
        return choose_stages(classifier.network, classifier.preprocessing.size)
    except UserError:
        return ()


def _similar_image(neighbor: Neighbor) -> dict[str, Any]:
    return neighbor.to_dict() | {"picture": _thumbnail(neighbor.image)}


def _thumbnail(pixels: np.ndarray) -> str:
    """(H, W, C) uint8 -> data URI of a JPEG of at most THUMBNAIL pixels per side."""
    image = to_pillow(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return data_uri(image, "JPEG")
