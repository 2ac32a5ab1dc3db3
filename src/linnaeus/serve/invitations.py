"""One-time codes that a browser exchanges for the session cookie, instead of the token."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers

SCHEME = "invitation"  # of the Authorization header with which a browser exchanges an invitation for the session cookie
LIFETIME = 900.0  # seconds in which an invitation can be used
MOST = 64  # open invitations; more replace the oldest


class Invitations:
    """One-time codes for the session cookie: who scans one need not type the token, and cannot pass it on."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._expiry: dict[str, float] = {}

    def create(self) -> str:
        while len(self._expiry) >= MOST:
            del self._expiry[next(iter(self._expiry))]
        code = secrets.token_urlsafe(24)
        self._expiry[code] = self._clock() + LIFETIME
        return code

    def redeem(self, headers: Headers) -> bool:
        """Whether a request carries an open invitation, which is used up by it."""
        scheme, _, code = headers.get("authorization", "").partition(" ")
        if scheme.lower() != SCHEME:
            return False
        # A code has 192 random bits: the time of a look-up in a dictionary tells nothing about it.
        return self._expiry.pop(code.strip(), 0.0) > self._clock()
