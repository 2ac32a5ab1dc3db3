"""Request bodies of `linnaeus serve`: accepted formats, limits, and errors."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
from served import OCTETS, Client, client, error, files, png

from linnaeus.inference.classifier import Classifier
from linnaeus.serve.limits import Limits

JSON = {"Content-Type": "application/json"}
MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\nabc\r\n'
END = b"--x--\r\n"


@pytest.mark.parametrize(
    ("content", "headers", "status", "message"),
    [
        (b"abc", {}, 415, "unsupported Content-Type (missing)"),
        (b"abc", {"Content-Type": "text/html"}, 415, "unsupported Content-Type (text/html)"),
        (b"abc", {**OCTETS, "Content-Encoding": "gzip"}, 415, "Content-Encoding"),
        (b"", OCTETS, 422, "no image"),
        (b"x" * 50_001, OCTETS, 413, "exceeds 50,000 bytes"),
        (b"{", JSON, 422, "not valid JSON"),
        (b"[" * 20_000, JSON, 422, "not valid JSON"),
        (b"[]", JSON, 422, "images"),
        (b'{"images": []}', JSON, 422, "no image"),
        (b'{"images": [1]}', JSON, 422, "image 1"),
        (b'{"images": ["", "?"]}', JSON, 422, "image 2 is not valid base64"),
        (b'{"images": ["", "", "", "", ""]}', JSON, 413, "more than 4 images"),
        (PART + END, {"Content-Type": "multipart/form-data"}, 422, "boundary"),
        (PART + END, {"Content-Type": "multipart/form-data; boundary=y"}, 422, "not valid multipart"),
        (PART, MULTIPART, 422, "truncated"),
        (PART.replace(b'; filename="a.png"', b"") + END, MULTIPART, 422, "the field 'p' is not a file"),
        (PART.replace(b"a.png", b"") + END, MULTIPART, 422, "no image"),
        (PART.replace(b"a.png", b"a" * 9000) + END, MULTIPART, 422, "not valid multipart"),
        (PART.replace(b"--x\r\n", b"--x\r\n" + b"X: 1\r\n" * 40) + END, MULTIPART, 422, "not valid multipart"),
        (PART * 5 + END, MULTIPART, 413, "more than 4 images"),
    ],
)
def test_an_invalid_request_is_refused_in_one_line(
    web: Client, content: bytes, headers: dict[str, str], status: int, message: str
):
    response = web.post("/predict", content=content, headers=headers)
    assert response.status_code == status
    assert message in error(response)
    assert web.service.batcher.admission.in_progress == 0
    assert "linnaeus_upload_bytes 0.0" in web.get("/metrics").text


def test_a_part_without_a_file_name_is_an_image_if_its_type_says_so(web: Client):
    header = b'--x\r\nContent-Disposition: form-data; name="p"\r\nContent-Type: image/png\r\n\r\n'
    response = web.post("/predict", content=(header + png() + b"\r\n") * 2 + END, headers=MULTIPART)
    predictions = response.json()["predictions"]
    assert [(p["path"], p["error"]) for p in predictions] == [("image 1", None), ("image 2", None)]


def test_uploads_are_not_written_to_disk(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a temporary file was created")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)  # what a SpooledTemporaryFile becomes on disk
    with client(classifier) as web:
        large = png() + bytes(3 << 20)  # trailing bytes are ignored
        assert web.post("/predict", files=files(large)).status_code == 200


def test_a_body_of_unknown_length_is_counted_as_it_arrives(web: Client):
    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * 1000

    response = web.post("/predict", content=chunks(), headers=OCTETS)
    assert response.status_code == 413
    assert "linnaeus_upload_bytes 0.0" in web.get("/metrics").text


def test_the_memory_for_all_bodies_is_bounded(classifier: Classifier):
    with client(classifier, Limits(total_bytes=100)) as web:
        response = web.post("/predict", content=png(), headers=OCTETS)
        assert response.status_code == 503
        assert int(response.headers["retry-after"]) >= 1
        assert web.post("/predict", content=b"x" * 99, headers=OCTETS).status_code == 422, "the memory is released"
