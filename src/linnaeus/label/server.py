"""Start the labelling server, and stop it with every answer on the disk."""

from __future__ import annotations

import socket

from linnaeus.console import Console, counted
from linnaeus.label.app import LabelServer, make_app
from linnaeus.serve.access import is_loopback
from linnaeus.serve.connections import ServerConfig
from linnaeus.serve.server import BoundServer
from linnaeus.serve.sharing import address_of


class Server(BoundServer):
    """A labelling session behind HTTP."""

    def __init__(self, label: LabelServer, listener: socket.socket, console: Console, token: str | None = None):
        self.label, self.token, self.address = label, token, address_of(listener)
        # Pages of other servers reach a server on the loopback interface by a name of their own (DNS rebinding).
        hosts = frozenset[str]() if is_loopback(listener.getsockname()[0]) else None
        super().__init__(ServerConfig(make_app(label, token, hosts), label.limits), listener, console)

    def announce(self) -> None:
        login = f"/#token={self.token}" if self.token else ""
        self.console.say(f"labelling {self.address}{login}   (open it in a browser; press Ctrl-C to stop)")


def serve(label: LabelServer, listener: socket.socket, token: str | None, console: Console) -> None:
    """Serve until SIGINT or SIGTERM, then print what to do with the labels."""
    server = Server(label, listener, console, token)
    server.handle_signals()
    server.serve_until_stopped()
    session = label.session
    console.say(f"labels    {session.store.csv} ({counted(len(session.labels), 'image')})")
    if session.store.problem:
        console.warn(f"{session.store.problem}; all answers are kept: label the folder again to complete the file")
    label.finish.say_next()
