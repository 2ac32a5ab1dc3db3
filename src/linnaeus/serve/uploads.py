"""The images of a request: multipart/form-data, raw bytes, or base64 in JSON. Bytes are counted as they arrive."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from linnaeus.data.class_names import printable
from linnaeus.serve.json_body import JsonBody, MalformedError
from linnaeus.serve.limits import Limits, RefusedError
from linnaeus.serve.upload_memory import UploadReservation, too_many_uploads

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it logs a warning for every malformed request
NAME_LENGTH = 255
BASE64_OVERHEAD = 4 / 3
ACCEPTED = (
    "multipart/form-data with files, the bytes of one image as image/* or application/octet-stream, "
    'or JSON {"images": [base64, …]}'
)


@dataclass(frozen=True)
class Upload:
    """An uploaded image. The name is chosen by the client: it is displayed, and never used as a path."""

    name: str
    data: bytes


async def read_uploads(request: Request, limits: Limits, reservation: UploadReservation) -> list[Upload]:
    """The images of a request, at least one.

    Raises RefusedError with status 408 if the body takes too long, 413 if it is too large or has too many images, 415
    for another content type, 422 if it is malformed, 503 if all requests together hold too many bytes.
    """
    kind = parse_options_header(request.headers.get("content-type", ""))[0].decode("latin-1")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "Content-Encoding is not supported; send the body uncompressed")
    is_json = kind == "application/json"
    # Base64 is a third longer than the image that it encodes.
    body = _read_body(request, int(limits.request_bytes * (BASE64_OVERHEAD if is_json else 1)), reservation)
    parts = in_turns(body, reservation)
    try:
        async with asyncio.timeout(limits.body_seconds) as deadline, aclosing(body), aclosing(parts):
            # Under memory pressure the server ends the upload that holds most.
            reservation.end = lambda: deadline.reschedule(0)
            if kind == "multipart/form-data":
                uploads = await _from_multipart(request, parts, limits)
            elif is_json:
                uploads = await _from_json(parts, limits)
            elif kind.startswith("image/") or kind == "application/octet-stream":
                data = await _join(body)
                uploads = [Upload("image 1", data)] if data else []
            else:
                name = printable(kind)[:80] or "missing"
                raise RefusedError(415, f"unsupported Content-Type ({name}); send {ACCEPTED}")
    except TimeoutError:
        # The deadline was moved to now by the memory limit, not by a slow client.
        if reservation.ended:
            raise too_many_uploads() from None
        reason = f"the body did not arrive within {limits.body_seconds:g} seconds"
        raise RefusedError(408, reason, close=True) from None
    finally:
        reservation.end = None
    if not uploads:
        raise RefusedError(422, f"no image in the request; send {ACCEPTED}")
    return uploads


async def _read_body(request: Request, limit: int, reservation: UploadReservation) -> AsyncGenerator[bytes, None]:
    """The body in chunks. Raises RefusedError as soon as the header or the bytes so far show that it is too large.

    Memory for all of it is reserved at the start, so that a body for which there is no room is not read in part.
    """
    too_large = RefusedError(413, f"the body exceeds {limit:,} bytes; send fewer or smaller images")
    length = request.headers.get("content-length", "")
    declared = int(length[:20]) if length.isdigit() else 0
    if declared > limit:
        raise too_large
    reservation.add(declared)
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise too_large
        if not declared:  # chunked transfer coding
            reservation.add(len(chunk))
        yield chunk


async def in_turns(body: AsyncGenerator[bytes, None], reservation: UploadReservation) -> AsyncGenerator[bytes, None]:
    """The chunks of a body, of which at most one over all requests is parsed in a turn of the event loop.

    A chunk with 32 small images takes 3 ms to parse. If 60 clients send one at once, the event loop would stand still
    for 0.2 s; those who wait for a lock go on in different turns, between which the other clients are served. Raises
    RefusedError (503) if too many wait: they would be parsed even after their clients have left.
    """
    memory = reservation.memory
    async for chunk in body:
        with memory.unparsed.admit(1, reservation.client):
            async with memory.parsing:
                yield chunk
                await asyncio.sleep(0)  # the next one may parse in the next turn


async def _join(body: AsyncGenerator[bytes, None]) -> bytes:
    data = bytearray()
    async for chunk in body:
        data += chunk
    return bytes(data)


class _UploadParser(MultiPartParser):
    """Starlette's multipart parser; keeps files in memory, detects truncated bodies, and accepts unnamed images."""

    spool_max_size = 0  # a SpooledTemporaryFile of unlimited size: uploads are never written to disk
    complete = False

    def on_headers_finished(self) -> None:
        # Some clients send an image without a file name, and Starlette would then decode it as text.
        part = self._current_part
        options = parse_options_header(part.content_disposition)[1]
        typed = any(name == b"content-type" and kind.startswith(b"image/") for name, kind in part.item_headers)
        if typed and b"filename" not in options:
            name = b"image %d" % (len(self.items) + 1)
            part.content_disposition = (part.content_disposition or b"form-data") + b'; filename="' + name + b'"'
        super().on_headers_finished()

    def on_end(self) -> None:
        self.complete = True


async def _from_multipart(request: Request, body: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    parser = _UploadParser(request.headers, body, max_files=limits.images, max_fields=limits.images)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        if error.message.startswith("Too many files"):
            raise _too_many_images(limits) from None
        raise RefusedError(422, f"the body is not valid multipart/form-data: {error.message}") from None
    try:
        uploads = []
        for field, file in form.multi_items():
            if not isinstance(file, UploadFile):
                name = printable(field)[:40]
                raise RefusedError(422, f"the field {name!r} is not a file; pass top and explain in the query string")
            if file.filename:  # browsers send an empty name for a field in which no file was chosen
                uploads.append(Upload(_display_name(file.filename), await file.read()))
    finally:
        await form.close()
    # The parser ends quietly where the last boundary is missing.
    if not parser.complete:
        raise RefusedError(422, "the multipart body is truncated")
    return uploads


async def _from_json(body: AsyncGenerator[bytes, None], limits: Limits) -> list[Upload]:
    document = JsonBody(2 * limits.images)  # an image has a name, too
    try:
        async for chunk in body:
            document.feed(chunk)
        content = document.finish()
    except MalformedError as error:
        raise RefusedError(422, f"the body is not valid JSON: {error}") from None
    # The list was called `pictures` at first, and clients are slower to change than servers.
    images = content.get("images", content.get("pictures")) if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise RefusedError(422, 'the JSON must have the form {"images": [base64, …]}')
    if len(images) > limits.images:
        raise _too_many_images(limits)
    return [_from_json_image(document, image, number) for number, image in enumerate(images, 1)]


def _from_json_image(document: JsonBody, image: object, number: int) -> Upload:
    """An image of a JSON body: base64, a data: URL, or {"name", "data"} with either of them."""
    name: object = f"image {number}"
    if isinstance(image, dict):
        name, image = image.get("name", name), image.get("data")
    if not isinstance(image, str) or not isinstance(name, str):
        raise RefusedError(422, f'image {number} is neither base64 nor {{"name": text, "data": base64}}')
    data = document.decoded(image)
    if data is None:
        raise RefusedError(422, f"image {number} is not valid base64")
    return Upload(_display_name(document.text(name)), data)


def _too_many_images(limits: Limits) -> RefusedError:
    return RefusedError(413, f"more than {limits.images} images; send them in several requests")


def _display_name(name: str) -> str:
    return printable(name)[:NAME_LENGTH]
