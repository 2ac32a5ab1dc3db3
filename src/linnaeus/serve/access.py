"""Access control: token, host names, origins, security headers on every response, and request metrics. Plain ASGI."""

from __future__ import annotations

import hmac
import ipaddress
import json
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from time import perf_counter
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from linnaeus.serve.invitations import SCHEME, Invitations
from linnaeus.serve.metrics import Metrics
from linnaeus.serve.pages import STATIC

PUBLIC_PATHS = frozenset({"/", "/health", "/ready", "/docs", "/openapi.json", *(f"/{name}" for name in STATIC)})
"""Paths served without the token: they reveal nothing about the model."""

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY_HEADERS = {
    "Content-Security-Policy": CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
COOKIE = "linnaeus"
LOGIN = "/login"
ANY_ORIGIN = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}
PART = 64 << 10  # bytes of a response that are written at once


@dataclass
class Credentials:
    """The token, and the session secret that a browser gets in exchange for it.

    The cookie must not contain the token itself: browsers send cookies to every port of a host.
    """

    token: str | None
    session: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    invitations: Invitations = field(default_factory=Invitations)

    def accepts(self, headers: Headers) -> bool:
        """Whether a request carries the token (`Authorization: Bearer`) or the cookie. Runs in constant time."""
        if self.token is None:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        has_token = hmac.compare_digest(token.strip().encode(), self.token.encode()) and scheme.lower() == "bearer"
        return has_token | hmac.compare_digest(_cookie(headers).encode(), self.session.encode())


def login_response(request: Request, credentials: Credentials) -> Response:
    """A cookie in exchange for the token of the request, so that a browser can follow links and load images."""
    response = Response(status_code=204)
    secure = request.url.scheme == "https"
    response.set_cookie(COOKIE, credentials.session, httponly=True, samesite="strict", secure=secure)
    return response


def _cookie(headers: Headers) -> str:
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return "" if cookie is None else cookie.value


def is_loopback(host: str) -> bool:
    """Whether `host` can be reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class AccessControl:
    """The outermost ASGI layer: rejects requests, adds security headers, counts requests.

    `origins`: origins of other servers whose pages may send requests, in lower case, or `*`.
    `hosts`: accepted names in the Host header besides loopback addresses; None accepts any name. A server on the
    loopback interface must reject other names, or any web page could reach it through the browser of its user (DNS
    rebinding). Starlette's TrustedHostMiddleware accepts no address ranges and does not answer in JSON.
    """

    def __init__(
        self,
        app: ASGIApp,
        credentials: Credentials,
        metrics: Metrics,
        routes: Iterable[str],
        hosts: frozenset[str] | None,
        origins: frozenset[str] = frozenset(),
    ):
        self.credentials, self.metrics = credentials, metrics
        self.routes, self.hosts, self.origins = frozenset(routes), hosts, origins
        self.app = app
        if origins:
            sent, names = ["GET", "POST"], ["Authorization", "Content-Type"]
            self.app = CORSMiddleware(app, allow_origins=sorted(origins), allow_methods=sent, allow_headers=names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = perf_counter(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            # Large responses are sent in parts, so that a slow client is noticed between them.
            for part in _parts(message):
                await send(part)

        path = scope["path"]
        try:
            refusal = self._refusal(scope["method"], path, Headers(scope=scope))
            await (refusal or self.app)(scope, receive, send_with_headers)
        finally:
            # Unknown paths share one label, or a scanner would create a time series per address it tries.
            route = path if path in self.routes else "other"
            self.metrics.requests.labels(route, str(status)).inc()
            self.metrics.request_seconds.labels(route).observe(perf_counter() - started)

    def _refusal(self, method: str, path: str, headers: Headers) -> Response | None:
        """The response to a request that is not allowed; None if it is."""
        if not self._accepts_host(headers.get("host", "")):
            return error_response(421, "unknown Host header; start the server with --allow-host NAME to accept it")
        if is_foreign(method, headers, self.origins):
            return error_response(403, "a page of another origin sent this; --allow-origin ORIGIN accepts its requests")
        if method == "OPTIONS" and self.origins:
            return None  # browsers ask without a token whether they may send one
        if path == LOGIN and method == "POST" and self.credentials.invitations.redeem(headers):
            return None
        if path not in PUBLIC_PATHS and not self.credentials.accepts(headers):
            return error_response(401, _missing_token(headers), {"WWW-Authenticate": "Bearer"})
        return None

    def _accepts_host(self, host: str) -> bool:
        name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
        return self.hosts is None or name.lower() in self.hosts or is_loopback(name)


def is_foreign(method: str, headers: Headers, allowed: frozenset[str]) -> bool:
    """Whether a request comes from a page of another origin, and is more than a link to a page of this server.

    Any page can send requests to a server that its visitor's browser reaches, and make it compute, although it cannot
    read the answers. Browsers say which page a request comes from; programs do not, and are not restricted.

    `allowed`: origins as in the Origin header, or `ANY_ORIGIN`. Sec-Fetch-Site (W3C Fetch Metadata) decides where a
    browser sends it: for https and localhost. Elsewhere Origin is compared with Host; behind a proxy that ends TLS, the
    scheme that this server sees is not that of the page, so only hosts are compared.
    """
    origin = headers.get("origin")
    if ANY_ORIGIN in allowed or (origin is not None and origin.lower().rstrip("/") in allowed):
        return False
    site = headers.get("sec-fetch-site")
    if site in ("cross-site", "same-site"):
        navigates = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
        return not (navigates and method in ("GET", "HEAD"))
    if site is not None or origin is None:
        return False
    page = _host(origin)
    return page is None or page != _host(f"{origin.partition(':')[0]}://{headers.get('host', '')}")


def _host(url: str) -> tuple[str, int | None] | None:
    """(host, port) of a URL; None if it has none, as the origin `null` of a sandboxed page."""
    try:
        parts = urlsplit(url)
        return None if not parts.hostname else (parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme))
    except ValueError:
        return None


def _parts(message: Message) -> Iterator[Message]:
    """The message, with a long body in several: a client that does not read must not make uvicorn copy all of it."""
    body = message.get("body", b"")
    last = max(len(body) - 1, 0) // PART * PART
    for start in range(0, last, PART):
        yield {**message, "body": body[start : start + PART], "more_body": True}
    yield {**message, "body": body[last:]} if last else message


def _missing_token(headers: Headers) -> str:
    """Why a request without valid credentials is refused."""
    if "authorization" not in headers and not _cookie(headers):
        return "a token is required: Authorization: Bearer …"
    scheme = headers.get("authorization", "bearer").partition(" ")[0].lower()
    if scheme == SCHEME:
        return "this link was used already, or is older than 15 minutes; open a new one"
    if scheme != "bearer":
        return "the token must be sent as Authorization: Bearer …"
    return "invalid token, or a session of an earlier server process"


def error_response(status: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    """{"error": reason} on one line."""
    return Response(error_body(reason), status, headers, "application/json")


def error_body(reason: str) -> bytes:
    """{"error": reason} on one line."""
    text = json.dumps({"error": " ".join(reason.split())}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"
