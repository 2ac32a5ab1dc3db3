"""Images of several clients share batches; each client gets its own result, without needless delay."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served import OCTETS, client, files, png, wait_until

from linnaeus.inference.classifier import load
from linnaeus.serve.batching import Batcher, Predict
from linnaeus.serve.limits import Limits, RefusedError


class Network:
    """A slow network whose result for an image is the image's first pixel."""

    def __init__(self, seconds: float = 0.02):
        self.seconds, self.sizes, self.threads = seconds, list[int](), set[int]()

    def __call__(self, images: np.ndarray) -> list[Any]:
        self.sizes.append(len(images))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return [*images[:, 0, 0, :1].astype(np.float64)]


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 1), value, np.uint8)


def run(test: Callable[[Batcher[Any]], Awaitable[None]], network: Predict[Any], **options: Any) -> None:
    """Run `test` with a batcher of `network`, in an event loop of its own."""
    settings = {"batch": 8, "window": 0.005, "queue": 1000, "observe": lambda images, waited, seconds: None, **options}

    async def main() -> None:
        batcher = Batcher(network, **settings)
        batcher.start()
        try:
            async with asyncio.timeout(30):
                await test(batcher)
        finally:
            await batcher.stop()

    asyncio.run(main())


def test_waiting_images_form_full_batches_and_results_are_not_mixed_up():
    network = Network()

    async def test(batcher: Batcher) -> None:
        results = await asyncio.gather(*(batcher.submit(image(i)) for i in range(40)))
        assert [result[0] for result in results] == list(range(40))

    run(test, network)
    assert network.sizes == [8, 8, 8, 8, 8]
    assert len(network.threads) == 1, "a single thread computes"
    assert threading.get_ident() not in network.threads


def test_a_single_client_is_not_delayed():
    network = Network(0.0)

    async def test(batcher: Batcher) -> None:
        for i in range(3):
            started = time.perf_counter()
            await batcher.submit(image(i))
            assert time.perf_counter() - started < 5

    run(test, network, window=60.0)
    assert network.sizes == [1, 1, 1]


def test_a_batch_waits_for_images_being_decoded_but_only_for_the_window():
    network = Network(0.0)

    async def slow_client(batcher: Batcher, value: int, seconds: float) -> None:
        with batcher.prepare():
            await asyncio.sleep(seconds)
        await batcher.submit(image(value))

    async def test(batcher: Batcher) -> None:
        await asyncio.gather(slow_client(batcher, 1, 0.05), batcher.submit(image(2)))

    run(test, network, window=30.0)
    assert network.sizes == [2]
    network.sizes.clear()
    run(test, network, window=0.001)
    assert network.sizes == [1, 1]


def test_a_failing_batch_affects_its_own_images_only():
    def predict(images: np.ndarray) -> list[Any]:
        if (images == 7).any():
            raise ValueError("seven")
        return [*images[:, 0, 0, :1]]

    async def test(batcher: Batcher) -> None:
        tasks = [batcher.submit(image(i)) for i in (1, 7, 2, 3)]
        results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(r) if isinstance(r, ValueError) else int(r[0]) for r in results] == [1, "seven", 2, 3]

    run(test, predict, batch=1)


def test_clients_that_disconnect_do_not_affect_others():
    network = Network(0.05)

    async def test(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(image(1)))
        others = [asyncio.create_task(batcher.submit(image(i))) for i in (2, 3, 4)]
        await asyncio.sleep(0.01)
        first.cancel()
        others[0].cancel()
        assert [int((await task)[0]) for task in others[1:]] == [3, 4]

    run(test, network, batch=2)


def test_the_queue_is_bounded_and_tells_when_to_retry():
    async def test(batcher: Batcher) -> None:
        with batcher.admission.admit(3), batcher.admission.admit(2):
            assert batcher.admission.full
            with pytest.raises(RefusedError, match="5 images are in progress") as refused, batcher.admission.admit(1):
                raise AssertionError("admitted")
            assert refused.value.status == 503
            assert refused.value.retry_after == 1
        assert batcher.admission.in_progress == 0
        with batcher.admission.admit(5):
            pass

    run(test, Network(), queue=5)


def test_clients_share_batches_and_get_their_own_answers(model: Path):
    classifier = load(model)
    expected = {seed: classifier.predict(png(seed, seed % 3)).probability for seed in range(24)}
    sizes, answers = list[int](), classifier.answers

    def slow(images: np.ndarray) -> list[Any]:
        sizes.append(len(images))
        time.sleep(0.05)
        return answers(images)

    classifier.answers = slow  # type: ignore[method-assign]
    with client(classifier, Limits(batch=8)) as web, ThreadPoolExecutor(12) as clients:

        def predict(seed: int) -> float:
            response = web.post("/predict?top=1", content=png(seed, seed % 3), headers=OCTETS)
            return response.json()["predictions"][0]["top"][0]["probability"]

        sizes.clear()
        actual = dict(zip(expected, clients.map(predict, expected), strict=True))
    assert actual == pytest.approx(expected, abs=1e-6)
    assert max(sizes) >= 4, "a batch contains images of several clients"
    assert max(sizes) <= 8
    assert sum(sizes) == 24


def test_a_full_queue_refuses_requests_and_recovers(model: Path):
    classifier = load(model)
    answers, go = classifier.answers, threading.Event()

    def blocked(images: np.ndarray) -> list[Any]:
        go.wait(20)
        return answers(images)

    go.set()
    classifier.answers = blocked  # type: ignore[method-assign]
    with client(classifier, Limits(batch=2, queue=4, images=4)) as web, ThreadPoolExecutor(4) as clients:
        go.clear()
        waiting = [clients.submit(web.post, "/predict", content=png(i), headers=OCTETS) for i in range(4)]
        wait_until(lambda: web.service.batcher.admission.in_progress == 4)
        refused = web.post("/predict", files=files(png()))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert web.get("/health").status_code == 200, "health checks are answered meanwhile"
        assert web.get("/ready").status_code == 503
        go.set()
        assert [future.result(20).status_code for future in waiting] == [200] * 4
        assert web.post("/predict", files=files(png())).status_code == 200
