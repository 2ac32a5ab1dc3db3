"""One network for all clients: images that come within a few milliseconds of each other go through it together.

A batch is whatever waits when the network gets free. Only a batch that is not full waits for company, for `window`
seconds at most, and only while more images are on their way (being decoded): a single client never waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import TypeVar

import numpy as np

from linnaeus.serve.limits import RefusedError

T = TypeVar("T")
Answer = Callable[[np.ndarray], np.ndarray]
"""(N, size, size, channels) uint8 -> (N, classes)."""
Observe = Callable[[int, float, float], None]
"""observe(images, seconds that the first of them waited, seconds in the network)."""
SMOOTH = 0.2  # weight of the newest batch in the mean time that an image takes


class Batcher:
    """Collects images of many clients into batches, and gives each its own answer. Lives in one event loop.

    The network has a thread of its own: nothing else computes in it, and never two at once.
    """

    def __init__(self, answer: Answer, *, most: int, window: float, queue: int, observe: Observe):
        self._answer, self._most, self._window, self._queue_most, self._observe = answer, most, window, queue, observe
        self._waiting: asyncio.Queue[tuple[np.ndarray, asyncio.Future[np.ndarray], float]] = asyncio.Queue()
        self._network = ThreadPoolExecutor(1, "linnaeus-network")
        self._pump: asyncio.Task[None] | None = None
        self.coming = 0
        """Images that are on their way to `submit`."""
        self.in_hand = 0
        """Images that were let in and have no answer yet."""
        self._seconds = 0.05
        """What an image takes, on average."""

    def start(self) -> None:
        self._pump = asyncio.get_running_loop().create_task(self._run(), name="batches")

    async def stop(self) -> None:
        """End once nothing is in hand. What still waits when the server may wait no longer is canceled."""
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)
        self._network.shutdown(wait=True, cancel_futures=True)

    @property
    def full(self) -> bool:
        return self.in_hand >= self._queue_most

    @contextmanager
    def room(self, n: int) -> Iterator[None]:
        """Let n images in. Raises RefusedError (503) where that would be too many at once."""
        if self.in_hand + n > self._queue_most:
            seconds = math.ceil(self.in_hand * self._seconds)
            raise RefusedError(
                503,
                f"busy: {self.in_hand} images wait, and at most {self._queue_most} may",
                retry_after=min(max(seconds, 1), 60),
            )
        self.in_hand += n
        try:
            yield
        finally:
            self.in_hand -= n

    @contextmanager
    def on_the_way(self) -> Iterator[None]:
        """While an image is made ready for `submit`: a batch that is not full waits for it, for a moment."""
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1

    async def submit(self, image: np.ndarray) -> np.ndarray:
        """(size, size, channels) uint8 -> (classes,) float64. Raises whatever the network raised."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((image, future, perf_counter()))
        return await future

    async def in_network(self, work: Callable[[], T]) -> T:
        """Run something else in the network's thread, in its turn."""
        return await asyncio.get_running_loop().run_in_executor(self._network, work)

    async def _run(self) -> None:
        while True:
            batch = await self._collect()
            images = np.stack([image for image, _, _ in batch])
            started = perf_counter()
            try:
                answers = await self.in_network(lambda: self._answer(images))  # noqa: B023 - awaited here
            except Exception as error:  # whatever it is, those who wait must hear of it, and the next batch go on
                for _, future, _ in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            took = perf_counter() - started
            self._seconds += SMOOTH * (took / len(batch) - self._seconds)
            self._observe(len(batch), started - batch[0][2], took)
            for (_, future, _), answer in zip(batch, answers, strict=True):
                if not future.done():  # its client has gone
                    future.set_result(answer)

    async def _collect(self) -> list[tuple[np.ndarray, asyncio.Future[np.ndarray], float]]:
        """One image, those that wait beside it, and those that come within the window."""
        batch = [await self._waiting.get()]
        until = asyncio.get_running_loop().time() + self._window
        while len(batch) < self._most:
            if not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                continue
            if not self.coming:
                break
            try:
                async with asyncio.timeout_at(until):
                    batch.append(await self._waiting.get())
            except TimeoutError:
                break
        return batch
