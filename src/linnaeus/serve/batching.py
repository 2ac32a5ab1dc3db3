"""Dynamic batching: images that arrive within a few milliseconds of each other go through the network together.

A batch consists of the images that wait when the network becomes free. An incomplete batch waits for more, up to
`window` seconds, only while other images are being decoded: a single client is never delayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np

from linnaeus.serve.admission import Admission

T = TypeVar("T")
A = TypeVar("A")  # what the network computes for one image
Predict = Callable[[np.ndarray], Sequence[A]]  # (N, size, size, channels) uint8 -> the N results
Observe = Callable[[int, float, float], None]
"""observe(number of images, seconds that the first one waited, seconds in the network)."""
SMOOTHING = 0.2  # weight of the newest batch in the moving average of the time per image


@dataclass(eq=False)
class Waiting(Generic[A]):
    """An image that waits for the network."""

    image: np.ndarray
    future: asyncio.Future[A]
    since: float


class Batcher(Generic[A]):
    """Collects images of many clients into batches and returns each client its own result. Bound to one event loop.

    The network runs in a single thread that computes nothing else.
    """

    def __init__(
        self,
        predict: Predict[A],
        *,
        batch: int,
        window: float,
        queue: int,
        observe: Observe,
    ):
        self._predict, self._batch, self._window, self._observe = predict, batch, window, observe
        self.admission = Admission(queue)
        self._waiting: asyncio.Queue[Waiting[A]] = asyncio.Queue()
        self._network = ThreadPoolExecutor(1, "linnaeus-network")
        self._task: asyncio.Task[None] | None = None
        self.preparing = 0  # images that are being decoded for `submit`

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name="batches")

    async def stop(self) -> None:
        """Stop the network. uvicorn calls this when all requests are answered or the grace period is over."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self._network.shutdown(wait=True, cancel_futures=True)

    @contextmanager
    def prepare(self) -> Iterator[None]:
        """Announce an image that will be submitted soon, so that an incomplete batch waits for it."""
        self.preparing += 1
        try:
            yield
        finally:
            self.preparing -= 1

    async def submit(self, image: np.ndarray) -> A:
        """The result for an image (size, size, channels) uint8. Raises the exception of the network, if any."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait(Waiting(image, future, perf_counter()))
        return await future

    async def run_in_network_thread(self, function: Callable[[], T]) -> T:
        """Run `function` between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._network, function)

    async def _run(self) -> None:
        while True:
            batch = [waiting for waiting in await self._collect() if not waiting.future.done()]
            if not batch:  # all clients have disconnected
                continue
            images = np.stack([waiting.image for waiting in batch])
            started = perf_counter()
            try:
                results = await self.run_in_network_thread(partial(self._predict, images))
            except Exception as error:  # any failure is passed to the clients of this batch; the next batch goes on
                for waiting in batch:
                    if not waiting.future.done():
                        waiting.future.set_exception(error)
                continue
            seconds = perf_counter() - started
            per_image = self.admission.seconds_per_image
            self.admission.seconds_per_image += SMOOTHING * (seconds / len(batch) - per_image)
            self._observe(len(batch), started - batch[0].since, seconds)
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.future.done():
                    waiting.future.set_result(result)

    async def _collect(self) -> list[Waiting[A]]:
        """One image, the others that wait already, and those that arrive within the window."""
        batch = [await self._waiting.get()]
        deadline = asyncio.get_running_loop().time() + self._window
        while len(batch) < self._batch:
            if not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
                continue
            # Nothing else is being decoded, so waiting would only add latency.
            if not self.preparing:
                break
            try:
                async with asyncio.timeout_at(deadline):
                    batch.append(await self._waiting.get())
            except TimeoutError:
                break
        return batch
