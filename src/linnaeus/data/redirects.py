"""Which HTTP redirects are followed and which are refused."""

from __future__ import annotations

import urllib.parse
import urllib.request
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class RefusedError(Exception):
    """This address will not do; try the next. The text says why."""


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to HTTPS, and those of a plain HTTP server to itself."""

    def redirect_request(self, request: Any, *more: Any) -> Any:
        old, new = urllib.parse.urlsplit(request.full_url), urllib.parse.urlsplit(more[-1])
        same = (new.scheme, new.hostname) == (old.scheme, old.hostname) and old.scheme == "http"
        if new.scheme != "https" and not same and new.hostname not in LOOPBACK:
            raise RefusedError(f"redirects to {new.scheme}://{new.hostname}, which is not HTTPS")
        return super().redirect_request(request, *more)


def open_url(request: urllib.request.Request, timeout: float) -> Any:
    """The response to a request. Raises RefusedError if it is redirected away from HTTPS."""
    return urllib.request.build_opener(Redirects).open(request, timeout=timeout)
