"""The memory for request bodies, shared fairly: when it is short, the client that holds most gives way."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from linnaeus.device import return_freed_memory
from linnaeus.serve.admission import Admission
from linnaeus.serve.limits import RefusedError

RELEASED = 64 << 20  # bytes of uploads after which freed memory is returned to the system
UNPARSED = 64  # requests that wait to be parsed, which takes 3 ms each
DELAY = 1.0  # seconds until then: the last of them is still in use


class UploadMemory:
    """Counts the bytes of all request bodies that are in memory or arriving, at most `limit`.

    Beyond it, the largest upload that is still arriving ends, of the client that holds most: many large uploads that
    never end cannot keep out small ones.
    """

    def __init__(self, limit: int, on_release: Callable[[], None] = lambda: None):
        """`on_release`: called whenever another `RELEASED` bytes were released."""
        self.limit, self.used, self.released = limit, 0, 0
        self._on_release = on_release
        self.parsing = asyncio.Lock()
        """Held while a part of a form or of JSON is parsed: at most one in a turn of the event loop."""
        self.unparsed = Admission(UNPARSED, "requests wait to be parsed")
        """Requests of which a part has arrived and is not parsed yet."""
        self.clients = Counter[str]()
        self._open: set[UploadReservation] = set()

    @contextmanager
    def reserve(self, client: str = "") -> Iterator[UploadReservation]:
        """The bytes of one request, released at the end of the block."""
        reservation = UploadReservation(self, client)
        self._open.add(reservation)
        try:
            yield reservation
        finally:
            self._open.discard(reservation)
            self.released += reservation.size
            reservation.release()
            if self.released >= RELEASED:
                self.released = 0
                self._on_release()

    def make_room(self, newcomer: UploadReservation) -> None:
        """End other uploads until all fit. Raises RefusedError (503) if the newcomer would have to give way."""
        while self.used > self.limit:
            arriving = [r for r in self._open if r.end is not None and r.size]
            largest = max(arriving, key=self._weight, default=newcomer)
            if self._weight(largest) <= self._weight(newcomer):
                raise too_many_uploads()
            largest.give_way()

    def _weight(self, reservation: UploadReservation) -> tuple[int, int]:
        return self.clients[reservation.client], reservation.size


@dataclass(eq=False)
class UploadReservation:
    """The bytes that one request occupies."""

    memory: UploadMemory
    client: str
    size: int = 0
    end: Callable[[], None] | None = None  # ends the upload, while it is arriving; None when it is complete
    ended: bool = False  # whether the upload gave way to another

    def add(self, n: int) -> None:
        """Reserve n more bytes. Raises RefusedError (503) if there is no room for them."""
        if self.ended:
            raise too_many_uploads()
        self._change(n)
        self.memory.make_room(self)

    def release(self) -> None:
        self._change(-self.size)

    def give_way(self) -> None:
        """End the upload."""
        self.release()
        self.ended = True
        end, self.end = self.end, None
        assert end is not None, "only an upload that is arriving can give way"
        end()

    def _change(self, n: int) -> None:
        self.size += n
        self.memory.used += n
        self.memory.clients[self.client] += n
        if not self.memory.clients[self.client]:
            del self.memory.clients[self.client]


def return_memory_soon() -> None:
    """Return freed memory to the system, in a thread, after `DELAY`."""
    loop = asyncio.get_running_loop()
    loop.call_later(DELAY, loop.run_in_executor, None, return_freed_memory)


def too_many_uploads() -> RefusedError:
    return RefusedError(503, "too many uploads at the moment; try again later", retry_after=1, close=True)
