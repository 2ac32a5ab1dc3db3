"""Start a server, and stop it so that nothing that is in hand is lost."""

from __future__ import annotations

import errno
import logging
import signal
import socket
from contextlib import suppress

import uvicorn

from linnaeus.console import Console
from linnaeus.errors import JobError, UserError
from linnaeus.serve.app import Settings, make_app
from linnaeus.serve.connections import patient
from linnaeus.serve.gallery import load_gallery
from linnaeus.serve.service import Service

GRACE = 30  # seconds beyond those that a body may take, for what is in hand when the server is stopped
BACKLOG = 1024


class Server(uvicorn.Server):
    """A classifier behind HTTP, at a socket that is bound already."""

    def __init__(self, service: Service, settings: Settings, listening: socket.socket, console: Console):
        self.service, limits = service, service.limits
        self.listening, self.console = listening, console
        super().__init__(
            uvicorn.Config(
                make_app(self.service, settings), http=patient(limits), ws="none", lifespan="on",
                log_level=logging.ERROR, access_log=False, server_header=False, backlog=BACKLOG,
                timeout_keep_alive=int(limits.header_seconds),
                timeout_graceful_shutdown=int(limits.body_seconds + GRACE),
            )
        )  # fmt: skip

    @property
    def address(self) -> str:
        host, port = self.listening.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def serve_until_stopped(self) -> None:
        """Until SIGINT, SIGTERM or `should_exit`. Raises JobError where it does not come so far."""
        self.run([self.listening])
        if not self.started:
            raise JobError("the server could not start; the lines above say why")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.console.say(f"serving   {self.address}   (Ctrl-C ends)")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.ready = False
        self.console.say("stopping: answering what is in hand")
        await super().shutdown(sockets)


def serve(
    service: Service, settings: Settings, host: str, port: int, console: Console, like: str | None = None
) -> None:
    """Serve until SIGINT or SIGTERM; then answer what is in hand, and return. `like` holds images to compare with.

    Raises UserError where nothing can listen at host and port, JobError where the server cannot start.
    """
    server = Server(service, settings, bind(host, port), console)
    _more_files(service.limits.connections)
    # uvicorn raises the signal that ended it once more when all is done: this end is no failure.
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: None)
    with load_gallery(service, like, console):
        server.serve_until_stopped()


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises UserError where it is taken, or not this machine's."""
    try:
        family, _, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise UserError(f"--host {host}: no such address; 127.0.0.1 for this machine, 0.0.0.0 for all") from None
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: is taken on {host}; choose another, or 0 for any that is free") from None
        raise UserError(f"--host {host} --port {port}: cannot be listened at ({error.strerror})") from None
    return listening


def _more_files(connections: int) -> None:
    """Let the process open as many connections as it may have."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + 256
        if soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
