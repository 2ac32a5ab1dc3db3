"""Read byte ranges of files on this disk or on a web server.

The server has to answer range requests (RFC 9110, section 14). A failed request is repeated from the byte it reached.
"""

from __future__ import annotations

import http.client
import io
import os
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from linnaeus.data.download import SLOWEST, StallDetector
from linnaeus.data.redirects import RefusedError, open_url, pause, retry_after
from linnaeus.data.version import CHANGED, is_same, version_of
from linnaeus.environment import offline
from linnaeus.errors import JobError, UserError, one_line, visible

T = TypeVar("T")
ATTEMPTS = 4  # in a row that bring no bytes, before the read fails
WAIT = 0.5  # seconds before the second attempt; doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
OPEN_FILES = 16  # local files that each thread keeps open
CHUNK = 1 << 20  # bytes
FINAL = (400, 401, 403, 404, 410, 416)  # HTTP status codes that another attempt cannot change


def is_address(text: str) -> bool:
    """Whether `text` is an address on a web server. Other schemes are refused: WebDataset's `pipe:` runs a program."""
    return text.startswith(("http://", "https://"))


class LocalFiles:
    """Reads local files by offset. Each thread keeps its recently used files open, so that threads do not wait."""

    def __init__(self) -> None:
        self._local = threading.local()

    def read(self, path: str, offset: int, size: int, version: tuple[int, ...] = ()) -> bytes:
        """`size` bytes, or fewer at the end of the file. Raises JobError if the file cannot be read, and if it is not
        the one of this `version`, where one is given."""
        opened: OrderedDict[str, BinaryIO] = self._local.__dict__.setdefault("opened", OrderedDict())
        try:
            if version and not is_same(version_of(os.stat(path)), version):
                raise JobError(f"{path}: {CHANGED}")
            file = opened.pop(path, None)
            # A process that goes on after that error may have the old file open still.
            if file is None or (version and not is_same(version_of(os.fstat(file.fileno())), version)):
                file = open(path, "rb", buffering=0)  # noqa: SIM115  # closed below
            opened[path] = file
            if len(opened) > OPEN_FILES:
                opened.popitem(last=False)[1].close()
            file.seek(offset)
            return file.read(size)
        except OSError as error:
            raise JobError(f"{path}: cannot be read ({error.strerror}); check that its disk is connected") from None


class _IncompleteError(Exception):
    """The response ended early."""


def fetch_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file on a server. Raises JobError, in one line, if they cannot be fetched."""
    if size == 0:
        return b""
    received = bytearray()

    # Each attempt continues after the bytes that have arrived, so progress is never lost.
    def attempt() -> bytes:
        with _open_range(url, offset + len(received), offset + size) as response:
            detector = StallDetector(len(received))
            while len(received) < size and (chunk := response.read1(min(CHUNK, size - len(received)))):
                received.extend(chunk)
                detector.check(len(received))
        if len(received) < size:
            raise _IncompleteError(f"the response ended after {len(received):,} of {size:,} bytes")
        return bytes(received)

    try:
        return _retry(url, attempt, lambda: len(received))
    except RefusedError as error:
        raise JobError(f"{url}: {error}; use another server or a copy") from None


class _RemoteFile(io.RawIOBase):
    """A file on a server as a seekable file object."""

    def __init__(self, url: str):
        self.url, self.position = url, 0
        self.length, _ = head(url)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.length}[whence]
        return self.position

    def readinto(self, buffer: Any) -> int:
        size = max(0, min(len(buffer), self.length - self.position))
        buffer[:size] = fetch_range(self.url, self.position, size)
        self.position += size
        return size


def open_remote(url: str) -> io.BufferedReader:
    """A file on a server, to be read from front to back: one request for each megabyte that is not skipped."""
    return io.BufferedReader(_RemoteFile(url), CHUNK)


def head(url: str) -> tuple[int, str]:
    """Length in bytes of a file on a server, and its version there: ETag, else the time of its last change."""

    def attempt() -> tuple[int, str]:
        with _open(urllib.request.Request(url, method="HEAD")) as response:
            length = response.headers.get("Content-Length", "")
            if not length.isdigit():
                raise UserError(f"{url}: the server does not give the file's length; use a plain file server")
            return int(length), visible(response.headers.get("ETag") or response.headers.get("Last-Modified") or "")

    return _retry(url, attempt)


def _open_range(url: str, start: int, stop: int) -> Any:
    """The response to a request for bytes `start` to `stop`, after a check that these are what the server sends."""
    response = _open(urllib.request.Request(url, headers={"Range": f"bytes={start}-{stop - 1}"}))
    first = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if (response.status == 206 and first == str(start)) or (response.status == 200 and start == 0):
        return response
    response.close()
    raise UserError(
        f"{url}: the server does not send parts of files (Range requests); use one that does, or a local copy"
    )


def _open(request: urllib.request.Request) -> Any:
    if offline():
        raise UserError(f"{request.full_url}: LINNAEUS_OFFLINE forbids the network; unset it, or give a local copy")
    try:
        return open_url(request, TIMEOUT)
    except RefusedError as error:
        raise UserError(f"{request.full_url}: {error}; give the final address, or a local copy") from None


def _retry(url: str, attempt: Callable[[], T], received: Callable[[], int] = lambda: 0) -> T:
    """Call `attempt` until it succeeds, or ATTEMPTS in a row fail without `received()` growing: then JobError."""
    reason, failures, before, wait = "", 0, 0, 0.0
    while failures < ATTEMPTS:
        pause(WAIT, failures, wait)
        wait, begun_at = 0.0, time.monotonic()
        try:
            return attempt()
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {one_line(error.reason)}"
            if error.code in FINAL or error.code in range(300, 400):
                break
            try:
                wait = retry_after(error)
            except RefusedError as refused:
                reason = str(refused)
                break
        except _IncompleteError as error:
            reason = str(error)
        except http.client.HTTPException as error:
            reason = f"{type(error).__name__} {error}"
        except (OSError, ValueError) as error:  # URLError, a reset, a timeout; ValueError: a malformed address
            reason = str(getattr(error, "reason", None) or error)
        # Attempts count only while nothing arrives: a slow but living connection may break often.
        enough = received() - before > SLOWEST * (time.monotonic() - begun_at)
        failures = 1 if enough else failures + 1
        before = received()
    raise JobError(f"{url}: cannot be read ({reason}); check the address and the server, and start again")
