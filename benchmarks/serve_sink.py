"""A server that does nothing: it throws away what it gets, and answers in one line when nothing more comes.

Attackers that send to it cost what they cost themselves. It prints its address.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
READ_AT_ONCE = 1 << 16
PAUSE = 0.02  # seconds without a byte that end a request


class Sink(asyncio.BufferedProtocol):
    """Reads into one buffer that all connections share."""

    buffer = bytearray(READ_AT_ONCE)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.timer: asyncio.TimerHandle | None = None

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = asyncio.get_running_loop().call_later(PAUSE, self.transport.write, ANSWER)


async def main(factory: Callable[[], Sink]) -> None:
    server = await asyncio.get_running_loop().create_server(factory, "127.0.0.1", 0, backlog=1024)
    print(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(Sink))
