"""Time limits for connections: idle and slow clients are disconnected.

uvicorn waits indefinitely for a request header, and its `limit_concurrency` counts idle connections as load, so that
500 of them would lock out everybody else. Here an idle connection is closed after a while, and earlier if there are too
many.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from linnaeus.serve.limits import Limits

SHUTDOWN_SECONDS = 30  # beyond the time for a request body: for requests in progress when the server is stopped
BACKLOG = 1024


class ServerConfig(uvicorn.Config):
    """uvicorn's configuration with the limits that `TimeoutProtocol` enforces."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.limits = limits
        super().__init__(
            app,
            http=TimeoutProtocol,
            ws="none",
            lifespan="on",
            log_level=logging.ERROR,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(limits.header_seconds),
            timeout_graceful_shutdown=int(limits.body_seconds + SHUTDOWN_SECONDS),
        )


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 with limits on the time for a header, for taking a response, and on the number of connections.

    The time for a body is limited in `uploads`, where it can be answered with status 408.
    """

    waiting_since = 0.0
    """When the client was last answered, or connected (time of the event loop)."""
    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    @property
    def limits(self) -> Limits:
        return cast(ServerConfig, self.config).limits

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.waiting_since = self.loop.time()
        if len(self.connections) > self.limits.connections:
            close_longest_waiting(self.connections)
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.in_progress:
            self._stop_header_timer()
        elif self._header_timer is None:  # an incomplete header: further bytes do not extend the time limit
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        self._stop_send_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._send_timer = self.loop.call_later(self.limits.send_seconds, self.disconnect)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def on_response_complete(self) -> None:
        self.waiting_since = self.loop.time()
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


def close_longest_waiting(connections: set[Any]) -> None:
    """Close the connection that has waited longest for its client; none if the server owes every client a response."""
    idle = [c for c in connections if c.transport is not None and c.waiting_for_client]
    if idle:
        min(idle, key=lambda connection: connection.waiting_since).disconnect()
