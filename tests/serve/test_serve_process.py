"""`linnaeus serve` as a process, on a loopback port: bad clients, idle ones, half requests, and how it ends."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
from served import Process, Threaded, png, until, write_model_with_opinions
from tiny import write_tiny_model

from linnaeus.inference.classifier import load
from linnaeus.models import load_module, wrap
from linnaeus.serve.connections import make_room
from linnaeus.serve.limits import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_with_opinions(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Threaded]:
    with Threaded(load(model), Limits(body_seconds=1, header_seconds=2)) as found:
        yield found


def talk(server: Threaded | Process, text: bytes) -> socket.socket:
    """A connection on which `text` has been sent."""
    connection = socket.create_connection((server.host, server.port), timeout=30)
    connection.sendall(text)
    return connection


HALF = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nabc"


def rest(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    said = b""
    with connection:
        while some := connection.recv(4096):
            said += some
    return said


def test_a_body_that_does_not_come_is_answered_408_and_closed(server: Threaded):
    started = time.monotonic()
    said = rest(talk(server, HALF))
    assert said.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 1 seconds" in said
    assert 0.9 < time.monotonic() - started < 15


def test_a_body_that_drips_has_no_more_time(server: Threaded):
    connection = talk(server, HALF)
    connection.settimeout(0.2)
    started = time.monotonic()
    said = b""
    while not said and time.monotonic() - started < 15:
        connection.sendall(b"x")
        try:
            said = connection.recv(4096)
        except TimeoutError:
            continue
    assert said.startswith(b"HTTP/1.1 408")


def test_half_a_request_and_garbage_leave_the_server_as_it_was(server: Threaded):
    for text in (HALF, HALF[:30], b"\x16\x03\x01\x02\x00 garbage", b"GET / HTTP/9\r\n\r\n", b"\r\n" * 1000):
        talk(server, text).close()
    assert b"400" in rest(talk(server, b"what is this\r\n\r\n"))[:20]
    assert server.ask(png()).status_code == 200


def test_a_refused_body_is_drained_so_that_the_answer_arrives(server: Threaded):
    answer = server.ask(b"x" * (33 << 20))
    assert answer.status_code == 413
    assert "over 33,554,432 bytes" in answer.json()["error"]


def test_five_hundred_idle_connections_harm_nobody(server: Threaded):
    idle = [talk(server, b"" if i % 2 else b"POST /pre") for i in range(500)]
    try:
        for seed in range(5):
            started = time.monotonic()
            assert server.ask(png(seed)).status_code == 200
            assert time.monotonic() - started < 5
    finally:
        for each in idle:
            each.close()


def test_whoever_says_nothing_is_sent_away(server: Threaded):
    silent, slow = talk(server, b""), talk(server, b"GET / HTTP/1.1\r\n")
    drip = threading.Event()

    def dripping() -> None:
        while not drip.wait(0.5):
            try:
                slow.sendall(b"X-A: b\r\n")
            except OSError:
                return

    thread = threading.Thread(target=dripping)
    thread.start()
    started = time.monotonic()
    for each in (silent, slow):
        with suppress(ConnectionError):
            while each.recv(100):
                pass
    assert 1.5 < time.monotonic() - started < 20
    drip.set()
    thread.join()


def test_of_too_many_connections_the_one_that_waits_longest_goes():
    class Connection:
        def __init__(self, since: float, owing: bool):
            self.since, self.owing, self.transport, self.gone = since, owing, object(), False

        def give_up(self) -> None:
            self.gone = True

    working, old, young = Connection(0, False), Connection(1, True), Connection(2, True)
    make_room({working, old, young})
    assert (working.gone, old.gone, young.gone) == (False, True, False)
    make_room({working})
    assert not working.gone


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


@pytest.mark.parametrize("how", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.long)])
def test_what_is_in_hand_is_answered_before_the_end(tmp_path: Path, how: signal.Signals):
    (tmp_path / "slow.py").write_text(SLOW)
    code = f"{tmp_path / 'slow.py'}:build"
    model = write_tiny_model(tmp_path / "model.safetensors", wrap(load_module(code, 3, 1), 3, 1))
    with Process(model, "--model", code, "--batch", "1") as server:
        found: list[int] = []

        def ask() -> None:
            found.append(server.ask(png()).status_code)

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for each in clients:
            each.start()
        until(lambda: "linnaeus_pictures_in_hand 4.0" in httpx2.get(f"{server.address}/metrics").text)
        assert server.stop(how) == 0
        for each in clients:
            each.join()
        assert found == [200] * 4
        assert "stopping: answering what is in hand" in "".join(server.said)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((server.host, server.port), timeout=5)


@pytest.mark.long
def test_an_idle_server_ends_at_once(model: Path):
    with Process(model) as server:
        idle = talk(server, b"")
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 10
        idle.close()


def test_what_cannot_be_served_is_said_in_one_line(say: Any, model: Path, server: Threaded):
    taken = say("serve", model, "--port", server.port)
    assert taken.status == 2
    assert [line.split()[0] for line in taken.err.splitlines()] == ["loading", "model", "error:"]
    assert f"--port {server.port}: is taken on 127.0.0.1" in taken.err
    assert "no such address" in say("serve", model, "--host", "no.such.host.invalid").err
    assert "--max-images 32" in say("serve", model, "--queue", "8").err
    assert "--token" in say("serve", model, "--token", "ä").err
    assert say("serve", model.parent / "nothing").status == 2
