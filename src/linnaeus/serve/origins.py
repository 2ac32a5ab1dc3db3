"""Refuse or accept requests that a browser sends for a page of another origin.

Any page can send requests to a server that its visitor's browser reaches, and make it compute, although it cannot read
the answers. Browsers say which page a request comes from; programs do not, and are not restricted.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.datastructures import Headers

ANY = "*"
DEFAULT_PORTS = {"http": 80, "https": 443}


def is_foreign(method: str, headers: Headers, allowed: frozenset[str]) -> bool:
    """Whether a request comes from a page of another origin, and is more than a link to a page of this server.

    `allowed`: origins as in the Origin header, or `ANY`. Sec-Fetch-Site (W3C Fetch Metadata) decides where a browser
    sends it: for https and localhost. Elsewhere Origin is compared with Host; behind a proxy that ends TLS, the scheme
    that this server sees is not that of the page, so only hosts are compared.
    """
    origin = headers.get("origin")
    if ANY in allowed or (origin is not None and origin.lower().rstrip("/") in allowed):
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
