"""Many or large requests of some clients leave room for the others, and nobody's work goes on without them."""

from __future__ import annotations

import asyncio
import gc
import io
import select
import socket
import threading
import weakref

import numpy as np
import pytest
from PIL import Image
from served import OCTETS, ThreadServer, client, files, png, wait_until

from linnaeus.inference.classifier import Classifier, Prediction, load
from linnaeus.serve import upload_memory
from linnaeus.serve.admission import Admission
from linnaeus.serve.connections import READ_AT_ONCE, TimeoutProtocol
from linnaeus.serve.decoder import LARGE, MAX_COST, decoding_cost
from linnaeus.serve.limits import Limits, RefusedError
from linnaeus.serve.service import Service
from linnaeus.serve.upload_memory import UploadMemory
from linnaeus.serve.uploads import Upload


def test_large_requests_and_one_client_leave_room_for_others():
    admission = Admission(64)
    with admission.admit(32, "a"), admission.admit(16, "a"):
        with pytest.raises(RefusedError, match="48 images are in progress"), admission.admit(2, "a"):
            pass
        with admission.admit(8, "b"), pytest.raises(RefusedError), admission.admit(1, "a"):
            pass
        for other in ("b", "c"):
            with admission.admit(1, other):
                pass
    assert (admission.in_progress, dict(admission._held)) == (0, {})
    with admission.admit(64, "a"):
        pass


def test_small_uploads_displace_large_ones_that_never_end():
    memory, ended = UploadMemory(100), list[str]()
    with memory.reserve("a") as large, memory.reserve("a") as larger, memory.reserve("b") as small:
        for reservation, size, name in ((large, 40, "large"), (larger, 50, "larger")):
            reservation.end = lambda name=name: ended.append(name)
            reservation.add(size)
        small.add(30)
        assert ended == ["larger"]
        with pytest.raises(RefusedError, match="too many uploads"):
            larger.add(70)
        large.end = None  # complete: it is in use
        with pytest.raises(RefusedError):
            small.add(40)
    assert (memory.used, dict(memory.clients)) == (0, {})


def test_a_large_upload_does_not_displace_those_of_its_size():
    memory, ended = UploadMemory(100), list[str]()
    with memory.reserve("a") as first, memory.reserve("a") as second, memory.reserve("b") as other:
        for reservation, name in ((first, "first"), (second, "second"), (other, "other")):
            reservation.end = lambda name=name: ended.append(name)
        first.add(70)
        with pytest.raises(RefusedError, match="too many uploads"):
            second.add(70)
        second.release()
        assert ended == []
        other.add(60)
        assert ended == ["first"], "its client holds more than another one"
    assert (memory.used, dict(memory.clients)) == (0, {})


def test_an_upload_that_will_not_fit_is_refused_before_it_arrives(classifier: Classifier):
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 400000\r\n\r\n"
    with ThreadServer(classifier, Limits(total_bytes=1_000_000, request_bytes=400_000)) as server:
        held = [socket.create_connection((server.host, server.port), timeout=5) for _ in range(3)]
        for connection in held:
            connection.sendall(head + b"x")
        refused, _, _ = select.select(held, [], [], 5)
        assert len(refused) == 1
        assert b"503" in refused[0].recv(100)
        assert server.predict(png()).status_code == 200
        for connection in held:
            connection.close()


def test_images_are_freed_with_their_request(classifier: Classifier):
    """Also those of clients that leave, and unreadable ones: a reference cycle would keep them until a collection."""

    async def forever(data: bytes) -> np.ndarray:
        await asyncio.sleep(60)
        raise AssertionError

    async def kept(data: bytes, seconds: float) -> object:
        service = Service(load(classifier.path))
        await service.start()
        if not seconds:
            service._decoders.decode = forever  # type: ignore[method-assign]
        uploads = [Upload("", data)]
        image = weakref.ref(uploads[0])
        request = asyncio.create_task(service.predict(uploads, 1, False))
        del uploads
        await asyncio.wait([request], timeout=seconds or 0.1)
        request.cancel()
        await asyncio.wait([request])
        del request
        await service.stop()
        return image()

    gc.disable()
    try:
        assert asyncio.run(kept(png(), 0)) is None
        assert asyncio.run(kept(b"no image", 20)) is None
    finally:
        gc.enable()


def test_uploads_held_open_do_not_keep_out_others(classifier: Classifier):
    limits = Limits(total_bytes=1_000_000, request_bytes=400_000)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 300001\r\n\r\n"
    with ThreadServer(classifier, limits) as server:
        held = []
        for _ in range(6):
            held.append(socket.create_connection((server.host, server.port), timeout=20))
            held[-1].sendall(head + bytes(300_000))
        image = png() + bytes(200_000)
        assert [server.predict(image).status_code for _ in range(3)] == [200] * 3
        answered, _, _ = select.select(held, [], [], 10)
        assert answered
        assert all(b"503" in connection.recv(100) for connection in answered)
        for connection in held:
            connection.close()


def test_work_for_clients_that_have_left_is_cancelled(classifier: Classifier):
    slow = load(classifier.path)
    explained, go = list[Prediction](), threading.Event()
    with ThreadServer(slow) as server:
        service = server.server.service

        def explain(prediction: Prediction) -> dict[str, str]:
            explained.append(prediction)
            go.wait(20)
            return {}

        service.explainer._explain = explain  # type: ignore[method-assign]
        body = b"".join(
            b'--x\r\nContent-Disposition: form-data; name="a"; filename="b"\r\n\r\n' + png(i) + b"\r\n"
            for i in range(8)
        )
        head = f"POST /predict?explain=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body) + 7}\r\n"
        with socket.create_connection((server.host, server.port)) as connection:
            connection.sendall(
                head.encode() + b"Content-Type: multipart/form-data; boundary=x\r\n\r\n" + body + b"--x--\r\n"
            )
            wait_until(lambda: explained)
        wait_until(lambda: service.batcher.admission.in_progress == 0)
        assert service.explainer.admission.in_progress == 0
        go.set()
        assert server.predict(png()).status_code == 200
        assert len(explained) == 1, "the other seven images are not explained"


def test_explanations_are_bounded_apart_from_predictions(classifier: Classifier):
    with client(classifier, Limits(explanations=4, images=4)) as web:
        with web.service.explainer.admission.admit(4):
            refused = web.post("/predict?explain=1", files=files(png()))
            assert (refused.status_code, "retry-after" in refused.headers) == (503, True)
            assert "4 explanations are in progress" in refused.json()["error"]
            assert web.post("/predict", files=files(png())).status_code == 200
        assert web.post("/predict?explain=1", files=files(*[png()] * 4)).status_code == 200


def test_the_memory_of_many_uploads_is_returned(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    returned = []
    monkeypatch.setattr(upload_memory, "return_freed_memory", lambda: returned.append(1))
    monkeypatch.setattr(upload_memory, "RELEASED", 3 * len(png()))
    monkeypatch.setattr(upload_memory, "DELAY", 0)
    with client(classifier) as web:
        for _ in range(6):
            assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200
        wait_until(lambda: len(returned) == 2)


def test_large_uploads_take_turns(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    sizes, original = list[int](), TimeoutProtocol.data_received

    def received(connection: TimeoutProtocol, data: bytes) -> None:
        sizes.append(len(data))
        original(connection, data)

    monkeypatch.setattr(TimeoutProtocol, "data_received", received)
    with ThreadServer(classifier) as server:
        assert server.predict(png() + bytes(4 << 20)).status_code == 200  # trailing bytes are ignored
    assert READ_AT_ONCE / 2 < max(sizes) <= READ_AT_ONCE


def test_requests_take_turns(classifier: Classifier):
    """A single image overtakes most of the images of a large request that came before it."""
    order = list[str]()

    async def predict() -> None:
        service = Service(load(classifier.path), Limits(batch=2))
        original = service._predict

        async def recorded(upload: Upload) -> Prediction:
            prediction = await original(upload)
            order.append(upload.name)
            return prediction

        service._predict = recorded  # type: ignore[method-assign]
        await service.start()
        large = [Upload(f"large {i}", png(i)) for i in range(64)]
        first = asyncio.create_task(service.predict(large, 1, False))
        await asyncio.sleep(0)
        await service.predict([Upload("small", png())], 1, False)
        await first
        await service.stop()

    asyncio.run(predict())
    assert order.index("small") < 32


def encoded(form: str, size: int, **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (size, size), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, **options)
    return buffer.getvalue()


def test_images_that_decode_slowly_are_known_by_their_header(classifier: Classifier):
    jpeg = encoded("JPEG", 512, progressive=True)
    start, end = jpeg.rindex(b"\xff\xda"), jpeg.rindex(b"\xff\xd9")
    scans = jpeg[:end] + jpeg[start : start + 40] * 5000 + jpeg[end:]
    assert decoding_cost(scans)[2] > MAX_COST
    with client(classifier) as web:
        response = web.post("/predict", content=scans, headers=OCTETS)
        assert response.status_code == 422
        assert "too long to decode" in response.json()["predictions"][0]["error"]
    assert decoding_cost(encoded("JPEG", 4000))[2] <= LARGE, "a photo of a phone"
    assert decoding_cost(encoded("PNG", 2500))[2] > LARGE
    assert decoding_cost(b"no image") == (0, 0, 0)
