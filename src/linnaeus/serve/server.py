"""Start the server, and stop it without losing requests in progress."""

from __future__ import annotations

import errno
import gc
import importlib
import logging
import signal
import socket
from contextlib import suppress
from dataclasses import replace
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from linnaeus.console import Console
from linnaeus.errors import JobError, UserError
from linnaeus.serve.access import Credentials, is_loopback
from linnaeus.serve.app import Settings, make_app
from linnaeus.serve.connections import BACKLOG, ServerConfig
from linnaeus.serve.gallery import load_gallery
from linnaeus.serve.repeated_errors import OneTraceback
from linnaeus.serve.service import Service
from linnaeus.serve.sharing import address_of, invite, qr_text

OTHER_FILES = 256  # file descriptors that a process needs besides its connections


class BoundServer(uvicorn.Server):
    """A server on a socket that is already bound, `listener`."""

    def __init__(self, config: uvicorn.Config, listener: socket.socket, console: Console):
        self.listener, self.console = listener, console
        super().__init__(config)

    def serve_until_stopped(self) -> None:
        """Serve until SIGINT, SIGTERM, SIGHUP or `should_exit`.

        Raises JobError if the server does not start, and KeyboardInterrupt after a second SIGINT.
        """
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addFilter(OneTraceback())
        with suppress(SystemExit):  # of uvicorn, where the application does not start
            self.run([self.listener])
        if not self.started:
            raise JobError("the server could not start; see the messages above")
        if self.force_exit:
            raise KeyboardInterrupt

    def handle_signals(self) -> None:
        """Let SIGINT, SIGTERM and SIGHUP stop the server, also before uvicorn handles the first two.

        For the main thread. uvicorn raises them again after shutdown: that must not turn a regular stop into a failure.
        """

        def stop(*_: object) -> None:
            self.should_exit = True

        numbers = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)
        if hangup is not None and signal.getsignal(hangup) != signal.SIG_IGN:  # ignored as under nohup
            numbers.append(hangup)
        for number in numbers:
            signal.signal(number, stop)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal; a second Ctrl-C abandons the requests in progress, for which uvicorn only stops to wait."""
        super().handle_exit(sig, frame)
        if self.force_exit:
            for task in tuple(self.server_state.tasks):
                task.cancel()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.listener.listen(BACKLOG)  # asyncio takes one number for this and for what it accepts at once
            self.announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # where uvicorn leaves out this step: threads and processes of the application would go on
            await self.lifespan.shutdown()

    def announce(self) -> None:
        """Print where the server can be reached."""
        raise NotImplementedError


class Server(BoundServer):
    """A classifier behind HTTP."""

    def __init__(self, service: Service, settings: Settings, listener: socket.socket, console: Console):
        self.service = service
        self.address = address_of(listener)
        self.credentials = Credentials(settings.token)
        if not is_loopback(urlsplit(self.address).hostname or ""):
            settings = replace(settings, address=self.address)
        self.settings = settings
        super().__init__(ServerConfig(make_app(service, settings, self.credentials), service.limits), listener, console)

    def announce(self) -> None:
        self.console.say(f"serving   {self.address}   (press Ctrl-C to stop)")
        self._invite()

    def _invite(self) -> None:
        """On a terminal, print a link that replaces the token once, and a QR code where a phone can use it."""
        shared, token = self.settings.address is not None, self.settings.token is not None
        if not self.console.stream.isatty() or not (shared or token):  # a link must not end up in a log
            return
        link = invite(self.address, self.credentials.invitations if token else None)
        if token:
            self.console.say(f"open      {link}   (instead of the token; works once, within 15 minutes)")
        if shared and (code := qr_text(link)) is not None:
            self.console.say(code)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.ready = False
        self.console.say("stopping: answering the requests in progress")
        await super().shutdown(sockets)
        if line := self.service.classifier.color.take_line():
            self.console.warn(line)


def serve(
    service: Service, settings: Settings, host: str, port: int, console: Console, like: str | None = None
) -> None:
    """Serve until SIGINT or SIGTERM, then answer the requests in progress and return.

    `like`: source of the training images to compare with. Raises UserError if the address cannot be used, JobError if
    the server does not start.
    """
    server = Server(service, settings, bind(host, port), console)
    _raise_file_limit(service.limits.connections + OTHER_FILES)
    with load_gallery(service, like, console):
        gc.collect()
        gc.freeze()  # a full collection would look at all objects of torch, for 0.15 s in which nobody is served
        server.handle_signals()
        server.serve_until_stopped()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address. Raises UserError if the address is in use or not one of this machine's."""
    try:
        # The first address of a name is the one that the system prefers.
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError:
        raise UserError(f"--host {host}: no such address; use 127.0.0.1, or 0.0.0.0 for all networks") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        # SO_REUSEADDR lets a server restart at once; on Windows it would also let two servers share a port.
        option = getattr(socket, "SO_EXCLUSIVEADDRUSE", socket.SO_REUSEADDR)
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"--port {port}: in use on {host}; choose another port, or 0 for any free one") from None
        raise UserError(f"--host {host} --port {port}: cannot listen there ({error.strerror})") from None
    return listener


def _raise_file_limit(files: int) -> None:
    """Raise the process's limit on open files to `files`, as far as the system allows."""
    try:
        resource: Any = importlib.import_module("resource")
    except ImportError:
        return  # Windows has no such limit
    with suppress(ValueError, OSError):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft < files:
            limit = files if hard == resource.RLIM_INFINITY else min(files, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
