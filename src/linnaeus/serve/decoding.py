"""Decodes images in threads. Images that take long share one thread, so that they cannot occupy all of them."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from linnaeus.data.decode import UnreadableError, read_header
from linnaeus.device import available_cores, return_freed_memory

LARGE = 16_000_000  # cost of an image that is decoded alone, in pixels of a baseline JPEG
MAX_COST = 1_000_000_000  # about 5 s
FAST = 4  # a baseline JPEG decodes so many times as fast as other formats, at a fraction of its size
SLOW_FORMATS = {"JPEG2000": 20, "AVIF": 4, "WEBP": 2}
NICE = 10  # of the thread for images that take long
SCAN = b"\xff\xda"  # marker before each scan of a JPEG; inside a scan, 0xff is followed by 0x00


class Decoders:
    """Two pools of threads: one for most images, and a thread for those that take long."""

    def __init__(self, load: Callable[[bytes], np.ndarray], max_pixels: int | None):
        """`load`: decodes the bytes of an image. `max_pixels`: of an image, according to its header."""
        self._load, self._max_pixels = load, max_pixels
        self._most = ThreadPoolExecutor(available_cores(), "linnaeus-decode")
        self._large = ThreadPoolExecutor(1, "linnaeus-large", _yield_the_processor)

    async def decode(self, data: bytes) -> np.ndarray:
        """Decode an image. Raises UnreadableError. A decoder that has not started is cancelled with its client."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._most, self._load_unless_large, data)
        if pixels is None:
            pixels = await loop.run_in_executor(self._large, self._load_large, data)
        return pixels

    def stop(self) -> None:
        for pool in (self._most, self._large):
            pool.shutdown(wait=True, cancel_futures=True)

    def _load_unless_large(self, data: bytes) -> np.ndarray | None:
        """The image as the network sees it; None if it will take long. Raises UnreadableError if it is too large."""
        width, height, cost = decoding_cost(data)
        if self._max_pixels is not None and height * width > self._max_pixels:
            reason = f"too large: {width} x {height} pixels; this server accepts up to {self._max_pixels:,} pixels"
            raise UnreadableError("image", reason, kind="too-large")
        if cost > MAX_COST:
            reason = f"too large: {width} x {height} pixels in this format take too long to decode"
            raise UnreadableError("image", reason, kind="too-large")
        return None if cost > LARGE else self._load(data)

    def _load_large(self, data: bytes) -> np.ndarray:
        """The image as the network sees it. Afterwards hundreds of MB are free, between small blocks in use."""
        try:
            return self._load(data)
        finally:
            return_freed_memory()


def _yield_the_processor() -> None:
    """Lower the priority of this thread, so that others come first. Only on Linux does each thread have its own."""
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, max(NICE, os.getpriority(os.PRIO_PROCESS, thread)))


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
    return width, height, width * height * FAST * SLOW_FORMATS.get(form, 1)
