"""Requests made to cost more than they should: each is refused at once, and another client is answered meanwhile."""

from __future__ import annotations

import base64
import gzip
import json
import logging
import random
import socket
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from served import Client, ProcessServer, ThreadServer, error, png, wait_until

from linnaeus.inference.classifier import Classifier
from linnaeus.serve.json_body import LONG, JsonBody, MalformedError
from linnaeus.serve.limits import Limits
from linnaeus.serve.repeated_errors import OneTraceback

JSON = {"Content-Type": "application/json"}
MIB = 1 << 20
START = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture(scope="module")
def server(classifier: Classifier) -> Iterator[ThreadServer]:
    with ThreadServer(classifier, Limits(request_bytes=4 * MIB)) as server:
        yield server


def exchange(server: ThreadServer, request: bytes) -> bytes:
    """The response to raw bytes, until the server closes the connection or is silent for a second."""
    response = b""
    with socket.create_connection((server.host, server.port), timeout=1) as connection, suppress(OSError):
        with suppress(ConnectionError):  # the server may refuse before it has read everything
            connection.sendall(request)
        while chunk := connection.recv(65536):
            response += chunk
    return response


def feed(document: JsonBody, body: bytes, size: int) -> None:
    for start in range(0, len(body), size):
        document.feed(body[start : start + size])


@pytest.mark.parametrize(
    "body",
    [
        b'{"images": [' + b"[]," * MIB + b"[]]}",
        b"[" * (4 * MIB),
        b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b"}",
        b'{"images": [' + b'"",' * MIB + b'""]}',
        b'{"images": [' + b",".join([b'"%b"' % (b"A" * 3000)] * 1000) + b"]}",
    ],
    ids=["items", "depth", "keys", "empty strings", "long strings"],
)
def test_json_is_refused_before_it_becomes_large(body: bytes):
    document = JsonBody(max_strings=64)
    with pytest.raises(MalformedError, match="more than"):
        feed(document, body, 65536)
    assert len(document._outline) < 2 * MIB, "little more than the limit and a piece are held"


@pytest.mark.parametrize("size", [1, 3, 7, 1000, 10**6])
@pytest.mark.parametrize("escape", [False, True])
def test_json_images_do_not_depend_on_how_they_arrive(size: int, escape: bool):
    data = [bytes(range(256)) * 20, b"", b"ab"]
    texts = [base64.encodebytes(d).decode() for d in data]
    body = json.dumps({"images": [*texts, {"name": "ü" * 2000, "data": texts[0]}]}, ensure_ascii=escape).encode()
    document = JsonBody(max_strings=4)
    feed(document, body, size)
    content = document.finish()
    assert isinstance(content, dict)
    *plain, named = content["images"]
    assert [document.decoded(text) for text in [*plain, named["data"]]] == [*data, data[0]]
    assert document.text(named["name"])[:255] == "ü" * 255


def test_base64_as_phones_and_other_languages_send_it(web: Client):
    image = png() + bytes(3 * LONG)
    plain = base64.b64encode(image).decode()
    lines = base64.encodebytes(image).decode()
    url_safe = base64.urlsafe_b64encode(image).decode()
    texts = [lines, lines.replace("\n", "\r\n"), url_safe, url_safe.rstrip("="), f"data:image/png;base64,{lines}"]
    escaped = [
        json.dumps(plain).replace("/", "\\/"),  # PHP
        json.dumps(plain).replace("=", "\\u003d").replace("+", "\\u002B"),  # Gson
        f'"{lines}"',  # line breaks that were not escaped
        f'"DATA:;Base64,{plain}"',
    ]
    for text in [*map(json.dumps, texts), *escaped]:
        response = web.post("/predict", content=f'{{"images": [{text}]}}'.encode(), headers=JSON)
        assert response.status_code == 200, (text[:60], response.text)


@pytest.mark.parametrize(
    "text", ["A", "AAAA=AAA", "AAA=AAAA" * 500, "AAAA" * 500 + "A", "data:image/png,abc", "ä" * 2000]
)
def test_what_is_not_base64_is_named(web: Client, text: str):
    response = web.post("/predict", json={"images": ["", text]})
    assert (response.status_code, error(response)) == (422, "image 2 is not valid base64")


@pytest.mark.parametrize(
    "body", [b'{"images": ["\\x"]}', b'{"images": ["%b\\u12"]}' % (b"A" * 3000), b'{"images": ["', b'"\xff"']
)
def test_json_with_invalid_strings_is_refused(web: Client, body: bytes):
    response = web.post("/predict", content=body, headers=JSON)
    assert response.status_code == 422
    assert "not valid JSON" in error(response)


@pytest.mark.parametrize(
    ("request_", "status", "reason"),
    [
        (START + b"a:\r\n" * 60_000 + b"\r\n", b"431", b"too many header lines"),
        (START + b"a: " + b"b" * 60_000 + b"\r\n\r\n", b"431", b"too long"),
        (b"GET /model?" + b"a&" * 30_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"414", b"too long"),
        (START + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * MIB, b"400", b"chunks"),
        (START + b"Transfer-Encoding: gzip, chunked\r\n\r\n", b"501", b"invalid HTTP request"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400", b"Host"),
    ],
    ids=["header lines", "header bytes", "query", "chunks", "coding", "no host"],
)
def test_requests_in_too_many_parts_are_refused_at_once(
    server: ThreadServer, request_: bytes, status: bytes, reason: bytes
):
    started = time.process_time()
    response = exchange(server, request_)
    assert time.process_time() - started < 2
    if response:  # a connection that is closed while it sends may lose the response
        head, _, body = response.partition(b"\r\n\r\n")
        assert head.split()[1] == status
        assert reason in body
        assert body.count(b"\n") == 1
    assert server.predict(png()).status_code == 200


def test_ordinary_chunks_and_upgrades_are_accepted(server: ThreadServer):
    image = png()
    pieces = (b"%x\r\n%b\r\n" % (len(image[i : i + 9]), image[i : i + 9]) for i in range(0, len(image), 9))
    head = START + b"Content-Type: image/png\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"200 OK" in exchange(server, head + b"".join(pieces) + b"0\r\n\r\n")[:20]
    upgrade = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    assert b"101" not in exchange(server, upgrade + b"Sec-WebSocket-Key: x\r\n\r\n")[:20]
    assert (
        b"200 OK" in exchange(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-1,2-3\r\n\r\n")[:20]
    )


def in_chunks(image: bytes, end: bytes, extension: bytes = b"") -> bytes:
    head = START + b"Connection: close\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x%b\r\n%b\r\n0\r\n%b\r\n" % (len(image), extension, image, end)


def with_body(body: bytes, kind: bytes) -> bytes:
    head = START + b"Connection: close\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n" % (kind, len(body))
    return head + body


def png_with_profile(profile: bytes) -> bytes:
    data = b"iCCPx\0\0" + zlib.compress(profile, 9)
    return png()[:33] + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) + png()[33:]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (in_chunks(png(), b"X-Trailer: y\r\n" * 1000), b"200"),
        (in_chunks(png(), b"X-Trailer: " + b"y" * MIB + b"\r\n"), b"431"),
        (in_chunks(png(), b"", b";" + b"a" * MIB), b"431"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"404"),
        (b"GET /model%00/..%2fmodel HTTP/1.1\r\nHost: localhost\r\n\r\n", b"404"),
        (b'GET /model HTTP/1.1\r\nHost: localhost\r\nCookie: linnaeus="' + rb"\041" * 3500 + b'"\r\n\r\n', b"200"),
        (with_body(b'{"a":' * 10_000, b"application/json"), b"422"),
        (with_body(b'{"images": [1' + b"0" * 50_000 + b"]}", b"application/json"), b"422"),
        (with_body(gzip.compress(bytes(64 * MIB)), b"image/png\r\nContent-Encoding: gzip"), b"415"),
        (with_body(png_with_profile(bytes(64 * MIB)), b"image/png"), b"422"),
        (with_body(b"--x\r\nA: " + b"b" * MIB, b"multipart/form-data; boundary=x"), b"422"),
    ],
    ids=[
        *("trailers", "long trailer", "long chunk extension", "HTTP/2", "encoded path", "octal cookie", "deep JSON"),
        *("huge integer", "compressed body", "PNG profile", "long form header"),
    ],
)
def test_unusual_requests_are_answered_at_once(server: ThreadServer, request_: bytes, status: bytes):
    started = time.process_time()
    response = exchange(server, request_)
    assert time.process_time() - started < 1
    if response:  # a connection that is closed while it sends may lose the response
        assert response.split()[1] == status
    assert server.predict(png()).status_code == 200


def test_requests_sent_before_the_response_to_the_last_one_are_not_served(server: ThreadServer):
    request = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    assert exchange(server, request * 50).count(b"HTTP/1.1 200") <= 1  # none if the rest is in the way of the response


def test_responses_that_nobody_reads_are_bounded(classifier: Classifier):
    report = "x" * (16 << 20)
    request = b"GET /report HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ThreadServer(classifier, Limits(unread_responses=3), report=report) as server:
        readers = []
        for _ in range(8):
            readers.append(socket.create_connection((server.host, server.port)))
            readers[-1].sendall(request)
        connections: set[Any] = server.server.server_state.connections
        wait_until(lambda: sum(c.flow.write_paused for c in connections) == 3)
        unread = [c.transport.get_write_buffer_size() for c in connections]
        assert max(unread) < MIB, "of 16 MiB, only what is being written is copied"
        assert server.predict(png()).status_code == 200
        for reader in readers:
            reader.close()


@pytest.mark.long
def test_garbage_writes_nothing_to_the_log(model: Path):
    part = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'
    form = START + b"Content-Type: multipart/form-data; boundary=x\r\nContent-Length: %d\r\n\r\n" % len(part) + part
    chunked = START + b"Transfer-Encoding: chunked\r\n\r\n"
    health = chunked.replace(b"POST /predict", b"GET /health")
    bad = [chunked + b"x\r\n", chunked + b"3\r\nabcd\r\n0\r\n\r\n", health + b"-\r\n"]
    rng = random.Random(0)
    for _ in range(300):
        data = bytearray(rng.choice([form, chunked + b"3\r\nabc\r\n0\r\n\r\n", form + form]))
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 5))] = rng.randbytes(rng.choice((0, 1, 3)))
        bad.append(bytes(data))
    with ProcessServer(model) as server:
        for garbage in [*bad, b"\x16\x03\x01\x02\x00" + bytes(300), b"\r\n" * 3000]:
            with socket.create_connection((server.host, server.port), timeout=5) as connection, suppress(OSError):
                connection.sendall(garbage)
                if rng.random() < 0.5:
                    connection.recv(100)
        assert server.predict(png()).status_code == 200
        server.stop()
    log = "".join(server.output)
    assert "Traceback" not in log
    assert len(log.splitlines()) < 10, log


def test_an_error_that_happens_again_is_one_line(capsys: pytest.CaptureFixture[str]):
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(OneTraceback())
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for text in ("a\n", "50 %", "c"):
        try:
            raise ValueError(text)
        except ValueError as problem:
            logger.error("failed %s\n", text, exc_info=problem)
    lines = capsys.readouterr().out.splitlines()
    assert sum("Traceback" in line for line in lines) == 1
    assert lines[-2:] == ["failed 50 %: ValueError again", "failed c: ValueError again"]
