"""Start the labelling server, and stop it with every answer on the disk."""

from __future__ import annotations

import signal
import socket

import uvicorn

from linnaeus.console import Console
from linnaeus.errors import JobError
from linnaeus.label.app import LabelServer, make_app
from linnaeus.serve.access import is_loopback
from linnaeus.serve.connections import BACKLOG, ServerConfig


class Server(uvicorn.Server):
    """A labelling session behind HTTP, on a socket that is already bound."""

    def __init__(self, label: LabelServer, listener: socket.socket, console: Console, token: str | None = None):
        self.label, self.listener, self.console, self.token = label, listener, console, token
        # Pages of other servers reach a server on the loopback interface by a name of their own (DNS rebinding).
        hosts = frozenset[str]() if is_loopback(listener.getsockname()[0]) else None
        super().__init__(ServerConfig(make_app(label, token, hosts), label.limits))

    @property
    def address(self) -> str:
        host, port = self.listener.getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def serve_until_stopped(self) -> None:
        """Serve until SIGINT, SIGTERM or `should_exit`. Raises JobError if the server does not start."""
        self.run([self.listener])
        if not self.started:
            raise JobError("the server could not start; see the messages above")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.listener.listen(BACKLOG)
            login = f"/#token={self.token}" if self.token else ""
            self.console.say(f"labelling {self.address}{login}   (open it in a browser; press Ctrl-C to stop)")


def serve(label: LabelServer, listener: socket.socket, token: str | None, console: Console) -> None:
    """Serve until SIGINT or SIGTERM, then print what to do with the labels."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises the signal again after its shutdown
    Server(label, listener, console, token).serve_until_stopped()
    session = label.session
    console.say(f"labels    {session.store.csv} ({len(session.labels)} images)")
    for command in label.finish.commands():
        console.say(f"next      {command}")
