"""Decode images in threads while the network computes earlier ones."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from linnaeus.data.images.decode import UnreadableError
from linnaeus.distributed.environment import process_info
from linnaeus.distributed.launch import threads_per_process
from linnaeus.inference.in_memory import failed, readable


def decoded_batches(
    images: Iterable[Any], load: Callable[[Any], np.ndarray], bits: int, batch: int
) -> Generator[list[tuple[str, Future[np.ndarray]]]]:
    """Yield batches of (name, decoded image); at most two of them are in memory. Close the generator to stop.

    `load` decodes a path, bytes or pixels; `bits` is the range of gray levels above 8 bits.
    """
    with ThreadPoolExecutor(threads_per_process(process_info().local_world_size), "linnaeus-decode") as pool:
        pending: deque[tuple[str, Future[np.ndarray]]] = deque()
        numbered = enumerate(images, start=1)
        try:
            while True:
                # Two batches: one for the network, and one that is decoded meanwhile.
                while len(pending) < 2 * batch and (item := next(numbered, None)) is not None:
                    number, image = item
                    name = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {number}"
                    try:  # what is in memory is converted here: a Pillow image must not be decoded by two threads
                        source = readable(image, name, bits)
                    except UnreadableError as error:
                        pending.append((name, failed(error)))
                        continue
                    pending.append((name, pool.submit(load, source)))
                if not pending:
                    return
                yield [pending.popleft() for _ in range(min(batch, len(pending)))]
        finally:
            for _, future in pending:
                future.cancel()
