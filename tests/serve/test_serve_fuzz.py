"""Requests that OpenAPI allows, and many that it does not: answered as described, or refused."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from served import ThreadServer, png

from linnaeus.inference.classifier import Classifier
from linnaeus.serve.limits import Limits

pytestmark = pytest.mark.long

EXAMPLES = 150  # per route


@pytest.fixture(scope="module")
def server(classifier: Classifier) -> Iterator[ThreadServer]:
    limits = Limits(request_bytes=100_000, images=4, body_seconds=0.5, header_seconds=0.5)
    with ThreadServer(classifier, limits) as server:
        yield server


def conformance_test(statuses: set[int]) -> Callable[[Any], None]:
    """A test that sends a generated request and validates the response. Records the status in `statuses`."""
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    def test(case: Any) -> None:
        response = case.call()
        statuses.add(response.status_code)
        # Random bytes match the schema without being an image, so they may be refused.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    return test


def test_responses_conform_to_openapi(server: ThreadServer):
    schemathesis = pytest.importorskip("schemathesis", reason="needs schemathesis: pip install schemathesis")
    from hypothesis import HealthCheck, given, settings

    schema = schemathesis.openapi.from_url(f"{server.address}/openapi.json")
    statuses: dict[str, set[int]] = {}
    for operation in schema.get_all_operations():
        route = operation.ok()
        observed = statuses.setdefault(f"{route.method.upper()} {route.path}", set())
        options = settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        options(given(case=route.as_strategy())(conformance_test(observed)))()
    assert set(statuses) == {"POST /predict", "GET /model", "GET /health", "GET /ready", "GET /metrics"}
    assert not any(status >= 500 for observed in statuses.values() for status in observed)
    assert server.predict(png()).status_code == 200


def test_corrupted_requests_cause_no_server_error(server: ThreadServer):
    """A valid request with a few bytes changed, removed or inserted."""
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
        corrupted = bytearray(request)
        for _ in range(rng.randrange(4)):
            at = rng.randrange(len(head) + 70 if rng.random() < 0.7 else len(corrupted))
            corrupted[at : at + rng.choice((0, 1, 1, 1, 5))] = rng.randbytes(rng.choice((0, 1, 1, 3)))
        response = b""
        with socket.create_connection((server.host, server.port), timeout=30) as connection:
            connection.sendall(corrupted)
            with suppress(ConnectionError):
                response = connection.recv(100)
        statuses.add(response[9:12])
    assert {b"200", b"400", b"422"} <= statuses
    assert not any(status.startswith(b"5") for status in statuses), statuses
    assert server.predict(image).status_code == 200


def test_files_that_broke_decoders_are_answered_or_refused(server: ThreadServer, shared_data: Path):
    """Decompression bombs, truncated files, wrong headers."""
    files = [p for p in sorted((shared_data / "dirty").rglob("*")) if p.is_file()]
    assert len(files) > 400
    statuses = {server.predict(p.read_bytes()).status_code for p in files}
    assert statuses <= {200, 413, 422}
    assert server.predict(png()).status_code == 200
