"""A server with a tiny model, in this process or in one of its own, for the tests of this folder."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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


def write_random_model(folder: Path) -> Path:
    """A model file with a random head, so that its predictions differ from image to image."""
    network = mini()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))
    return write_tiny_model(folder / "model.safetensors", network)


def png(seed: int = 0, label: int = 0, size: tuple[int, int] | None = None) -> bytes:
    """The bytes of a PNG image that the tiny model can read."""
    image = Image.fromarray(draw(np.array([label]), seed)[0])
    buffer = io.BytesIO()
    (image if size is None else image.resize(size)).save(buffer, "PNG")
    return buffer.getvalue()


def files(*images: bytes, names: tuple[str, ...] | None = None) -> list[tuple[str, tuple[str, bytes, str]]]:
    """The `files` argument of httpx for a multipart request."""
    names = names or tuple(f"{i}.png" for i in range(len(images)))
    return [("image", (name, data, "image/png")) for name, data in zip(names, images, strict=True)]


class Client(TestClient):
    """A client of a server in this process, with access to the server's service."""

    service: Service


@contextmanager
def client(model: Service | Classifier | Path, limits: Limits | None = None, **settings: Any) -> Iterator[Client]:
    """A client of a server in this process."""
    classifier = load(model) if isinstance(model, Path) else model
    service = classifier if isinstance(classifier, Service) else Service(classifier, limits)
    app = make_app(service, Settings(**{"name": "tiny", **settings}))
    with Client(app, raise_server_exceptions=False) as web:
        web.service = service
        yield web


class ThreadServer:
    """The server of `linnaeus serve` on a free port, in a thread of this process: it starts immediately."""

    def __init__(self, classifier: Classifier, limits: Limits | None = None, port: int = 0, **settings: Any):
        options = Settings(**{"name": "tiny", **settings})
        self.server = Server(Service(classifier, limits), options, bind("127.0.0.1", port), Console(quiet=True))
        self.address = self.server.address
        self.host: str
        self.port: int
        self.host, self.port = self.server.listener.getsockname()
        self.thread = threading.Thread(target=self.server.serve_until_stopped)

    def __enter__(self) -> ThreadServer:
        self.thread.start()
        wait_until(lambda: self.server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(90)

    def predict(self, image: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.address}/predict", content=image, headers=OCTETS, timeout=60)


class ProcessServer:
    """`linnaeus serve` in a process of its own."""

    def __init__(self, model: Path, *options: str, start_new_session: bool = False):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
        command = [sys.executable, "-m", "linnaeus", "serve", str(model), "--port", "0", "--like", "none", *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=start_new_session
        )
        self.output: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.output.append(line)
            if match := re.match(r"serving +(http://\S+)", line):
                self.address = match[1]
                host, _, port = match[1].removeprefix("http://").rpartition(":")
                self.host, self.port = host, int(port)
                return
        raise AssertionError("".join(self.output))

    def predict(self, image: bytes) -> httpx2.Response:
        return httpx2.post(f"{self.address}/predict", content=image, headers=OCTETS, timeout=60)

    def stop(self, number: signal.Signals = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal and wait. Returns the exit status."""
        self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=seconds)
        self.output.append(rest)
        return self.process.returncode

    def __enter__(self) -> ProcessServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


def wait_until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    """Wait until `condition()` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timeout"
        time.sleep(0.01)


def error(response: Any) -> str:
    """The message of an error response, which must be one line of JSON."""
    assert response.headers["content-type"] == "application/json"
    assert response.text.count("\n") == 1
    assert response.text.endswith("\n")
    content = response.json()
    assert list(content) == ["error"]
    return content["error"]
