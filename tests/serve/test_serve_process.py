"""`linnaeus serve` on a loopback port: misbehaving and idle clients, incomplete requests, and shutdown."""

from __future__ import annotations

import io
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image
from served import ProcessServer, ThreadServer, files, png, wait_until
from tiny import write_tiny_model

from linnaeus.inference.classifier import load
from linnaeus.models import load_module, wrap
from linnaeus.serve.connections import close_longest_waiting
from linnaeus.serve.limits import Limits


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[ThreadServer]:
    with ThreadServer(load(model), Limits(body_seconds=1, header_seconds=2)) as server:
        yield server


def connect(server: ThreadServer | ProcessServer, data: bytes) -> socket.socket:
    """A connection over which `data` has been sent."""
    connection = socket.create_connection((server.host, server.port), timeout=30)
    connection.sendall(data)
    return connection


INCOMPLETE = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"


def receive_all(connection: socket.socket) -> bytes:
    """All bytes until the server closes the connection."""
    received = b""
    with connection:
        while chunk := connection.recv(4096):
            received += chunk
    return received


def test_a_missing_body_is_answered_with_408_and_closed(server: ThreadServer):
    started = time.monotonic()
    response = receive_all(connect(server, INCOMPLETE))
    assert response.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 1 seconds" in response
    assert 0.9 < time.monotonic() - started < 15


def test_a_slow_body_gets_no_extra_time(server: ThreadServer):
    connection = connect(server, INCOMPLETE)
    connection.settimeout(0.2)
    started = time.monotonic()
    response = b""
    while not response and time.monotonic() - started < 15:
        connection.sendall(b"x")
        try:
            response = connection.recv(4096)
        except TimeoutError:
            continue
    assert response.startswith(b"HTTP/1.1 408")


def test_incomplete_requests_and_garbage_do_no_harm(server: ThreadServer):
    garbage = b"\x16\x03\x01\x02\x00 garbage"
    for data in (INCOMPLETE, INCOMPLETE[:30], garbage, b"GET / HTTP/9\r\n\r\n", b"\r\n" * 1000):
        connect(server, data).close()
    assert b"400" in receive_all(connect(server, b"what is this\r\n\r\n"))[:20]
    assert server.predict(png()).status_code == 200


def test_a_refused_body_is_read_to_its_end_so_that_the_response_arrives(server: ThreadServer):
    response = server.predict(b"x" * (33 << 20))
    assert response.status_code == 413
    assert "exceeds 33,554,432 bytes" in response.json()["error"]


def test_five_hundred_idle_connections_do_no_harm(server: ThreadServer):
    idle = [connect(server, b"" if i % 2 else b"POST /pre") for i in range(500)]
    try:
        for seed in range(5):
            started = time.monotonic()
            assert server.predict(png(seed)).status_code == 200
            assert time.monotonic() - started < 5
    finally:
        for connection in idle:
            connection.close()


def test_silent_and_slow_clients_are_disconnected(server: ThreadServer):
    silent, slow = connect(server, b""), connect(server, b"GET / HTTP/1.1\r\n")
    stop = threading.Event()

    def send_slowly() -> None:
        while not stop.wait(0.5):
            try:
                slow.sendall(b"X-A: b\r\n")
            except OSError:
                return

    thread = threading.Thread(target=send_slowly)
    thread.start()
    started = time.monotonic()
    for connection in (silent, slow):
        with suppress(ConnectionError):
            while connection.recv(100):
                pass
    assert 1.5 < time.monotonic() - started < 20
    stop.set()
    thread.join()


def test_too_many_connections_close_the_one_that_waits_longest():
    class Connection:
        def __init__(self, since: float, waiting: bool, address: str = "10.0.0.1"):
            self.client = (address, 1234)
            self.waiting_since, self.waiting_for_client, self.transport, self.closed = since, waiting, object(), False

        def disconnect(self) -> None:
            self.closed = True

    working, old, young = Connection(0, False), Connection(1, True), Connection(2, True)
    close_longest_waiting({working, old, young})
    assert (working.closed, old.closed, young.closed) == (False, True, False)
    close_longest_waiting({working})
    assert not working.closed
    alone = Connection(0, True, "10.0.0.2")
    close_longest_waiting({alone, old, young})
    assert not alone.closed, "of the address with the most connections"


SLOW = """
import time
from torch import nn

def build(classes, channels):
    class Slow(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(28 * 28 * channels, classes)

        def forward(self, x):
            time.sleep(0.4)
            return self.fc(x.flatten(1))

    return Slow()
"""


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.long) for other in (signal.SIGINT, signal.SIGHUP))],
)
def test_requests_in_progress_are_answered_before_shutdown(tmp_path: Path, number: signal.Signals):
    (tmp_path / "slow.py").write_text(SLOW)
    code = f"{tmp_path / 'slow.py'}:build"
    model = write_tiny_model(tmp_path / "model.safetensors", wrap(load_module(code, 3, 1), 3, 1))
    with ProcessServer(model, "--model", code, "--batch", "1") as server:
        statuses: list[int] = []

        def predict() -> None:
            statuses.append(server.predict(png()).status_code)

        clients = [threading.Thread(target=predict) for _ in range(4)]
        for thread in clients:
            thread.start()
        wait_until(lambda: "linnaeus_images_in_progress 4.0" in httpx2.get(f"{server.address}/metrics").text)
        assert server.stop(number) == 0
        for thread in clients:
            thread.join()
        assert statuses == [200] * 4
        assert "stopping: answering the requests in progress" in "".join(server.output)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((server.host, server.port), timeout=5)


def test_a_second_ctrl_c_abandons_the_requests_in_progress(tmp_path: Path):
    """The server ends at once with a line instead of a traceback for each request, and ends its threads."""
    (tmp_path / "slow.py").write_text(SLOW.replace("0.4", "3 * (len(x) > 1)"))
    code = f"{tmp_path / 'slow.py'}:build"
    model = write_tiny_model(tmp_path / "model.safetensors", wrap(load_module(code, 3, 1), 3, 1))
    with ProcessServer(model, "--model", code) as server:
        statuses: list[int] = []

        def predict() -> None:
            with suppress(httpx2.HTTPError):
                images = files(png(), png(1))
                statuses.append(httpx2.post(f"{server.address}/predict", files=images, timeout=60).status_code)

        clients = [threading.Thread(target=predict) for _ in range(4)]
        for thread in clients:
            thread.start()
        wait_until(lambda: "linnaeus_images_in_progress 8.0" in httpx2.get(f"{server.address}/metrics").text)
        server.process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert server.stop(signal.SIGINT) == 130
        for thread in clients:
            thread.join()
    assert 200 not in statuses
    assert "".join(server.output).split("(press Ctrl-C to stop)\n")[1].split("\n") == [
        "stopping: answering the requests in progress",
        "",  # after the ^C of a terminal
        "stopped",
        "",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_before_uvicorn_handles_signals_is_not_lost(model: Path, number: signal.Signals):
    """Such as during its imports."""
    kinds = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(kind) for kind in kinds]
    server = ThreadServer(load(model)).server
    late = threading.Timer(20, lambda: setattr(server, "should_exit", True))
    late.start()
    try:
        server.handle_signals()
        signal.raise_signal(number)
        server.serve_until_stopped()
        assert late.is_alive()
    finally:
        late.cancel()
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def test_a_closed_terminal_does_not_damage_the_image_that_is_being_decoded(model: Path):
    """SIGHUP reaches all processes of the terminal."""
    image = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (1500, 1500), dtype=np.uint8)).save(image, "JPEG2000")
    with ProcessServer(model, start_new_session=True) as server:
        statuses: list[int] = []
        client = threading.Thread(target=lambda: statuses.append(server.predict(image.getvalue()).status_code))
        client.start()
        wait_until(lambda: "linnaeus_images_in_progress 1.0" in httpx2.get(f"{server.address}/metrics").text)
        os.killpg(server.process.pid, signal.SIGHUP)
        client.join()
        assert server.process.wait(60) == 0
        assert statuses == [200]


@pytest.mark.long
def test_an_idle_server_stops_immediately(model: Path):
    with ProcessServer(model, "--title", "Flowers & <trees>") as server:
        assert '<h1 id="name">Flowers &amp; &lt;trees&gt;</h1>' in httpx2.get(server.address).text
        idle = connect(server, b"")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10
        idle.close()


def test_invalid_options_are_reported_in_one_line(say: Any, model: Path, server: ThreadServer):
    in_use = say("serve", model, "--port", server.port)
    assert in_use.status == 2
    assert [line.split()[0] for line in in_use.err.splitlines()] == ["loading", "model", "error:"]
    assert f"--port {server.port}: in use on 127.0.0.1" in in_use.err
    assert "no such address" in say("serve", model, "--host", "no.such.host.invalid").err
    assert "--max-images 32" in say("serve", model, "--queue", "8").err
    assert "--max-images 9" in say("serve", model, "--queue", "8", "--max-images", "9").err
    assert "--token" in say("serve", model, "--token", "ä").err
    assert say("serve", model.parent / "nothing").status == 2
