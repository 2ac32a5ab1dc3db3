"""Limits on how a request is written: header lines, and chunks of a body.

Each header line and each chunk costs h11 about as much time as a whole image costs the network: four megabytes of
one-byte chunks would keep the event loop busy for half a minute.
"""

from __future__ import annotations

from typing import Any

import h11

HEADER_BYTES = 16 << 10
HEADER_LINES = 100
TARGET_BYTES = 4096
FREE_CHUNKS = 200  # of a body, whatever their size
CHUNK_BYTES = 512  # average size of the other chunks, at least


class LimitedConnection(h11.Connection):
    """The server side of an HTTP/1.1 connection, which rejects requests in too many or too small parts."""

    def __init__(self) -> None:
        super().__init__(h11.SERVER, HEADER_BYTES)
        self.problem, self.problem_status = "", 400
        self._header_lines = self._chunks = self._bytes = 0

    def receive_data(self, data: bytes) -> None:
        if self.their_state is h11.IDLE:  # the lines are counted before h11 parses them
            self._header_lines += data.partition(b"\r\n\r\n")[0].count(b"\n")
        super().receive_data(data)

    def next_event(self) -> Any:
        """Raises h11.RemoteProtocolError; `problem` and `problem_status` say which."""
        try:
            return self._next_event()
        except h11.RemoteProtocolError as error:
            # Not the error itself: its traceback refers to this object, and the cycle would keep both for a while.
            self.problem, self.problem_status = str(error), error.error_status_hint
            raise

    def _next_event(self) -> Any:
        if self._header_lines > HEADER_LINES and self.their_state is h11.IDLE:
            raise h11.RemoteProtocolError("too many header lines", error_status_hint=431)
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._header_lines = self._chunks = self._bytes = 0
            if len(event.target) > TARGET_BYTES:
                raise h11.RemoteProtocolError("the address is too long", error_status_hint=414)
            if sum(len(name) + len(value) for name, value in event.headers) > HEADER_BYTES:
                raise h11.RemoteProtocolError("the header is too long", error_status_hint=431)
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            # Tiny chunks cost more to parse than to send; honest clients send large ones.
            if (self._chunks - FREE_CHUNKS) * CHUNK_BYTES > self._bytes:
                raise h11.RemoteProtocolError("the chunks of the body are too small")
        return event
