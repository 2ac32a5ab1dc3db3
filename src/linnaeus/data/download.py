"""Fetching files: resumable, checked, from several mirrors, into the cache folder."""

from __future__ import annotations

import contextlib
import errno
import http.client
import os
import re
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from linnaeus.data.redirects import RefusedError, open_url, pause, retry_after
from linnaeus.data.wanted import Wanted, is_cut_short
from linnaeus.environment import mirrored, offline
from linnaeus.errors import DiskError, JobError, next_step, one_line
from linnaeus.files import FULL, locked

Progress = Callable[[int, int | None], None]  # bytes done, bytes in all (None: the server does not say)

CHUNK = 1 << 18  # bytes
TIMEOUT = 30.0  # seconds without a byte
STALLS = 3  # attempts at one address that bring nothing, or too little for their time, before the next address
LIMIT = 4 << 30  # bytes of a body whose size neither the server nor we know
SLOWEST, PATIENCE = 1024, 60.0  # bytes a second over this many seconds: a slower address is given up
WAIT = 1.0  # seconds before the second attempt; doubled for each further one


class StallDetector:
    """Refuses a transfer that has nearly stopped."""

    def __init__(self, received: int = 0):
        """`received`: bytes that were there before."""
        self._mark, self._since = received, time.monotonic()

    def check(self, received: int) -> None:
        """Raise RefusedError if, of the `received` bytes so far, too few came in the last PATIENCE seconds."""
        now = time.monotonic()
        if now - self._since > PATIENCE:
            if received - self._mark < SLOWEST * PATIENCE:
                raise RefusedError(f"sends less than {SLOWEST} bytes a second")
            self._mark, self._since = received, now


class FetchError(JobError):
    """A file that could not be had. `reason` alone says why, for a caller that has more files to name."""

    def __init__(self, reason: str, line: str):
        super().__init__(line)
        self.reason = reason


class _DroppedError(Exception):
    """The connection failed; the download may continue after `wait` seconds. The text says why."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait


@dataclass
class _Part:
    """The bytes so far, and what the server calls the version of the file that they belong to."""

    file: IO[bytes]
    version: str | None = None

    def size(self) -> int:
        return self.file.seek(0, os.SEEK_END)


def fetch(
    urls: str | Sequence[str],
    destination: str | Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    size: int | None = None,
    token: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch one file to `destination`, from the first of `urls` that has it whole, and return its path.

    What is there already, and right, is not fetched again. Bytes collect in `<destination>.part`, which a later call
    goes on with; the file appears under its name only when its size and checksum (a published prefix is enough) are
    right. With `LINNAEUS_MIRROR` that address is tried first: it serves a copy of the cache folder. `token` is sent to
    the host of the first of `urls` alone, as a bearer token. Raises FetchError, whose line says which file to put
    where, or DiskError; a file already at `destination` that is wrong is left alone and named.
    """
    destination = Path(destination).expanduser().absolute()
    urls = [urls] if isinstance(urls, str) else list(urls)
    wanted = Wanted(destination, sha256, md5, size, (urls[0], token) if token else None)
    if destination.is_file():
        fault = wanted.fault(destination)
        if fault is None:
            return destination
        raise FetchError(fault, f"{destination}: {fault}; remove it to download it again")
    if offline():
        raise _failed("LINNAEUS_OFFLINE is set", urls, destination)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _locked(destination.with_name(destination.name + ".part")) as part:
            if destination.is_file() and wanted.fault(destination) is None:  # another process was faster
                return destination
            return _from_any(urls, part, wanted, progress)
    except OSError as error:
        full = error.errno in FULL
        reason = "no space left on the disk; free some" if full else f"cannot be written ({error.strerror})"
        step = next_step(error, f"{'or ' * full}set LINNAEUS_CACHE to another folder")
        raise DiskError(f"{error.filename or destination}: {reason}{',' if full else ';'} {step}") from None


def _from_any(urls: Sequence[str], part: IO[bytes], wanted: Wanted, progress: Progress | None) -> Path:
    """Fetch the file from the first address that has it whole. Raises FetchError with the reason of each other."""
    reasons = []
    # The mirror comes first, because users set one where the original is slow or blocked.
    for url in [*mirrored(wanted.destination), *urls]:
        try:
            _download(url, part, wanted, progress)
        except RefusedError as error:
            reasons.append(f"{urllib.parse.urlsplit(url).hostname}: {error}")
            continue
        if os.name == "nt":  # which renames no open file
            part.close()
        return Path(part.name).replace(wanted.destination)
    raise _failed("; ".join(reasons), urls, wanted.destination)


def _failed(reason: str, urls: Sequence[str], destination: Path) -> FetchError:
    todo = f"fetch {urls[0]} by other means and put it at {destination}"
    return FetchError(reason, f"{destination.name} could not be fetched ({reason}); {todo}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """The `.part` file, open for reading and appending, and ours alone: another process that fetches it waits here."""
    guard = path.with_name(path.name + ".lock")
    with locked(guard):
        try:
            with path.open("ab+") as file:
                yield file
        finally:
            with contextlib.suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
            with contextlib.suppress(OSError):  # while it is still locked, so that no other process's is removed
                guard.unlink()


def _download(url: str, file: IO[bytes], wanted: Wanted, progress: Progress | None) -> None:
    """Fill the `.part` file from one address and verify it; raises RefusedError when this address will not do.

    An attempt that brought bytes is followed by another one for the rest; STALLS in a row that brought too few end it.
    """
    if not wanted.sha256 and not wanted.md5:
        file.truncate(0)  # nothing could tell whether the rest belongs to these bytes
    part = _Part(file)
    begun = part.size()
    stalls, reason, wait = 0, "", 0.0
    while stalls < STALLS:
        pause(WAIT, stalls, wait)
        start, begun_at = part.size(), time.monotonic()
        try:
            _attempt(url, part, wanted, progress)
        except _DroppedError as error:
            reason, wait = str(error), error.wait
            # A few bytes before each silence would go on for days.
            enough = part.size() - start > SLOWEST * (time.monotonic() - begun_at)
            stalls = 0 if enough else stalls + 1
            continue
        file.flush()
        fault = wanted.fault(Path(file.name))
        if fault is None:
            os.fsync(file.fileno())
            return
        file.truncate(0)
        if not begun:
            raise RefusedError(fault)
        # What an earlier call left may be at fault: once more, from nothing.
        begun, reason, stalls, wait = 0, fault, stalls + 1, 0.0
    raise RefusedError(reason)


def _attempt(url: str, part: _Part, wanted: Wanted, progress: Progress | None) -> None:
    """One request for what `part` lacks. Raises _DroppedError, RefusedError."""
    start = part.size()
    bearer = wanted.bearer[1] if wanted.bearer and wanted.bearer[0] == url else ""
    response = _open(url, start, part.version, bearer)
    if response is None:  # the server has no more bytes than we: right or not, the checksum tells
        return
    with contextlib.closing(response):
        # The server ignores ranges or has another version: what was received so far is useless.
        if response.status != 206:
            part.file.truncate(0)
            start = 0
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            part.file.truncate(0)
            raise _DroppedError("answers with another range than asked for")
        total = _total(response, start)
        # Captive portals answer every request with status 200 and a login page.
        if response.headers.get_content_type() == "text/html" and wanted.destination.suffix != ".html":
            raise RefusedError("answers with a web page (does this network ask for a login?)")
        # Servers mark files that are gzip themselves, too, and send those unchanged.
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding != "identity" and wanted.destination.suffix not in (".gz", ".tgz"):
            raise RefusedError(f"sends the file in another encoding ({one_line(encoding)}) than asked for")
        if total is not None and wanted.size is not None and total != wanted.size:
            raise RefusedError(f"offers {total} bytes instead of {wanted.size}")
        if total is not None and total - start > shutil.disk_usage(wanted.destination.parent).free:
            # Without a stated length a limit still protects the disk.
            raise OSError(errno.ENOSPC, "no space")
        part.version = response.headers.get("ETag") or response.headers.get("Last-Modified")
        done, detector, most = start, StallDetector(start), total or wanted.size or LIMIT
        while chunk := _read(response):
            part.file.write(chunk)
            done += len(chunk)
            if done > most:
                part.file.truncate(0)
                raise RefusedError(f"sends more than {most} bytes")
            detector.check(done)
            if progress is not None:
                progress(done, total or wanted.size)
        if total is not None and done < total:
            raise _DroppedError(f"the connection ended after {done} of {total} bytes")
        part.file.flush()
        if total is None and wanted.is_unknown and is_cut_short(Path(part.file.name)):
            raise _DroppedError(f"the connection ended after {done} bytes, in the middle of the file")


def _total(response: http.client.HTTPResponse, start: int) -> int | None:
    """Bytes of the whole file, if the server says. It may send fewer at once than it was asked for."""
    stated = re.fullmatch(r"bytes \d+-\d+/(\d{1,18})", response.headers.get("Content-Range", ""))
    if response.status == 206 and stated:
        return int(stated[1])
    return None if response.length is None else start + response.length


def _open(url: str, start: int, version: str | None, bearer: str) -> Any:
    """The response to a request for the bytes from `start`; None if there are none. Raises as _attempt does."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise RefusedError("no http(s) address")
    request = urllib.request.Request(url, headers={"User-Agent": "linnaeus", "Accept-Encoding": "identity"})
    if bearer:
        request.add_unredirected_header("Authorization", f"Bearer {bearer}")
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version and not version.startswith("W/"):  # from the start again, should the file have changed meanwhile
            request.add_header("If-Range", version)
    try:
        return open_url(request, TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return None
        if error.code in (408, 425, 429, 500, 502, 503, 504):
            raise _DroppedError(f"HTTP {error.code}", retry_after(error)) from None
        raise RefusedError(f"HTTP {error.code} {one_line(error.reason)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", error)
        why = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
        # Without a name server, a listener or a certificate a second attempt is no better; in mid-file it may be.
        final = isinstance(cause, (socket.gaierror, ConnectionRefusedError, ssl.SSLError, ValueError)) and not start
        raise (RefusedError if final else _DroppedError)(why) from None


def _read(response: Any) -> bytes:
    try:
        return response.read1(CHUNK)  # what has come: `read` would wait for all of it, however slowly it drips
    except (OSError, http.client.HTTPException) as error:
        raise _DroppedError(str(error) or type(error).__name__) from None
