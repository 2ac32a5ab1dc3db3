"""Whatever the server's own OpenAPI allows, and much that it does not: answered as the description says, or refused."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from served import Threaded, png, write_model_with_opinions

from linnaeus.inference.classifier import load
from linnaeus.serve.limits import Limits

pytestmark = pytest.mark.long

EXAMPLES = 150  # of each route


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Threaded]:
    classifier = load(write_model_with_opinions(tmp_path_factory.mktemp("model")))
    with Threaded(classifier, Limits(request_bytes=100_000, images=4, body_seconds=0.5, header_seconds=0.5)) as found:
        yield found


def conforming(statuses: set[int]) -> Any:
    """A test that asks what schemathesis made up, and holds the answer against the description."""

    from schemathesis.specs.openapi.checks import positive_data_acceptance

    def test(case: Any) -> None:
        answer = case.call()
        statuses.add(answer.status_code)
        # A text that fits the schema is no image yet: it may be refused.
        case.validate_response(answer, excluded_checks=[positive_data_acceptance])

    return test


def test_schemathesis_finds_nothing(server: Threaded):
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    asked: dict[str, set[int]] = {}
    for operation in schema.get_all_operations():
        route = operation.ok()
        statuses = asked.setdefault(f"{route.method.upper()} {route.path}", set())

        every = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        every(given(case=route.as_strategy())(conforming(statuses)))()
    assert set(asked) == {"POST /predict", "GET /model", "GET /health", "GET /ready", "GET /metrics"}
    assert not any(status >= 500 for statuses in asked.values() for status in statuses)
    assert server.ask(png()).status_code == 200


def test_bytes_that_nearly_are_a_request(server: Threaded):
    """A good request with a few bytes changed, cut or doubled: never a failure of ours, and the server lives on."""
    image = png()
    part = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\n' + image + b"\r\n--x--\r\n"
    head = (
        "POST /predict?top=2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        f"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: {len(part)}\r\n\r\n"
    )
    request = head.encode() + part
    rng = random.Random(0)
    statuses = set()
    for _ in range(200):
        bad = bytearray(request)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(head) + 70 if rng.random() < 0.7 else len(bad))
            bad[at : at + rng.choice((0, 1, 1, 1, 5))] = rng.randbytes(rng.choice((0, 1, 1, 3)))
        said = b""
        with socket.create_connection((server.host, server.port), timeout=30) as connection:
            connection.sendall(bad)
            with suppress(ConnectionError):
                said = connection.recv(100)
        statuses.add(said[9:12])
    assert {b"200", b"400", b"422"} <= statuses
    assert not any(status.startswith(b"5") for status in statuses), statuses
    assert server.ask(image).status_code == 200


def test_dirty_images_are_answered_or_refused(server: Threaded, shared_data: Path):
    """Every file of the folder that broke decoders: bombs, cut files, wrong headers."""
    files = [p for p in sorted((shared_data / "dirty").rglob("*")) if p.is_file()]
    assert len(files) > 400
    statuses = {server.ask(p.read_bytes()).status_code for p in files}
    assert statuses <= {200, 413, 422}
    assert server.ask(png()).status_code == 200
