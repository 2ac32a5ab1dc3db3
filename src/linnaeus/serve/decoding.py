"""Decodes images in processes. Images that take long share one process, so that they cannot occupy all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from time import perf_counter
from typing import ParamSpec, TypeVar

import numpy as np

from linnaeus.data.images.decode import RowSpec, UnreadableError
from linnaeus.device import available_cores
from linnaeus.serve.decoder_process import NICE, decoder_process

P = ParamSpec("P")
T = TypeVar("T")
Finish = Callable[[np.ndarray, bool], np.ndarray]
"""(row, whether an image in color became gray) -> the image as the network sees it"""


class Decoders:
    """Two queues: most images are decoded in as many processes as there are cores, those that take long in one."""

    def __init__(self, spec: RowSpec, finish: Finish, max_pixels: int | None, observe: Callable[[float], None]):
        """`max_pixels`: of an image, according to its header. `observe`: gets the seconds that an image took."""
        self._finish, self._observe = finish, observe
        self._request = {"spec": asdict(spec), "max_pixels": max_pixels}
        self._most = Turns(available_cores())
        self._large = Turns(1)

    async def decode(self, data: bytes) -> np.ndarray:
        """Decode an image. Raises UnreadableError. An image whose turn has not come is forgotten with its client."""
        pixels = await self._most.run(self._decode, data, False)
        if pixels is None:
            pixels = await self._large.run(self._decode, data, True)
        assert pixels is not None
        return pixels

    def stop(self) -> None:
        for queue in (self._most, self._large):
            queue.stop()

    def _decode(self, data: bytes, large: bool) -> np.ndarray | None:
        """The image as the network sees it; None if it takes long, unless `large`. Raises UnreadableError."""
        started = perf_counter()
        try:
            with decoder_process(NICE if large else 0) as process:
                answer, pixels = process.ask({**self._request, "large": large}, data)
        except EOFError:
            raise UnreadableError("image", "damaged: decoding it crashed, or did not finish") from None
        if "error" in answer:
            raise UnreadableError("image", answer["error"], kind=answer["kind"])
        if "large" in answer:
            return None
        image = self._finish(np.frombuffer(pixels, np.uint8).reshape(answer["shape"]), answer["in_color"])
        self._observe(perf_counter() - started)
        return image


class Turns:
    """Runs functions in n threads. The queue of an executor would keep images whose client has left in memory."""

    def __init__(self, n: int):
        self._threads, self._free = ThreadPoolExecutor(n, "linnaeus-decode"), asyncio.Semaphore(n)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function in a thread. If this is cancelled while it waits, the function is not called."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future = self._threads.submit(function, *args, **kwargs)
        # Not when this is cancelled: the thread goes on until the function returns.
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._free.release))
        try:
            return await asyncio.wrap_future(future)
        finally:
            del future  # a failed one refers to this frame: the cycle would keep the image in memory for a while

    def stop(self) -> None:
        self._threads.shutdown(wait=True)
