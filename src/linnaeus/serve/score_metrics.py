"""Metrics of the scores of the answers: quantiles since the start, histograms, and the thresholds of the model.

A model whose images change is less confident, its images lie farther from the training images, or both: these metrics
show it without any labels. Memory is bounded, whatever the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from prometheus_client import CollectorRegistry, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from linnaeus.metrics.ood import Thresholds

SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
OF_THRESHOLD = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 3.0)
"""Buckets of the distance, as multiples of the threshold: the scale of a distance depends on the network."""
CONFIDENCE_BINS = np.linspace(0, 1, 2001)
DISTANCE_BINS = np.concatenate([[0], np.geomspace(1e-6, 2, 1500)])
"""Edges of bins that are 1 % wide, over all distances that exist."""


class Quantiles(Collector):
    """Quantiles of a score since the start, from counts in bins; exported as one gauge a share."""

    def __init__(self, name: str, text: str, edges: np.ndarray):
        self._name, self._text, self._edges = name, text, edges
        self._counts = np.zeros(len(edges) - 1, np.int64)

    def observe(self, value: float) -> None:
        """Count a value; the last bin has all above, the first all below."""
        last = len(self._counts) - 1
        self._counts[min(max(int(np.searchsorted(self._edges, value, "right")) - 1, 0), last)] += 1

    def quantile(self, share: float) -> float | None:
        """The value that a share of the images does not exceed, up to the width of a bin; None without images."""
        counts = np.cumsum(self._counts)
        if not counts[-1]:
            return None
        i = int(np.searchsorted(counts, share * counts[-1], "left"))
        before = counts[i - 1] if i else 0
        inside = (share * counts[-1] - before) / max(counts[i] - before, 1)
        return float(self._edges[i] + inside * (self._edges[i + 1] - self._edges[i]))

    def collect(self) -> Iterable[Metric]:
        family = GaugeMetricFamily(self._name, self._text, labels=("quantile",))
        for share in SHARES:
            value = self.quantile(share)
            if value is not None:
                family.add_metric((f"{share:g}",), value)
        yield family


class ScoreMetrics:
    """Metrics of confidence and distance. A model that does not recognize unknown images has only the confidence."""

    def __init__(self, registry: CollectorRegistry, limits: Thresholds | None, has_distance: bool):
        confidence = "Calibrated probability of the most likely class"
        self._confidence = Histogram("linnaeus_confidence", f"{confidence}.", buckets=CONFIDENCES, registry=registry)
        self._confidences = _registered(registry, "confidence", confidence, CONFIDENCE_BINS)
        self._distance: Histogram | None = None
        if limits is None:
            return
        minimum = "Images with a lower probability are unknown."
        Gauge("linnaeus_unknown_probability", minimum, registry=registry).set(limits.probability)
        if limits.distance is not None and not has_distance:
            return  # by the probability alone, fewer images are unknown than those of validation
        share = "Share of the validation images that are unknown; similar images should have about the same share."
        Gauge("linnaeus_unknown_expected", share, registry=registry).set(1 - limits.accepted / limits.n)
        if limits.distance is None:
            return
        distance = "Cosine distance from the training images"
        Gauge("linnaeus_unknown_distance", "Images at a larger distance are unknown.", registry=registry).set(
            limits.distance
        )
        # Buckets relative to the threshold, so that dashboards work for every model.
        buckets = [round(multiple * limits.distance, 9) for multiple in OF_THRESHOLD]
        self._distance = Histogram("linnaeus_distance", f"{distance}.", buckets=buckets, registry=registry)
        self._distances = _registered(registry, "distance", distance, DISTANCE_BINS)

    def observe(self, confidence: float, distance: float | None) -> None:
        """Record the scores of an answer."""
        self._confidence.observe(confidence)
        self._confidences.observe(confidence)
        if self._distance is not None and distance is not None:
            self._distance.observe(distance)
            self._distances.observe(distance)


def _registered(registry: CollectorRegistry, name: str, text: str, edges: np.ndarray) -> Quantiles:
    quantiles = Quantiles(f"linnaeus_{name}_quantile", f"{text}: quantiles since the start.", edges)
    registry.register(quantiles)
    return quantiles
