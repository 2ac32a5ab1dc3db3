"""Admission of work: bounded, with a share kept for single images and for clients that hold little."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from linnaeus.serve.limits import RefusedError


class Admission:
    """Counts the images that were accepted and not yet answered, over all clients, or other work of limited capacity.

    An eighth of the capacity is kept for requests of a single image, and another eighth for clients that hold less than
    a quarter of the capacity, so that neither large requests nor one client lock out the others.
    """

    def __init__(self, capacity: int, work: str = "images are in progress"):
        """`work`: what is counted, for the message of a refusal."""
        self.capacity, self._work = capacity, work
        self.in_progress = 0
        self.seconds_per_image = 0.05  # estimate for Retry-After
        self._held = Counter[str]()

    @property
    def full(self) -> bool:
        return self.in_progress >= self.capacity

    def check(self, n: int, client: str = "") -> None:
        """Raise RefusedError (503) if there is no room for n images of a client."""
        share = self.capacity // 8
        room = self.capacity - share * (n > 1) - share * (self._held[client] >= 2 * share)
        if (self.in_progress + n > room and self.in_progress > 0) or n > self.capacity:
            seconds = round(self.in_progress * self.seconds_per_image)
            reason = f"busy: {self.in_progress} {self._work}, and the limit is {self.capacity}"
            raise RefusedError(503, reason, retry_after=min(max(seconds, 1), 60))

    @contextmanager
    def admit(self, n: int, client: str = "") -> Iterator[None]:
        """Accept n images of a client. Raises RefusedError (503) if there is no room for them."""
        self.check(n, client)
        self.in_progress += n
        self._held[client] += n
        try:
            yield
        finally:
            self.in_progress -= n
            self._held[client] -= n
            if not self._held[client]:
                del self._held[client]
