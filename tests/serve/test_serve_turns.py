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
from linnaeus.serve.limits import Limits, RefusedError
from linnaeus.serve.upload_memory import UNPARSED, UploadMemory
from linnaeus.serve.uploads import in_turns


def test_one_chunk_is_parsed_in_a_turn_of_the_event_loop():
    turns, parsed = 0, Counter[int]()

    async def body() -> AsyncGenerator[bytes, None]:
        for _ in range(3):
            yield b"chunk"

    async def parse(memory: UploadMemory) -> None:
        with memory.reserve() as reservation:
            async with aclosing(in_turns(body(), reservation)) as chunks:
                async for _ in chunks:
                    parsed[turns] += 1

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        counting, memory = asyncio.create_task(count()), UploadMemory(100)
        await asyncio.gather(*(parse(memory) for _ in range(20)))
        counting.cancel()

    asyncio.run(main())
    assert parsed.total() == 60
    assert max(parsed.values()) <= 3, "those of one body at most, not one of each of 20 bodies"


def test_requests_that_wait_to_be_parsed_are_bounded():
    """Their clients may have left: hundreds of them would wait, each with its body."""
    parsed, refused = list[int](), list[RefusedError]()

    async def body() -> AsyncGenerator[bytes, None]:
        yield b"chunk"

    async def parse(memory: UploadMemory, number: int) -> None:
        with memory.reserve(f"client {number % 10}") as reservation:
            async with aclosing(in_turns(body(), reservation)) as chunks:
                try:
                    async for _ in chunks:
                        parsed.append(number)
                except RefusedError as error:
                    refused.append(error)

    async def main() -> None:
        memory = UploadMemory(100)
        await asyncio.gather(*(parse(memory, i) for i in range(UNPARSED + 20)))
        assert memory.unparsed.in_progress == 0

    asyncio.run(main())
    assert parsed == list(range(UNPARSED)), "in the order in which they came"
    assert [error.status for error in refused] == [503] * 20


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


def test_the_policy_of_the_report_is_computed_once(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    policy = Mock(side_effect=pages.report_policy)
    monkeypatch.setattr(pages, "report_policy", policy)
    with client(classifier, report="<script>1</script>") as web:
        headers = [web.get("/report").headers["content-security-policy"] for _ in range(3)]
    assert all("sha256-" in header for header in headers)
    assert policy.call_count == 1
