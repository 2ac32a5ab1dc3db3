"""A server of a tiny model, in this process or as one of its own, for the tests of this folder."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from PIL import Image
from starlette.testclient import TestClient
from tiny import draw, mini, write_tiny_model

from linnaeus.console import Console
from linnaeus.inference.classifier import Classifier, load
from linnaeus.serve.app import Settings, make_app
from linnaeus.serve.limits import Limits
from linnaeus.serve.server import Server, bind
from linnaeus.serve.service import Service

OCTETS = {"Content-Type": "application/octet-stream"}


def write_model_with_opinions(folder: Path) -> Path:
    """A model file whose answers differ from image to image."""
    network = mini()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    return write_tiny_model(folder / "model.safetensors", network)


def png(seed: int = 0, label: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """An image that the tiny model can read, as the bytes of a PNG."""
    image = Image.fromarray(draw(np.array([label]), seed)[0])
    buffer = io.BytesIO()
    (image if size is None else image.resize(size)).save(buffer, "PNG")
    return buffer.getvalue()


def files(*images: bytes, names: tuple[str, ...] | None = None) -> list[tuple[str, tuple[str, bytes, str]]]:
    """What httpx sends as multipart."""
    given = names or tuple(f"{i}.png" for i in range(len(images)))
    return [("picture", (name, data, "image/png")) for name, data in zip(given, images, strict=True)]


class Client(TestClient):
    """A client of a server in this process, and the server's service."""

    service: Service


@contextmanager
def client(given: Service | Classifier | Path, limits: Limits | None = None, **settings: Any) -> Iterator[Client]:
    """A client of a server in this process."""
    classifier = load(given) if isinstance(given, Path) else given
    service = classifier if isinstance(classifier, Service) else Service(classifier, limits)
    app = make_app(service, Settings(**{"name": "tiny", **settings}))
    with Client(app, raise_server_exceptions=False) as found:
        found.service = service
        yield found


class Threaded:
    """The same server as `linnaeus serve` on a port of its own, in a thread of this process: it is there at once."""

    def __init__(self, classifier: Classifier, limits: Limits | None = None, port: int = 0, **settings: Any):
        given = Settings(**{"name": "tiny", **settings})
        self.server = Server(Service(classifier, limits), given, bind("127.0.0.1", port), Console(quiet=True))
        self.address = self.server.address
        self.host: str
        self.port: int
        self.host, self.port = self.server.listening.getsockname()
        self.thread = threading.Thread(target=self.server.serve_until_stopped)

    def __enter__(self) -> Threaded:
        self.thread.start()
        until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(90)

    def ask(self, picture: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.address}/predict", content=picture, headers=OCTETS, timeout=60)


class Process:
    """`linnaeus serve` as a process of its own."""

    def __init__(self, model: Path, *options: str):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "linnaeus", "serve", str(model), "--port", "0", "--like", "none", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.match(r"serving +(http://\S+)", line):
                self.address = found[1]
                host, _, port = found[1].removeprefix("http://").rpartition(":")
                self.host, self.port = host, int(port)
                return
        raise AssertionError("".join(self.said))

    def ask(self, picture: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.address}/predict", content=picture, headers=OCTETS, timeout=60)

    def stop(self, how: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """The exit status."""
        self.process.send_signal(how)
        _, rest = self.process.communicate(timeout=seconds)
        self.said.append(rest)
        return self.process.returncode

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def until(true: Any, seconds: float = 20.0) -> None:
    """Wait until `true()` is."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def error(answer: Any) -> str:
    """The one line that a refusal says."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.text.count("\n") == 1
    assert answer.text.endswith("\n")
    said = answer.json()
    assert list(said) == ["error"]
    return said["error"]
