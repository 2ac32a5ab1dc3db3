"""How other devices reach the server: its address on the network, links that work once, and QR codes of them."""

from __future__ import annotations

import io
import socket

from fastapi import FastAPI, Request

from linnaeus.serve.access import is_loopback
from linnaeus.serve.invitations import Invitations

_ELSEWHERE = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}  # of no network (RFC 5737, RFC 3849)
_ANY = ("0.0.0.0", "::")


def address_of(listener: socket.socket) -> str:
    """`http://host:port` of a listening socket; for one on all networks, the address that other devices see."""
    host, port = listener.getsockname()[:2]
    if host in _ANY:
        host = _outward(listener.family) or "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _outward(family: socket.AddressFamily) -> str | None:
    """The address of the network interface that leads outward. Connecting a datagram socket sends nothing."""
    for candidate in dict.fromkeys((socket.AF_INET, family)):
        with socket.socket(candidate, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((_ELSEWHERE[candidate], 9))
            except OSError:
                continue
            host = probe.getsockname()[0]
            if not is_loopback(host):
                return host
    return None


def add_routes(app: FastAPI, address: str, invitations: Invitations | None) -> None:
    """POST /invitation: the address of the page for another device, as a link and as a QR code.

    `invitations`: where the page needs a token, the link contains a code that replaces it once.
    """

    @app.post("/invitation", include_in_schema=False)
    async def invitation(request: Request) -> dict[str, str | bool | None]:
        # A browser on this very machine knows it by a name that other devices cannot use; others know the right one.
        here = request.url.hostname or ""
        base = address if is_loopback(here) else str(request.base_url).rstrip("/")
        link = invite(base, invitations)
        return {"address": base, "link": link, "once": invitations is not None, "code": qr_svg(link)}


def invite(address: str, invitations: Invitations | None) -> str:
    """The link for another device. The code is in the fragment, which browsers do not send and servers do not log."""
    return address if invitations is None else f"{address}/#invitation={invitations.create()}"


def qr_svg(text: str) -> str | None:
    """A QR code as the text of an SVG, dark on light in both color schemes; None without the library segno."""
    try:
        import segno
    except ImportError:
        return None
    file = io.BytesIO()
    segno.make(text, error="m", micro=False).save(file, "svg", scale=4, border=3, light="#fff", xmldecl=False)
    return file.getvalue().decode()


def qr_text(text: str) -> str | None:
    """A QR code for a terminal, two modules a character; None without the library segno."""
    try:
        import segno
    except ImportError:
        return None
    file = io.StringIO()
    segno.make(text, error="l", micro=False).terminal(file, compact=True, border=2)
    return file.getvalue().rstrip("\n")
