"""Which HTTP redirects are followed, and how long to wait before a request is repeated."""

from __future__ import annotations

import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

LOOPBACK = ("127.0.0.1", "::1", "localhost")
LONGEST = 60.0  # seconds that a server may ask us to wait


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


def retry_after(error: urllib.error.HTTPError) -> float:
    """Seconds that a busy server asks to wait (Retry-After), 0 if it does not.

    Raises RefusedError if they are more than LONGEST.
    """
    text = error.headers.get("Retry-After", "")
    seconds = float(text) if text.isascii() and text.isdigit() else 0.0
    if seconds > LONGEST:
        raise RefusedError(f"HTTP {error.code}, to be asked again in {seconds:,.0f} seconds")
    return seconds


def pause(first: float, failures: int, asked: float) -> None:
    """Wait after `failures` in a row: `first` seconds, doubled for each further one, and at least `asked` seconds."""
    time.sleep(max(asked, first * 2 ** (failures - 1) if failures else 0))


def open_url(request: urllib.request.Request, timeout: float) -> Any:
    """The response to a request. Raises RefusedError if it is redirected away from HTTPS."""
    return urllib.request.build_opener(Redirects).open(request, timeout=timeout)
