"""Start a server, and stop it so that nothing that is in hand is lost."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from linnaeus.console import Advance, Console
from linnaeus.errors import JobError, UserError
from linnaeus.predict import Classifier
from linnaeus.serve.app import Settings, make_app
from linnaeus.serve.connections import patient
from linnaeus.serve.limits import Limits
from linnaeus.serve.service import Service

GRACE = 30  # seconds beyond those that a body may take, for what is in hand when the server is stopped
BACKLOG = 1024


class Server(uvicorn.Server):
    """uvicorn's, which says when it takes requests and when it no longer does."""

    def __init__(self, config: uvicorn.Config, started: Callable[[], None], stopping: Callable[[], None]):
        super().__init__(config)
        self._say_started, self._say_stopping = started, stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._say_stopping()
        await super().shutdown(sockets)


def serve(
    classifier: Classifier, settings: Settings, limits: Limits, host: str, port: int, console: Console,
    like: str | None = None,
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM; then answer what is in hand, and return. `like` holds pictures to compare with.

    Raises UserError where nothing can listen at host and port, JobError where the server cannot start.
    """
    service = Service(classifier, limits)
    listening = bind(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"
    config = uvicorn.Config(
        make_app(service, settings), http=patient(limits), ws="none", lifespan="on", log_level=logging.WARNING,
        access_log=False, server_header=False, backlog=BACKLOG, timeout_keep_alive=int(limits.header_seconds),
        timeout_graceful_shutdown=int(limits.body_seconds + GRACE),
    )  # fmt: skip

    def stopping() -> None:
        service.ready = False
        console.say("stopping: answering what is in hand")

    server = Server(config, lambda: console.say(f"serving   {address}   (Ctrl-C ends)"), stopping)
    aside = Aside(console)
    comparing = threading.Thread(target=_compare, args=(service, like, aside), name="linnaeus-gallery")
    if like is not None:
        comparing.start()
    _more_files(limits.connections)
    # uvicorn raises the signal that ended it once more when all is done: this end is no failure.
    for each in (signal.SIGINT, signal.SIGTERM):
        with suppress(ValueError):  # not in the main thread: then the signals are somebody else's
            signal.signal(each, lambda *_: None)
    try:
        server.run([listening])
    finally:
        aside.over.set()
        if comparing.ident is not None:
            comparing.join()
    if not server.started:
        raise JobError("the server could not start; the lines above say why")


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


class OverError(Exception):
    """The server has stopped."""


class Aside(Console):
    """For work beside the server: it says nothing of its progress, and ends when `over` is set."""

    def __init__(self, console: Console):
        super().__init__(quiet=console.quiet, verbose=console.verbose, stream=console.stream)
        self.over = threading.Event()

    @contextmanager
    def progress(self, what: str, unit: str = "pictures") -> Iterator[Advance]:
        def advance(done: int, total: int | None, note: str = "") -> None:
            if self.over.is_set():
                raise OverError

        yield advance


def _compare(service: Service, source: str | None, console: Console) -> None:
    """Make the gallery beside the server: until it is there, answers come without what looks alike."""
    from linnaeus.neighbors import gallery

    assert source is not None
    try:
        service.gallery = gallery(service.classifier, source, console)
    except OverError:
        return
    except (UserError, OSError) as error:
        console.warn(f"no training pictures to compare with: {error}")
        return
    console.say(f"compares  with {len(service.gallery):,} training pictures")


def _more_files(connections: int) -> None:
    """Let the process open as many connections as it may have."""
    with suppress(ImportError, ValueError, OSError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = connections + 256
        if soft < wanted:
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
