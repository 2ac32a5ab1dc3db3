"""What a server counts, as Prometheus text. No name or address of a client is kept."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
BATCH = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The counters of one server, in a registry of their own: two servers in a process do not meet."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        ProcessCollector(registry=own)
        self.requests = Counter("linnaeus_requests", "Requests by route and status.", ("route", "status"), registry=own)
        self.request_seconds = Histogram(
            "linnaeus_request_seconds", "Seconds from header to answer.", ("route",), buckets=SECONDS, registry=own
        )
        self.images = Counter(
            "linnaeus_pictures", "Images: answered, unsure, or unreadable.", ("result",), registry=own
        )
        self.decode_seconds = Histogram(
            "linnaeus_decode_seconds", "Seconds to decode an image.", buckets=SECONDS, registry=own
        )
        self.wait_seconds = Histogram(
            "linnaeus_wait_seconds", "Seconds that the first image of a batch waited.", buckets=SECONDS, registry=own
        )
        self.network_seconds = Histogram(
            "linnaeus_network_seconds", "Seconds of a batch in the network.", buckets=SECONDS, registry=own
        )
        self.batch_size = Histogram("linnaeus_batch_size", "Images of a batch.", buckets=BATCH, registry=own)
        self.in_hand = Gauge("linnaeus_pictures_in_hand", "Images let in and not yet answered.", registry=own)
        self.held_bytes = Gauge("linnaeus_held_bytes", "Bytes of requests' bodies in memory.", registry=own)

    def batch(self, images: int, waited: float, seconds: float) -> None:
        self.batch_size.observe(images)
        self.wait_seconds.observe(waited)
        self.network_seconds.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
