"""Images are decoded outside of the server's process: no image can hold up, crash or outlast the server."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import warnings
import weakref
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import OCTETS, ProcessServer, client, png, wait_until

from linnaeus.data.images.decode import RowSpec, load_row
from linnaeus.inference.classifier import load
from linnaeus.serve import decoder, decoder_process
from linnaeus.serve.decoder import decoding_cost, read_message, write_message
from linnaeus.serve.decoder_process import DecoderProcess
from linnaeus.serve.decoding import Turns

SPEC = RowSpec(28, channels=1)
REQUEST = {"spec": asdict(SPEC), "max_pixels": None, "large": False}
posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def encoded(form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)).save(buffer, form, **options)
    return buffer.getvalue()


def chunks_png(n: int, size: tuple[int, int] = (28, 28)) -> bytes:
    """A PNG with n chunks of no content after its pixels."""
    data = png(size=size)
    chunk = b"\0\0\0\0aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    end = data.index(b"IEND") - 4
    return data[:end] + chunk * n + data[end:]


@pytest.fixture
def process() -> Iterator[DecoderProcess]:
    process = DecoderProcess(0)
    yield process
    process.stop()


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process from other tests."""
    decoder_process.stop_idle_processes()
    yield
    decoder_process.stop_idle_processes()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP", "GIF", "BMP", "JPEG2000", "PPM"])
def test_pixels_are_those_of_training_and_this_process_decodes_nothing(
    form: str, model: Path, monkeypatch: pytest.MonkeyPatch
):
    data, classifier = encoded(form), load(model)
    with warnings.catch_warnings(action="ignore"):  # the model sees no color
        expected = classifier.predict(data)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded in this process"))
    with client(classifier) as web:
        answer = web.post("/predict", content=data, headers=OCTETS).json()["predictions"][0]
    assert answer == {**expected.to_dict(5), "path": "image 1"}


def test_answers_name_the_row_and_its_color(process: DecoderProcess):
    data = encoded("PNG")
    answer, pixels = process.ask(REQUEST, data)
    assert answer == {"shape": [28, 32, 1], "in_color": True}
    assert pixels == load_row(data, SPEC).tobytes()
    assert process.ask({**REQUEST, "max_pixels": 100}, data)[0]["kind"] == "too-large"
    assert process.ask(REQUEST, b"x")[0] == {"error": "not an image, or in an unsupported format", "kind": "unreadable"}


def test_decoders_in_python_cost_more():
    plain = b"P3 60 70 255 " + b"1 " * 60 * 70 * 3
    assert decoding_cost(plain)[2] == 60 * decoding_cost(encoded("PPM"))[2]


@posix
def test_parsing_that_takes_long_is_interrupted(monkeypatch: pytest.MonkeyPatch):
    data = chunks_png(100_000)  # 0.2 s
    monkeypatch.setattr(decoder, "SOON", 0.02)
    monkeypatch.setattr(decoder, "LONG", 0.02)
    before = signal.signal(signal.SIGPROF, decoder._interrupt)
    try:
        assert decoder._answer(SPEC, None, False, data) == ({"large": True}, b"")
        assert decoder._answer(SPEC, None, True, data)[0] == {"error": "takes too long to decode", "kind": "too-large"}
        assert signal.getitimer(signal.ITIMER_PROF) == (0, 0)
        monkeypatch.setattr(decoder, "LONG", 60.0)
        assert decoder._answer(SPEC, None, True, data)[0]["shape"] == (28, 28, 1)
    finally:
        signal.signal(signal.SIGPROF, before)


def test_large_images_do_not_delay_small_ones(model: Path, monkeypatch: pytest.MonkeyPatch):
    large, go, nice = chunks_png(0, (2100, 2100)), threading.Event(), set[int]()
    original = DecoderProcess.ask

    def ask(process: DecoderProcess, request: dict[str, Any], data: bytes) -> Any:
        if request["large"]:
            if sys.platform == "linux":
                nice.add(os.getpriority(os.PRIO_PROCESS, process.process.pid))
            go.wait(20)
        return original(process, request, data)

    monkeypatch.setattr(DecoderProcess, "ask", ask)
    with client(model) as web, ThreadPoolExecutor(8) as clients:
        waiting = [clients.submit(web.post, "/predict", content=large, headers=OCTETS) for _ in range(6)]
        wait_until(lambda: web.service.batcher.preparing == 6)
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200
        assert not any(future.done() for future in waiting)
        go.set()
        assert {future.result(20).status_code for future in waiting} == {200}
    if sys.platform == "linux":
        assert nice <= {0, decoder_process.NICE}  # 0 before the process has set it
        assert os.getpriority(os.PRIO_PROCESS, decoder_process._idle[decoder_process.NICE][0].process.pid) == 10


def test_an_image_is_forgotten_when_its_client_leaves_the_queue():
    go, kept = threading.Event(), list[weakref.ref[Any]]()

    async def main() -> None:
        queue = Turns(1)
        working = asyncio.create_task(queue.run(go.wait, 20))
        for _ in range(3):
            data = np.zeros(9)
            kept.append(weakref.ref(data))
            waiting = asyncio.create_task(queue.run(np.sum, data))
            del data
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            del waiting
        working.cancel()  # its thread goes on, and nobody else gets its turn
        after = asyncio.create_task(queue.run(lambda: "after"))
        await asyncio.sleep(0.01)
        gc.collect()
        assert [reference() for reference in kept] == [None] * 3
        assert not after.done()
        assert queue._threads._work_queue.empty()
        go.set()
        assert await after == "after"
        queue.stop()

    asyncio.run(main())


@posix
@pytest.mark.usefixtures("fresh")
def test_a_crash_of_a_decoder_is_the_error_of_its_image_alone(model: Path, monkeypatch: pytest.MonkeyPatch):
    original, crashing = DecoderProcess.ask, encoded("PNG")

    def ask(process: DecoderProcess, request: dict[str, Any], data: bytes) -> Any:
        if data == crashing:
            process.process.kill()
        return original(process, request, data)

    monkeypatch.setattr(DecoderProcess, "ask", ask)
    with client(model) as web:
        for image, status in ((png(), 200), (crashing, 422), (png(), 200)):
            response = web.post("/predict", content=image, headers=OCTETS)
            assert response.status_code == status
            error = response.json()["predictions"][0]["error"]
            assert error == (None if status == 200 else "damaged: decoding it crashed, or did not finish")
        (idle,) = decoder_process._idle[0]
        idle.process.kill()  # by the system, for want of memory
        idle.process.wait()
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200


@posix
def test_signals_to_the_group_leave_requests_in_progress(process: DecoderProcess):
    assert process.ask(REQUEST, png())[0]["shape"]
    for number in (signal.SIGINT, signal.SIGTERM):
        process.process.send_signal(number)
        assert process.ask(REQUEST, png())[0]["shape"]


@linux
def test_signals_of_the_terminal_cannot_end_a_decoder_that_is_being_started():
    """It belongs to the group of the server until it has a session of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    starting = DecoderProcess(0)
    try:
        status = Path(f"/proc/{starting.process.pid}/status").read_text()
        (mask,) = re.findall(r"^SigBlk:\s*(\w+)", status, re.MULTILINE)
        blocked = {number for number in signal.Signals if int(mask, 16) >> (number - 1) & 1}
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= blocked
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    finally:
        starting.stop()


@linux
def test_decoders_end_with_a_server_that_is_killed(model: Path):
    server = ProcessServer(model)
    try:
        assert server.predict(png()).status_code == 200
        # Of all threads: a process is the child of the thread that started it.
        lists = Path(f"/proc/{server.process.pid}/task").glob("*/children")
        children = [child for each in lists for child in each.read_text().split()]
        commands = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
        assert any(b"linnaeus.serve.decoder" in command for command in commands)
    finally:
        server.process.kill()
        server.process.wait(20)
    wait_until(lambda: not any(_alive(child) for child in children))


def _alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_module_of_the_current_folder_is_not_imported(tmp_path: Path):
    (tmp_path / "json.py").write_text("raise SystemExit(3)\n")
    code = "from linnaeus.serve.decoder_process import DecoderProcess as D; p = D(0); print(p.ask(%r, b'x')[0]['kind'])"
    command = [sys.executable, "-P", "-c", code % REQUEST]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "unreadable\n"


def test_a_message_that_is_cut_off_is_the_end():
    stream = io.BytesIO()
    write_message(stream, {"a": 1}, b"xyz")
    whole = stream.getvalue()
    assert read_message(io.BytesIO(whole)) == ({"a": 1}, b"xyz")
    assert [read_message(io.BytesIO(whole[:n])) for n in range(len(whole))] == [None] * len(whole)
