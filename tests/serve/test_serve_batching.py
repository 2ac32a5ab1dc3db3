"""Images of many clients go through the network together; each gets its own answer, and none waits without need."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from served import OCTETS, client, files, png, until, write_model_with_opinions

from linnaeus.inference.classifier import load
from linnaeus.serve.batching import Batcher
from linnaeus.serve.limits import Limits, RefusedError


class Network:
    """Takes its time, and answers an image with its first pixel."""

    def __init__(self, seconds: float = 0.02):
        self.seconds, self.sizes, self.threads = seconds, list[int](), set[int]()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return images[:, 0, 0, :1].astype(np.float64)


def image(value: int) -> np.ndarray:
    return np.full((2, 2, 1), value, np.uint8)


def run(work: Callable[[Batcher], Awaitable[None]], network: Network, **options: float) -> None:
    """Run `work` with a batcher of `network`, in an event loop of its own."""
    given = {"most": 8, "window": 0.005, "queue": 1000, "observe": lambda n, waited, took: None, **options}

    async def all_of_it() -> None:
        batcher = Batcher(network, **given)  # type: ignore[arg-type]
        batcher.start()
        try:
            async with asyncio.timeout(30):
                await work(batcher)
        finally:
            await batcher.stop()

    asyncio.run(all_of_it())


def test_what_waits_goes_together_and_everybody_gets_his_own():
    network = Network()

    async def work(batcher: Batcher) -> None:
        found = await asyncio.gather(*(batcher.submit(image(i)) for i in range(40)))
        assert [each[0] for each in found] == list(range(40))

    run(work, network)
    assert network.sizes == [8, 8, 8, 8, 8]
    assert len(network.threads) == 1, "one thread computes, and no other"
    assert threading.get_ident() not in network.threads


def test_a_single_client_never_waits_for_company():
    network = Network(0.0)

    async def work(batcher: Batcher) -> None:
        for i in range(3):
            started = time.perf_counter()
            await batcher.submit(image(i))
            assert time.perf_counter() - started < 5

    run(work, network, window=60.0)
    assert network.sizes == [1, 1, 1]


def test_a_batch_waits_for_what_is_on_its_way_and_no_longer_than_the_window():
    network = Network(0.0)

    async def slow(batcher: Batcher, value: int, seconds: float) -> None:
        with batcher.on_the_way():
            await asyncio.sleep(seconds)
        await batcher.submit(image(value))

    async def together(batcher: Batcher) -> None:
        await asyncio.gather(slow(batcher, 1, 0.05), batcher.submit(image(2)))

    run(together, network, window=30.0)
    assert network.sizes == [2]
    network.sizes.clear()
    run(together, network, window=0.001)
    assert network.sizes == [1, 1]


def test_a_batch_that_fails_fails_its_own_images_only():
    def answer(images: np.ndarray) -> np.ndarray:
        if (images == 7).any():
            raise ValueError("seven")
        return images[:, 0, 0, :1]

    async def work(batcher: Batcher) -> None:
        found = await asyncio.gather(*(batcher.submit(image(i)) for i in (1, 7, 2, 3)), return_exceptions=True)
        assert [str(each) if isinstance(each, ValueError) else int(each[0]) for each in found] == [1, "seven", 2, 3]  # type: ignore[index]

    run(work, answer, most=1)  # type: ignore[arg-type]


def test_a_client_that_goes_takes_nobody_along():
    network = Network(0.05)

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(image(1)))
        rest = [asyncio.create_task(batcher.submit(image(i))) for i in (2, 3, 4)]
        await asyncio.sleep(0.01)
        first.cancel()
        rest[0].cancel()
        assert [int((await each)[0]) for each in rest[1:]] == [3, 4]

    run(work, network, most=2)


def test_the_queue_is_bounded_and_says_when_to_come_back():
    async def work(batcher: Batcher) -> None:
        with batcher.room(3), batcher.room(2):
            assert batcher.full
            with pytest.raises(RefusedError, match="5 images wait") as refused, batcher.room(1):
                raise AssertionError("let in")
            assert refused.value.status == 503
            assert refused.value.retry_after == 1
        assert batcher.in_hand == 0
        with batcher.room(5):
            pass

    run(work, Network(), queue=5)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_with_opinions(tmp_path_factory.mktemp("model"))


def test_clients_share_batches_and_get_their_own_answers(model: Path):
    classifier = load(model)
    expected = {seed: classifier.predict(png(seed, seed % 3)).probability for seed in range(24)}
    sizes, answer = list[int](), classifier.probabilities

    def slow(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        time.sleep(0.05)
        return answer(images)

    classifier.probabilities = slow  # type: ignore[method-assign]
    with client(classifier, Limits(batch=8)) as web, ThreadPoolExecutor(12) as clients:

        def ask(seed: int) -> float:
            found = web.post("/predict?top=1", content=png(seed, seed % 3), headers=OCTETS)
            return found.json()["predictions"][0]["top"][0]["probability"]

        sizes.clear()
        found = dict(zip(expected, clients.map(ask, expected), strict=True))
    assert found == pytest.approx(expected, abs=1e-6)
    assert max(sizes) >= 4, "images of several clients in one batch"
    assert max(sizes) <= 8
    assert sum(sizes) == 24


def test_a_full_queue_refuses_and_serves_on(model: Path):
    classifier = load(model)
    answer, go = classifier.probabilities, threading.Event()

    def blocked(images: np.ndarray) -> np.ndarray:
        go.wait(20)
        return answer(images)

    go.set()
    classifier.probabilities = blocked  # type: ignore[method-assign]
    with client(classifier, Limits(batch=2, queue=4, images=4)) as web, ThreadPoolExecutor(4) as clients:
        go.clear()
        waiting = [clients.submit(web.post, "/predict", content=png(i), headers=OCTETS) for i in range(4)]
        until(lambda: web.service.batcher.in_hand == 4)
        refused = web.post("/predict", files=files(png()))
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert web.get("/health").status_code == 200, "whoever only asks how it goes is answered"
        assert web.get("/ready").status_code == 503
        go.set()
        assert [each.result(20).status_code for each in waiting] == [200] * 4
        assert web.post("/predict", files=files(png())).status_code == 200


def test_large_images_do_not_hold_up_small_ones(model: Path, monkeypatch: pytest.MonkeyPatch):
    from linnaeus.serve import service

    monkeypatch.setattr(service, "LARGE", 2000)  # so that 50 x 50 pixels are large
    classifier = load(model)
    load_image, go = classifier.preprocessing.load, threading.Event()
    with client(classifier) as web, ThreadPoolExecutor(8) as clients:
        large = png(size=(50, 50))

        def slow(data: bytes) -> np.ndarray:
            if data == large:
                go.wait(20)
            return load_image(data)

        object.__setattr__(classifier.preprocessing, "load", slow)
        waiting = [clients.submit(web.post, "/predict", content=large, headers=OCTETS) for _ in range(6)]
        until(lambda: web.service.batcher.coming == 6)
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200
        assert not any(each.done() for each in waiting)
        go.set()
        assert {each.result(20).status_code for each in waiting} == {200}
