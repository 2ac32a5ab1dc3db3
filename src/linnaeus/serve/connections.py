"""Patience with clients has an end: a connection that says nothing, or half of a header, is closed.

uvicorn waits for a request's header for ever, and `limit_concurrency` counts idle connections as work: 500 of them
would shut everybody out. Here idle ones are closed after a while, and sooner where there are too many.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from linnaeus.serve.limits import Limits


def patient(limits: Limits) -> type[H11Protocol]:
    """A protocol for uvicorn that keeps to `limits`."""

    class Patient(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _stuck: asyncio.TimerHandle | None = None
        since = 0.0
        """When the client was last answered, or connected (the loop's clock)."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since = self.loop.time()
            if len(self.connections) > limits.connections:
                make_room(self.connections)
            self._arm()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.in_hand:
                self._disarm()
            elif self._deadline is None:  # half a header: each byte more gives no more time
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            if self._stuck is not None:
                self._stuck.cancel()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stuck = self.loop.call_later(limits.send_seconds, self.give_up)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._stuck is not None:
                self._stuck.cancel()

        def on_response_complete(self) -> None:
            self.since = self.loop.time()
            super().on_response_complete()

        @property
        def in_hand(self) -> bool:
            """Whether a request is being read or answered."""
            return self.cycle is not None and not self.cycle.response_complete

        @property
        def owing(self) -> bool:
            """Whether it is the client's turn: to ask, to finish asking, or to take its answer."""
            return not self.in_hand or self.cycle.more_body or self.flow.write_paused

        def _arm(self) -> None:
            self._deadline = self.loop.call_later(limits.header_seconds, self.give_up)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def give_up(self) -> None:
            self.transport.abort()  # and not close(), which would wait for the client to take what is left

    return Patient


def make_room(connections: set[Any]) -> None:
    """Close the connection whose client has kept the server waiting longest; none if the server owes all an answer."""
    owing = [each for each in connections if each.transport is not None and each.owing]
    if owing:
        min(owing, key=lambda each: each.since).give_up()
