"""Work for one client that stops the event loop is short, and takes turns with that for others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from unittest.mock import Mock

import pytest
from served import client, files, png

from linnaeus.inference.classifier import Classifier
from linnaeus.serve import pages
from linnaeus.serve.limits import Limits
from linnaeus.serve.uploads import in_turns


def test_one_chunk_is_parsed_in_a_turn_of_the_event_loop():
    turns, parsed = 0, Counter[int]()

    async def body() -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield b"chunk"

    async def parse(lock: asyncio.Lock) -> None:
        async with aclosing(in_turns(body(), lock)) as chunks:
            async for _ in chunks:
                parsed[turns] += 1

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting, lock = asyncio.create_task(count()), asyncio.Lock()
        await asyncio.gather(*(parse(lock) for _ in range(20)))
        counting.cancel()

    asyncio.run(main())
    assert parsed.total() == 60
    assert max(parsed.values()) <= 3, "those of one body at most, not one of each of 20 bodies"


def test_a_form_that_is_refused_gives_up_its_turn(classifier: Classifier):
    with client(classifier, Limits(images=1)) as web:
        for _ in range(3):
            assert web.post("/predict", files=files(png(), png())).status_code == 413
        assert web.post("/predict", files=files(png())).status_code == 200


def test_the_documentation_is_rendered_once_and_names_the_host_of_each_request(
    classifier: Classifier, monkeypatch: pytest.MonkeyPatch
):
    render = Mock(side_effect=pages.render_docs)
    monkeypatch.setattr(pages, "render_docs", render)
    with client(classifier, hosts=None) as web:
        for host in ("a.example", "b.example:80", "127.0.0.1:81"):
            text = web.get("/docs", headers={"Host": host}).text
            assert f"http://{host.removesuffix(':80')}" in text or f"http://{host}" in text
            assert "origin.invalid" not in text
    assert render.call_count == 1
