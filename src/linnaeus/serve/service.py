"""From the images of a request to predictions: decode in processes, classify in batches, explain on request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from linnaeus.data.images.decode import UnreadableError
from linnaeus.errors import UserError
from linnaeus.inference.classifier import Classifier, Prediction
from linnaeus.serve.batching import Batcher
from linnaeus.serve.decoding import Decoders
from linnaeus.serve.explaining import Explainer
from linnaeus.serve.limits import Limits
from linnaeus.serve.metrics import Metrics
from linnaeus.serve.score_metrics import ScoreMetrics
from linnaeus.serve.uploads import Upload

TOP = 5  # classes, unless a client asks for another number
AT_ONCE = 8  # images of a request that are in work; the others wait, so that requests take turns


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
        self.metrics = Metrics()
        thresholds = None if classifier.detector is None else classifier.detector.thresholds
        self.scores = ScoreMetrics(self.metrics.registry, thresholds, classifier.run.has_distance)
        self.metrics.in_color.set_function(lambda: classifier.color.in_color)
        self.batcher = Batcher(
            classifier.answers,
            batch=self.limits.batch,
            window=self.limits.window,
            queue=self.limits.queue,
            observe=self.metrics.observe_batch,
        )
        self.metrics.in_progress.set_function(lambda: self.batcher.admission.in_progress)
        # Explanations run in the thread of the network, one after the other with predictions.
        self.explainer = Explainer(original or classifier, self.limits.explanations, self.batcher.run_in_network_thread)
        spec, finish = classifier.preprocessing.row_spec, classifier.color.load
        self._decoders = Decoders(spec, finish, self.limits.pixels, self.metrics.decode_seconds.observe)
        self.ready = False

    async def start(self) -> None:
        """Start batching and warm up the network, whose first predictions are slow."""
        self.batcher.start()
        p = self.classifier.preprocessing
        blank = np.zeros((self.limits.batch, p.size, p.size, p.channels), np.uint8)
        for n in {1, self.limits.batch}:
            await self.batcher.run_in_network_thread(partial(self.classifier.answers, blank[:n]))
        self.ready = True

    async def stop(self) -> None:
        self.ready = False
        await self.batcher.stop()
        self._decoders.stop()

    async def predict(
        self, uploads: Sequence[Upload], top: int | None, with_explanation: bool, client: str = ""
    ) -> list[Result]:
        """Results in the order of the images. An unreadable image gets an `error`; the others are answered.

        `top`: number of classes; by default five, or all where images have several labels, as with `linnaeus predict`.

        Cancelling the task stops all work that has not started. Raises RefusedError if the queue is full.
        """
        # A request of many images must not occupy all decoders.
        n, slots = len(uploads), asyncio.Semaphore(AT_ONCE)
        top = top or (len(self.classifier.classes) if self.classifier.several else TOP)
        with ExitStack() as admitted:
            # Both admissions before any work: a request is refused at once or answered in full.
            admitted.enter_context(self.batcher.admission.admit(n, client))
            if with_explanation:
                admitted.enter_context(self.explainer.admission.admit(n, client))
            # Not a TaskGroup: a cancelled one leaves reference cycles, which keep the images in memory for a while.
            results = await asyncio.gather(*(self._answer(u, top, with_explanation, slots) for u in uploads))
        for p in (result.prediction for result in results):
            label = "unreadable" if p.error is not None else p.verdict or "answered"
            self.metrics.images.labels(label).inc()
            if p.error is None:
                self.scores.observe(p.probability, p.distance)
        return results

    async def _answer(self, upload: Upload, top: int, with_explanation: bool, slots: asyncio.Semaphore) -> Result:
        async with slots:
            result = Result(await self._predict(upload), top)
            if with_explanation and result.prediction.error is None:
                result.explanation = await self.explainer.explain(result.prediction)
        return result

    async def _predict(self, upload: Upload) -> Prediction:
        c = self.classifier
        try:
            with self.batcher.prepare():
                pixels = await self._decoders.decode(upload.data)
        except (UnreadableError, UserError) as error:
            reason = error.reason if isinstance(error, UnreadableError) else str(error)
            return Prediction(upload.name, c.classes, c.names, None, error=reason)
        return c.prediction(upload.name, pixels, await self.batcher.submit(pixels))
