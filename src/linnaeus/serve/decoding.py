"""Decodes images in processes. Images that take long share one process, so that they cannot occupy all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from time import perf_counter

import numpy as np

from linnaeus.data.decode import RowSpec, UnreadableError
from linnaeus.device import available_cores
from linnaeus.serve.decoder_process import NICE, decoder_process

Finish = Callable[[np.ndarray, bool], np.ndarray]
"""(row, whether an image in color became gray) -> the image as the network sees it"""


class Decoders:
    """Two pools of threads, each with a process: one for most images, and one thread for those that take long."""

    def __init__(self, spec: RowSpec, finish: Finish, max_pixels: int | None, observe: Callable[[float], None]):
        """`max_pixels`: of an image, according to its header. `observe`: gets the seconds that an image took."""
        self._finish, self._observe = finish, observe
        self._request = {"spec": asdict(spec), "max_pixels": max_pixels}
        self._most = ThreadPoolExecutor(available_cores(), "linnaeus-decode")
        self._large = ThreadPoolExecutor(1, "linnaeus-large")

    async def decode(self, data: bytes) -> np.ndarray:
        """Decode an image. Raises UnreadableError. A decoder that has not started is cancelled with its client."""
        loop = asyncio.get_running_loop()
        pixels = await loop.run_in_executor(self._most, self._decode, data, False)
        if pixels is None:
            pixels = await loop.run_in_executor(self._large, self._decode, data, True)
        assert pixels is not None
        return pixels

    def stop(self) -> None:
        for pool in (self._most, self._large):
            pool.shutdown(wait=True, cancel_futures=True)

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
