"""A folder of photos in a format that cannot be read is one problem, not a thousand lines."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tiny import write_images, write_tiny_model

from linnaeus.data.images import formats as module
from linnaeus.data.images.decode import UnreadableError, decode
from linnaeus.data.images.formats import AVIF, HEIC, formats
from linnaeus.inference.problems import folded

PHOTO = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    formats.cache_clear()
    yield
    formats.cache_clear()


@pytest.mark.usefixtures("without_heic")
def test_many_equal_errors_are_a_count_with_the_command_that_helps(tmp_path: Path, say):
    images = write_images(tmp_path / "i", each=1)
    for i in range(20):
        (images / f"IMG_{i}.heic").write_bytes(PHOTO)
    (images / "IMG_x.jpg").write_bytes(b"no image")
    said = say("predict", write_tiny_model(tmp_path / "m.safetensors"), images)
    lines = said.err.splitlines()
    assert len(lines) == 6, said.err
    assert lines[-2] == f"warning: 17 more images: {HEIC}"
    assert "magick mogrify -format jpg *.heic" in lines[-2]
    assert lines[-1] == "warning: 21 of 24 images could not be read"


def test_different_errors_are_all_reported():
    problems = [(f"{i}.jpg", f"reason {i % 2}") for i in range(7)] + [("x", "other")]
    assert folded(problems) == [
        *(f"{i}.jpg: reason {i % 2}" for i in range(6)),
        "x: other",
        "1 more image: reason 0",
    ]
    assert folded([]) == []


@pytest.mark.usefixtures("without_heic")
def test_images_without_a_decoder_are_tried_again(monkeypatch: pytest.MonkeyPatch):
    """A store keeps why an image cannot be read; a missing decoder is no property of the image."""
    with pytest.raises(UnreadableError, match="pip install pi-heif") as caught:
        decode(PHOTO)
    assert caught.value.passing
    monkeypatch.delitem(Image.OPEN, "AVIF", raising=False)
    formats.cache_clear()
    with pytest.raises(UnreadableError) as caught:
        decode(PHOTO.replace(b"ftypheic", b"ftypavif"))
    assert (caught.value.reason, caught.value.passing) == (AVIF, True)


def test_the_extra_registers_its_decoder(monkeypatch: pytest.MonkeyPatch):
    registered: list[str] = []
    fake = SimpleNamespace(register_heif_opener=lambda: registered.append("HEIF"))
    monkeypatch.setitem(sys.modules, "pi_heif", fake)
    formats.cache_clear()
    formats()
    formats.cache_clear()
    assert registered == ["HEIF"]
    assert "HEIF" in module.FORMATS
