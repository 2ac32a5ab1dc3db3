"""The images of a request: multipart, raw bytes, or base64 in JSON. Counted as they arrive, before they are kept."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from linnaeus.data.class_names import printable
from linnaeus.serve.limits import Account, Limits, RefusedError

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # else a line for every stranger's broken request
LONGEST_NAME = 255
HEADERS, HEADER_BYTES = 8, 4096  # of one part of a multipart body: how many, and how long one may be
BASE64 = 4 / 3  # letters for a byte
TAKES = (
    "multipart/form-data with files, the bytes of one image as image/* or application/octet-stream, "
    'or JSON {"pictures": [base64, …]}'
)


@dataclass(frozen=True)
class Upload:
    """An image as it was sent. Its name is only ever shown, never used as a path."""

    name: str
    data: bytes


async def receive(request: Request, limits: Limits, account: Account) -> list[Upload]:
    """The images of a request, one at least.

    Raises RefusedError: 408 where the body takes too long, 413 where it is too large or has too many images, 415
    where it is of another kind, 422 where it is not what it says, 503 where too many bytes are in hand already.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "a body with a Content-Encoding is not read: send it as it is")
    reader: _Multipart | _Whole
    factor = 1.0
    if kind == b"multipart/form-data":
        reader = _Multipart(options.get(b"boundary", b""), limits)
    elif kind == b"application/json":
        reader, factor = _Whole(_from_json), BASE64
    elif kind.startswith(b"image/") or kind == b"application/octet-stream":
        reader = _Whole(_from_bytes)
    else:
        said = printable(kind.decode("latin-1"))[:80] or "nothing"
        raise RefusedError(415, f"Content-Type says {said}; send {TAKES}")
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in _body(request, int(limits.request_bytes * factor)):
                account.add(len(chunk))
                reader.feed(chunk)
    except TimeoutError:
        why = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise RefusedError(408, why, close=True) from None
    uploads = reader.finish(limits)
    if not uploads:
        raise RefusedError(422, f"no image in the request; send {TAKES}")
    if len(uploads) > limits.images:
        raise _too_many(limits)
    return uploads


async def _body(request: Request, most: int) -> AsyncIterator[bytes]:
    """The body as it arrives. Raises RefusedError before a byte too many is kept, or read where the header tells."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length[:20]) > most:
        raise _too_large(most)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise _too_large(most)
        yield chunk


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body is over {most:,} bytes; send fewer or smaller images")


def _too_many(limits: Limits) -> RefusedError:
    return RefusedError(413, f"more than {limits.images} images; send them in several requests")


class _Whole:
    """A body that is read when all of it is there."""

    def __init__(self, read: Any):
        self._body, self._read = bytearray(), read

    def feed(self, chunk: bytes) -> None:
        self._body += chunk

    def finish(self, limits: Limits) -> list[Upload]:
        return self._read(bytes(self._body), limits)


def _from_bytes(body: bytes, limits: Limits) -> list[Upload]:
    return [Upload("image 1", body)] if body else []


def _from_json(body: bytes, limits: Limits) -> list[Upload]:
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(422, "the body is not JSON") from None
    images = said.get("pictures") if isinstance(said, dict) else None
    if not isinstance(images, list):
        raise RefusedError(422, 'the JSON is not {"pictures": [base64, …]}')
    if len(images) > limits.images:
        raise _too_many(limits)
    return [_one(each, number) for number, each in enumerate(images, 1)]


def _one(given: object, number: int) -> Upload:
    """An image of a JSON body: base64, a data: address, or {"name", "data"} with one of them."""
    name: object = f"image {number}"
    if isinstance(given, dict):
        name, given = given.get("name", name), given.get("data")
    if not isinstance(given, str) or not isinstance(name, str):
        raise RefusedError(422, f'image {number} is neither base64 nor {{"name": text, "data": base64}}')
    text = given.partition(",")[2] if given.startswith("data:") else given
    try:
        return Upload(_shown(name), base64.b64decode(text, validate=True))
    except (binascii.Error, ValueError):
        raise RefusedError(422, f"image {number} is not base64") from None


def _shown(name: str) -> str:
    return printable(name)[:LONGEST_NAME]


@dataclass
class _Part:
    """A part of a multipart body, while it arrives."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    data: bytearray = field(default_factory=bytearray)
    kept: bool = False


class _Multipart:
    """Reads a multipart body as it arrives (RFC 7578). Nothing is written to disk."""

    def __init__(self, boundary: bytes, limits: Limits):
        self._limits = limits
        self._uploads: list[Upload] = []
        self._part = _Part()
        self._name, self._value = bytearray(), bytearray()
        self._ended = False
        if not 0 < len(boundary) <= 70:  # RFC 2046, section 5.1.1
            raise RefusedError(422, "multipart/form-data without a boundary")
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_begin": self._header,
                "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
                "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._part_end,
                "on_end": self._end,
            },
            max_header_count=HEADERS,
            max_header_size=HEADER_BYTES,
        )

    def feed(self, chunk: bytes) -> None:
        try:
            self._parser.write(chunk)
        except MultipartParseError:
            raise RefusedError(422, "the body is not multipart/form-data as its header says") from None

    def finish(self, limits: Limits) -> list[Upload]:
        if not self._ended:
            raise RefusedError(422, "the multipart body has no end")
        return self._uploads

    def _begin(self) -> None:
        self._part = _Part()

    def _header(self) -> None:
        self._name, self._value = bytearray(), bytearray()

    def _header_end(self) -> None:
        self._part.headers[bytes(self._name).lower()] = bytes(self._value)

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
        named = options.get(b"filename")
        if named is None and not self._part.headers.get(b"content-type", b"").startswith(b"image/"):
            field_name = printable(options.get(b"name", b"?").decode("utf-8", "replace"))[:40]
            raise RefusedError(422, f"the field {field_name!r} is no file; top and explain belong into the address")
        self._part.kept = named != b""  # what a browser sends for a field where no file was chosen
        if self._part.kept and len(self._uploads) >= self._limits.images:
            raise _too_many(self._limits)

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._part.kept:
            self._part.data += data[start:end]

    def _part_end(self) -> None:
        if self._part.kept or self._part.data:
            _, options = parse_options_header(self._part.headers.get(b"content-disposition", b""))
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            self._uploads.append(Upload(_shown(name) or f"image {len(self._uploads) + 1}", bytes(self._part.data)))

    def _end(self) -> None:
        self._ended = True
