"""Resource limits per client, and the error for a request that exceeds them."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """Limits of a server. Everything that can queue up is bounded, and memory with it."""

    request_bytes: int = 32 * MIB  # size of one request body
    images: int = 32  # images in one request
    pixels: int | None = None  # pixels of one image according to its header; None for the limits of `data.decode` alone
    queue: int = 256  # images in progress: being decoded, waiting, or in the network, over all requests
    explanations: int = 32  # images being explained or waiting for it, over all requests; at least `images`
    total_bytes: int = 256 * MIB  # size of all request bodies that are in memory or arriving
    batch: int = 16  # batch size of the network
    window: float = 0.004  # seconds that an incomplete batch waits for images that are being decoded
    body_seconds: float = 30.0  # time from the end of a request header to the end of the body
    header_seconds: float = 10.0  # time for a request header, and for an idle connection
    send_seconds: float = 30.0  # time without progress while a client receives its response
    connections: int = 1000  # open connections; above this number, one that waits for its client is closed
    # Connections whose client does not read its response; above this number, the one without progress is closed.
    unread_responses: int = 32


class RefusedError(Exception):
    """A request that is not served.

    `status`: HTTP status. `reason`: one line. `retry_after`: seconds. `close`: whether the connection must be closed,
    because the rest of the body is not read.
    """

    def __init__(self, status: int, reason: str, *, retry_after: int | None = None, close: bool = False):
        super().__init__(reason)
        self.status, self.reason, self.retry_after, self.close = status, reason, retry_after, close

    @property
    def headers(self) -> dict[str, str]:
        retry = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return retry | ({"Connection": "close"} if self.close else {})
