"""The process that decodes images, `python -m linnaeus.serve.decoder NICE`, started by `decoder_process`.

It reads requests from stdin and writes one answer each to stdout, until stdin ends. Requests and answers are messages:
the lengths of two parts, a JSON document, and bytes (the file; the pixels).
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
from collections.abc import Callable
from types import FrameType
from typing import IO, Any, TypeVar

from linnaeus.data.images.decode import RowSpec, UnreadableError, load_row, read_header
from linnaeus.data.images.discarded_color import watch
from linnaeus.data.images.formats import formats

T = TypeVar("T")
LENGTHS = struct.Struct("<QQ")
LARGE = 16_000_000  # cost of an image that is decoded alone, in pixels of a baseline JPEG
MAX_COST = 1_000_000_000  # about 5 s
FAST = 4  # a baseline JPEG decodes this many times as fast as other formats, at a fraction of its size
SLOW_FORMATS = {"JPEG2000": 20, "AVIF": 4, "WEBP": 2}
PYTHON = 60  # times as slow as other formats: PPM with few values, BMP with run lengths
SCAN = b"\xff\xda"  # marker before each scan of a JPEG; inside a scan, 0xff is followed by 0x00
SOON = 0.02  # limit on the processor time of most images, in seconds
PER_COST = 20e-9  # more of it per cost: four times the need
LONG = 5.0  # limit for those that are decoded alone: Pillow's parsers can take seconds for 30 MB of tiny chunks
HANGS = 30.0  # then the system ends the process: a decoder in C cannot be interrupted


class TooSlowError(BaseException):
    """Decoding takes longer than its limit. Not an Exception, which the decoder takes for a damaged file."""


def main() -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not end up between the answers
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to the whole group; the server ends stdin when it is done
        signal.signal(number, signal.SIG_IGN)
    if sys.platform != "win32":
        os.nice(int(sys.argv[1]))
        signal.signal(signal.SIGPROF, _interrupt)
    formats()  # imports the decoders, which must not count as the first image's time
    while (message := read_message(requests)) is not None:
        request, data = message
        write_message(answers, *_answer(RowSpec(**request["spec"]), request["max_pixels"], request["large"], data))


def read_message(stream: IO[bytes]) -> tuple[dict[str, Any], bytes] | None:
    """The next message; None if the stream has ended."""
    head = stream.read(LENGTHS.size)
    if len(head) < LENGTHS.size:
        return None
    sizes = LENGTHS.unpack(head)
    parts = [stream.read(size) for size in sizes]
    return (json.loads(parts[0]), parts[1]) if [*map(len, parts)] == [*sizes] else None


def write_message(stream: IO[bytes], document: dict[str, Any], data: bytes) -> None:
    text = json.dumps(document).encode()
    stream.write(LENGTHS.pack(len(text), len(data)) + text)
    stream.write(data)
    stream.flush()


def _answer(spec: RowSpec, max_pixels: int | None, large: bool, data: bytes) -> tuple[dict[str, Any], bytes]:
    """`shape` and `in_color` with the pixels; `large` if another process should decode it; or `error` and `kind`."""
    try:
        width, height, cost = _within(LONG if large else SOON, lambda: decoding_cost(data))
        if max_pixels is not None and height * width > max_pixels:
            reason = f"too large: {width} x {height} pixels; this server accepts up to {max_pixels:,} pixels"
            raise UnreadableError("image", reason, kind="too-large")
        if cost > MAX_COST:
            reason = f"too large: {width} x {height} pixels in this format take too long to decode"
            raise UnreadableError("image", reason, kind="too-large")
        if cost > LARGE and not large:
            return {"large": True}, b""
        with watch() as in_color:
            row = _within(LONG if large else SOON + PER_COST * cost, lambda: load_row(data, spec))
        return {"shape": row.shape, "in_color": any(in_color)}, row.tobytes()
    except TooSlowError:
        if not large:
            return {"large": True}, b""
        return {"error": "takes too long to decode", "kind": "too-large"}, b""
    except UnreadableError as error:
        return {"error": error.reason, "kind": error.kind}, b""


def _within(seconds: float, function: Callable[[], T]) -> T:
    """Raises TooSlowError as soon as Python runs again after `seconds` of processor time. Windows has no such timer."""
    if sys.platform == "win32":
        return function()
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, HANGS)
        # Repeated, because an exception in a destructor is lost.
        signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
        return function()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise TooSlowError


def decoding_cost(data: bytes) -> tuple[int, int, int]:
    """(width, height, cost in pixels of a baseline JPEG) from the header; zeros if it is unreadable.

    A JPEG can have thousands of scans, each of which costs as much as a whole image.
    """
    header = read_header(data)
    if header is None:  # damaged: decoding will report the reason
        return 0, 0, 0
    width, height, form = header.width, header.height, header.format
    if form in ("JPEG", "MPO"):
        scans = data.count(SCAN)
        return width, height, width * height * (scans if header.progressive or scans > 4 else 1)
    return width, height, width * height * FAST * (PYTHON if header.in_python else SLOW_FORMATS.get(form, 1))


if __name__ == "__main__":
    main()
