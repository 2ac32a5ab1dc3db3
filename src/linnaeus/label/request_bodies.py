"""The JSON bodies of requests, bounded in size and time."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pydantic
from fastapi import Request

from linnaeus.serve.limits import Limits, RefusedError

BODY_BYTES = 1 << 20
MAX_IMAGES = 500  # in one answer

T = TypeVar("T", bound=pydantic.BaseModel)


class ImagesBody(pydantic.BaseModel):
    images: list[int] = pydantic.Field(min_length=1, max_length=MAX_IMAGES)
    paths: list[str] | None = pydantic.Field(default=None, max_length=MAX_IMAGES)
    """Paths of the images, for a page that was open before the server was started: its numbers may be old."""


class AnswerBody(ImagesBody):
    """An answer. `label` is a class, or null to take the label away; `unknown`: the images are of no class."""

    label: str | None = None
    unknown: bool = False
    batch: int | None = None
    """Number of the batch whose sample this verifies."""


class NumberBody(pydantic.BaseModel):
    number: int


class NameBody(pydantic.BaseModel):
    name: str


async def read_body(request: Request, kind: type[T], limits: Limits) -> T:
    """The JSON body of a request, bounded in size and time."""
    data = b""
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for part in request.stream():
                data += part
                # Bounded while reading: Content-Length may be false or missing.
                if len(data) > BODY_BYTES:
                    raise RefusedError(413, f"the request is larger than {BODY_BYTES} bytes", close=True)
    except TimeoutError:
        raise RefusedError(408, "the request took too long", close=True) from None
    try:
        return kind.model_validate_json(data)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise RefusedError(422, f"{'.'.join(map(str, first['loc'])) or 'body'}: {first['msg']}") from None
