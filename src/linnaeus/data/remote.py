"""Pieces of files that lie on this disk or on a web server: by offset, and from front to back.

A server has to answer range requests (RFC 9110, section 14). What fails is tried again, from the byte that it came to.
"""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO, TypeVar

from linnaeus.data.download import offline
from linnaeus.errors import JobError, UserError, visible

T = TypeVar("T")
ATTEMPTS = 4  # in a row that bring nothing
WAIT = 0.5  # seconds before the second attempt; doubled for each further one
TIMEOUT = 30.0  # seconds without a byte
OPEN = 16  # local files that a thread keeps open
PIECE = 1 << 20


def is_address(text: str) -> bool:
    """Whether `text` is on a web server. No other scheme is read: WebDataset's `pipe:` runs a program."""
    return text.startswith(("http://", "https://"))


class Files:
    """Local files, read by offset; each thread keeps the files open that it read last, so that none waits."""

    def __init__(self) -> None:
        self._mine = threading.local()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes, or fewer at the end of the file. Raises JobError where the file is gone."""
        opened: OrderedDict[str, BinaryIO] = self._mine.__dict__.setdefault("opened", OrderedDict())
        try:
            file = opened.pop(path, None) or open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 - closed below
            opened[path] = file
            if len(opened) > OPEN:
                opened.popitem(last=False)[1].close()
            file.seek(offset)
            return file.read(size)
        except OSError as error:
            raise JobError(f"{path}: cannot be read ({error.strerror}); is the disk still there?") from None


class _AgainError(Exception):
    """A request failed in a way that may pass."""


def fetch_range(url: str, offset: int, size: int) -> bytes:
    """`size` bytes of a file on a server. Raises JobError, in one line, where it cannot be had."""
    if size == 0:
        return b""
    got = bytearray()

    def attempt() -> bytes:
        with _request(url, offset + len(got), offset + size) as answer:
            while len(got) < size and (piece := answer.read(min(PIECE, size - len(got)))):
                got.extend(piece)
        if len(got) < size:
            raise _AgainError(f"the answer ended after {len(got):,} of {size:,} bytes")
        return bytes(got)

    return _patiently(url, attempt, lambda: len(got))


class Stream:
    """A file on a server from front to back; where the connection breaks, it goes on at the same byte."""

    def __init__(self, url: str):
        self.url, self.at = url, 0
        self.length, self.stamp = head(url)
        self._answer: Any = None

    def read(self, size: int) -> bytes:
        size = min(size, self.length - self.at)
        got = bytearray()

        def attempt() -> bytes:
            try:
                if self._answer is None:
                    self._answer = _request(self.url, self.at, self.length)
                while len(got) < size:
                    piece = self._answer.read(min(PIECE, size - len(got)))
                    if not piece:
                        raise _AgainError(f"the answer ended after {self.at:,} of {self.length:,} bytes")
                    got.extend(piece)
                    self.at += len(piece)
            except (_AgainError, OSError, http.client.HTTPException):
                self.close()
                raise
            return bytes(got)

        return _patiently(self.url, attempt, lambda: len(got)) if size > 0 else b""

    def skip(self, size: int) -> None:
        if self.at + size > self.length:
            raise EOFError
        if size > PIECE:  # another request is cheaper than its bytes
            self.close()
            self.at += size
            return
        self.read(size)

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None


def head(url: str) -> tuple[int, str]:
    """(bytes, what the server calls this version) of a file."""

    def attempt() -> tuple[int, str]:
        with _open(urllib.request.Request(url, method="HEAD")) as answer:
            length = answer.headers.get("Content-Length", "")
            if not length.isdigit():
                raise UserError(f"{url}: the server does not say how long it is; shards need a plain file server")
            stamp = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
            return int(length), visible(stamp)

    return _patiently(url, attempt)


def _request(url: str, start: int, stop: int) -> Any:
    """The answer that holds bytes `start` to `stop`."""
    answer = _open(urllib.request.Request(url, headers={"Range": f"bytes={start}-{stop - 1}"}))
    if answer.status == 206:
        begins = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
        if begins == str(start):
            return answer
    elif answer.status == 200 and start == 0:
        return answer
    answer.close()
    raise UserError(f"{url}: the server does not send parts of files (Range); use one that does, or a copy on disk")


def _open(request: urllib.request.Request) -> Any:
    if offline():
        raise UserError(f"{request.full_url}: LINNAEUS_OFFLINE forbids the network; unset it, or give a copy on disk")
    return urllib.request.urlopen(request, timeout=TIMEOUT)


def _patiently(url: str, attempt: Callable[[], T], got: Callable[[], int] = lambda: 0) -> T:
    """attempt(), until several in a row brought nothing: `got()` counts. Raises JobError that says why it failed."""
    reason, failures, before = "", 0, 0
    while failures < ATTEMPTS:
        if failures:
            time.sleep(WAIT * 2 ** (failures - 1))
        try:
            return attempt()
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code in (400, 401, 403, 404, 410, 416):
                break
        except _AgainError as error:
            reason = str(error)
        except http.client.HTTPException as error:
            reason = f"{type(error).__name__} {error}"
        except (OSError, ValueError) as error:  # URLError, a reset, a timeout; ValueError: no address at all
            reason = str(getattr(error, "reason", None) or error)
        failures = 1 if got() > before else failures + 1
        before = got()
    raise JobError(f"{url}: cannot be read ({reason}); check the address and the server, and start again")
