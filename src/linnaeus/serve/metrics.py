"""Server metrics in Prometheus format. They contain no names or addresses of clients."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The metrics of one server, in their own registry so that two servers in one process stay separate."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "linnaeus_requests", "Requests by route and status.", ("route", "status"), registry=registry
        )
        self.request_seconds = Histogram(
            "linnaeus_request_seconds",
            "Time from request header to response.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.images = Counter(
            "linnaeus_images",
            "Images by result: answered, unsure, unknown or unreadable.",
            ("result",),
            registry=registry,
        )
        self.decode_seconds = Histogram(
            "linnaeus_decode_seconds", "Time to decode an image.", buckets=SECONDS, registry=registry
        )
        self.wait_seconds = Histogram(
            "linnaeus_wait_seconds", "Waiting time of the first image of a batch.", buckets=SECONDS, registry=registry
        )
        self.network_seconds = Histogram(
            "linnaeus_network_seconds", "Time of a batch in the network.", buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram("linnaeus_batch_size", "Images per batch.", buckets=BATCH_SIZES, registry=registry)
        self.in_progress = Gauge("linnaeus_images_in_progress", "Images in progress.", registry=registry)
        self.in_color = Gauge(
            "linnaeus_color_images", "Color images received by a model of gray images.", registry=registry
        )
        self.upload_bytes = Gauge(
            "linnaeus_upload_bytes", "Bytes of request bodies in memory or arriving.", registry=registry
        )

    def observe_batch(self, images: int, waited: float, seconds: float) -> None:
        """Record a batch: number of images, seconds that the first one waited, seconds in the network."""
        self.batch_size.observe(images)
        self.wait_seconds.observe(waited)
        self.network_seconds.observe(seconds)

    def render(self) -> bytes:
        return generate_latest(self.registry)
