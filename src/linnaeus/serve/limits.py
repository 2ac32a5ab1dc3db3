"""What a client may cost: bytes, images, pixels, seconds. And how a refusal looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The bounds of a server. Everything that waits is bounded, so that memory is too."""

    request_bytes: int = 32 * MIB
    """Of one request's body."""
    images: int = 32
    """Of one request."""
    pixels: int | None = None
    """Of one image, as its header says; None leaves it to `data.decode`, which has bounds of its own."""
    queue: int = 256
    """Images of all requests that are being decoded, wait, or are in the network."""
    held_bytes: int = 256 * MIB
    """Of all requests' bodies together."""
    batch: int = 16
    """Images that go through the network at once."""
    window: float = 0.004
    """Seconds that an image waits for company, at most, while others are being decoded."""
    body_seconds: float = 30.0
    """From the end of a request's header to the end of its body."""
    header_seconds: float = 10.0
    """For a request's header, and for a connection that says nothing."""
    send_seconds: float = 30.0
    """For a client to take its answer."""
    connections: int = 1000
    """Open ones; beyond them those go first that have kept the server waiting longest."""


class RefusedError(Exception):
    """A request that is not served: an HTTP status, one line that says why, and when to try again, in seconds."""

    def __init__(self, status: int, why: str, *, retry_after: int | None = None, close: bool = False):
        super().__init__(why)
        self.status, self.why, self.retry_after, self.close = status, why, retry_after, close

    @property
    def headers(self) -> dict[str, str]:
        retry = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return retry | ({"Connection": "close"} if self.close else {})


class Held:
    """Counts the bytes of all requests' bodies, and refuses what would be too many of them."""

    def __init__(self, most: int):
        self.most, self.now = most, 0

    @contextmanager
    def account(self) -> Iterator[Account]:
        """What one request holds; given back at the end, whatever happens."""
        account = Account(self)
        try:
            yield account
        finally:
            self.now -= account.size


@dataclass
class Account:
    """The bytes that one request holds."""

    held: Held
    size: int = 0

    def add(self, n: int) -> None:
        """Take n more bytes. Raises RefusedError where all requests together would hold too many."""
        if self.held.now + n > self.held.most:
            raise RefusedError(503, "too many uploads at once; try again in a moment", retry_after=1)
        self.held.now += n
        self.size += n
