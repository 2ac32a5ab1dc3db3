"""Who may ask, and what every answer carries: token, host, security headers, counts. Plain ASGI."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linnaeus.serve.metrics import Metrics
from linnaeus.serve.pages import STATIC

PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json", *(f"/{name}" for name in STATIC)})
"""What is served without the token: it says nothing of the model."""

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
COOKIE = "linnaeus"


@dataclass
class Credentials:
    """The token, and what a browser that has shown it holds instead: a cookie goes to every port of a host."""

    token: str | None
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))

    def accepts(self, headers: Headers) -> bool:
        """Whether a request has the token, as `Authorization: Bearer`, or the cookie. Takes the same time always."""
        if self.token is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        by_token = hmac.compare_digest(given.strip().encode(), self.token.encode()) and scheme.lower() == "bearer"
        return by_token | hmac.compare_digest(_cookie(headers).encode(), self.session.encode())


def _cookie(headers: Headers) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if found is None else found.value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessControl:
    """The outermost layer: refuses, adds headers, counts.

    `hosts`: the names that may stand in `Host`; None takes any. A server on the loopback answers to no other name, or
    a page from anywhere could reach it through the browser of whoever runs it (DNS rebinding).
    """

    def __init__(
        self, app: ASGIApp, keys: Credentials, metrics: Metrics, routes: Iterable[str], hosts: frozenset[str] | None
    ):
        self.app, self.keys, self.metrics = app, keys, metrics
        self.routes, self.hosts = frozenset(routes), hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = perf_counter(), 0
        path = scope["path"]

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            if self.hosts is not None and not self._known(headers.get("host", "")):
                await refuse(answer, 421, "unknown host; name it with --allow-host")
            elif path not in PUBLIC_PATHS and not self.keys.accepts(headers):
                await refuse(answer, 401, _unopened(headers), {"WWW-Authenticate": "Bearer"})
            else:
                await self.app(scope, receive, answer)
        finally:
            route = path if path in self.routes else "other"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(perf_counter() - started)

    def _known(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        return self.hosts is not None and (name.lower() in self.hosts or is_loopback(name))


def _unopened(headers: Headers) -> str:
    """Why a request is refused: it shows nothing, or something else than the token."""
    if "authorization" not in headers and not _cookie(headers):
        return "needs the token: Authorization: Bearer …"
    if headers.get("authorization", "bearer").partition(" ")[0].lower() != "bearer":
        return "needs the token as Authorization: Bearer …, not in another scheme"
    return "a wrong token, or one of a server that ran before; the server prints its own when it starts"


async def refuse(send: Send, status: int, why: str, headers: dict[str, str] | None = None) -> None:
    """Answer with one line of JSON."""
    body = error_line(why)
    given: dict[str, Any] = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
    raw = [(name.lower().encode(), value.encode("latin-1", "replace")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def error_line(why: str) -> bytes:
    """One line of JSON that says what is wrong."""
    return json.dumps({"error": " ".join(why.split())}, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
