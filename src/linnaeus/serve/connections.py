"""Limits for connections: disconnect idle and slow clients, and those that do not speak HTTP.

uvicorn waits indefinitely for a request header, and its `limit_concurrency` counts idle connections as load, so that
500 of them would lock out everybody else. Here an idle connection is closed after a while, and earlier if there are too
many.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from heapq import nsmallest
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from linnaeus.serve.access import error_body
from linnaeus.serve.framing import LimitedConnection
from linnaeus.serve.limits import Limits

SHUTDOWN_SECONDS = 30  # beyond the time for a request body: for requests in progress when the server is stopped
BACKLOG = 1024  # connections that the system accepts while the server is busy
ACCEPTED_AT_ONCE = 8  # asyncio accepts as many before it serves the others
READ_AT_ONCE = 1 << 16  # bytes; asyncio reads four times as much before it turns to the next of many large uploads
CLOSED_AT_ONCE = 0.1  # share of the connections; closing one by one would search all of them for each new one


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration with the limits that `TimeoutProtocol` enforces."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.limits = limits
        super().__init__(
            app,
            http=TimeoutProtocol,
            # WebSockets are not used, and every protocol offered can be attacked.
            ws="none",
            lifespan="on",
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            backlog=ACCEPTED_AT_ONCE,
            timeout_keep_alive=int(limits.header_seconds),
            timeout_graceful_shutdown=int(limits.body_seconds + SHUTDOWN_SECONDS),
        )


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 with limits on the time for a header, for taking a response, and on the number of connections.

    The time for a body is limited in `uploads`, where it can be answered with status 408.
    """

    waiting_since = 0.0
    """When the client was last answered, or connected (time of the event loop)."""
    paused_since = 0.0
    """When the client stopped reading its response."""
    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    @property
    def limits(self) -> Limits:
        return cast(ServerConfig, self.config).limits

    def connection_made(self, transport: Any) -> None:
        self.conn = LimitedConnection()
        transport.max_size = READ_AT_ONCE
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            close_longest_waiting(self.connections, max(1, int(CLOSED_AT_ONCE * self.limits.connections)))
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        try:
            super().data_received(data)
        except h11.ProtocolError:  # garbage while the response is being sent: asyncio would log a traceback
            self.disconnect()
        if self.in_progress:
            self._stop_header_timer()
        elif self._header_timer is None:  # an incomplete header: further bytes do not extend the time limit
            self._start_header_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not valid HTTP in one line of JSON, unless its response has started already."""
        if self.in_progress:
            self.cycle.disconnected = True  # or the application would send a response, too
        # The response has begun: a second one in the stream would confuse the client.
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.disconnect()
            return
        connection = cast(LimitedConnection, self.conn)
        body = error_body(f"invalid HTTP request: {connection.problem}")
        length = str(len(body)).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", length), (b"connection", b"close")]
        events = (
            h11.Response(status_code=connection.problem_status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        )
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.paused_since = self.loop.time()
        self._send_timer = self.loop.call_later(self.limits.send_seconds, self.disconnect)
        connections = cast(set[TimeoutProtocol], self.connections)
        # Connections that were closed a moment ago are still in the set.
        paused = [c for c in connections if c.flow is not None and c.flow.write_paused and not c.transport.is_closing()]
        if len(paused) > self.limits.unread_responses:
            min(paused, key=lambda c: c.paused_since).disconnect()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
        # Browsers and libraries send a request after the last response; an attack sends thousands at once.
        if self.conn.their_state is h11.DONE and self.conn.trailing_data[0]:
            self.transport.close()
        super().on_response_complete()

    @property
    def in_progress(self) -> bool:
        """Whether a request is being read or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def waiting_for_client(self) -> bool:
        """Whether the client has to act: send a request, finish sending it, or receive the response."""
        return not self.in_progress or self.cycle.more_body or self.flow.write_paused

    def disconnect(self) -> None:
        self.transport.abort()  # close() would wait for the client to receive the rest of the response

    def _start_header_timer(self) -> None:
        self._header_timer = self.loop.call_later(self.limits.header_seconds, self.disconnect)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None


def close_longest_waiting(connections: set[Any], n: int = 1) -> None:
    """Close up to n connections that wait for their clients; none if the server owes every client a response.

    Those of the address with the most such connections come first, and of these the ones that have waited longest.
    """
    idle = [c for c in connections if c.transport is not None and c.waiting_for_client]
    counts = Counter(c.client and c.client[0] for c in idle)
    for connection in nsmallest(n, idle, key=lambda c: (-counts[c.client and c.client[0]], c.waiting_since)):
        connection.disconnect()
        connections.discard(connection)  # the transport reports the end later; until then it must not count
