"""Similar training images in the answers of `linnaeus serve`: loaded in the background, and cancelled at shutdown."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from served import client, wait_until, write_random_model
from tiny import write_images

from linnaeus.console import Console
from linnaeus.inference.classifier import load
from linnaeus.serve.gallery import CancellableConsole, CancelledError, load_gallery
from linnaeus.serve.service import Service


def test_explanations_contain_similar_images(tmp_path: Path):
    model = write_random_model(tmp_path)
    source = write_images(tmp_path / "source", each=4)
    service = Service(load(model))
    with load_gallery(service, str(source), Console(quiet=True)):
        wait_until(lambda: service.explainer.gallery is not None)
    with client(service) as web:
        assert web.get("/model").json()["neighbors"] == 12
        path = source / "1" / "1 2.png"
        # The client's name is the path of a training image: it must not exclude that image from the similar ones.
        body = {"images": [{"name": str(path), "data": base64.b64encode(path.read_bytes()).decode()}]}
        like = web.post("/predict?explain=1", json=body).json()["predictions"][0]["like"]
        assert "like" not in web.post("/predict", json=body).json()["predictions"][0]
    assert len(like) == 5
    assert (like[0]["path"], like[0]["class"], like[0]["name"]) == ("1/1 2.png", "1", "name of 1")
    assert like[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert like[0]["thumbnail"].startswith("data:image/jpeg;base64,")


def test_a_missing_source_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    service = Service(load(write_random_model(tmp_path)))
    with load_gallery(service, str(tmp_path / "missing"), Console(quiet=True)):
        pass
    assert service.explainer.gallery is None
    assert "no training images to compare with" in capfd.readouterr().err


def test_cancelling_stops_the_work_at_its_next_report_of_progress():
    console = CancellableConsole(Console(quiet=True))
    with console.progress("decoding") as advance:
        advance(1, 100)
        console.cancel()
        with pytest.raises(CancelledError):
            advance(2, 100)
