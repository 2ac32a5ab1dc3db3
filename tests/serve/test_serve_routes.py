"""The routes of `linnaeus serve`: requests, responses and errors."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import OCTETS, Client, client, error, files, png
from tiny import write_tiny_model

from linnaeus.inference.classifier import Classifier, load
from linnaeus.inference.runners import OnnxRunner
from linnaeus.metrics.calibration import Calibration
from linnaeus.modelfile.agreement import Agreement
from linnaeus.serve.limits import Limits
from linnaeus.serve.model_info import describe_classifier
from linnaeus.serve.service import Service

NOT_AN_IMAGE = "not an image, or in an unsupported format"


def test_all_formats_of_a_request_give_the_predictions_of_the_classifier(web: Client, classifier: Classifier):
    images = [png(seed, seed % 3) for seed in range(3)]
    expected = [prediction.to_dict(2) for prediction in classifier.predict(images)]
    text = [base64.b64encode(image).decode() for image in images]

    multipart = web.post("/predict?top=2", files=files(*images)).json()["predictions"]
    plain = web.post("/predict?top=2", json={"images": text}).json()["predictions"]
    named = [{"name": "a", "data": f"data:image/png;base64,{data}"} for data in text]
    data = web.post("/predict?top=2", json={"images": named}).json()["predictions"]
    former = web.post("/predict?top=2", json={"pictures": text}).json()["predictions"]  # the former name of the key
    raw = [web.post("/predict?top=2", content=image, headers={"Content-Type": "image/png"}) for image in images]

    assert len({json.dumps(prediction["top"]) for prediction in expected}) == 3, "different, or a mix-up stays unseen"
    for predictions, path in ((multipart, "{}.png"), (plain, "image {}"), (former, "image {}"), (data, "a")):
        for i, (a, b) in enumerate(zip(predictions, expected, strict=True)):
            assert a["path"] == path.format(i if path == "{}.png" else i + 1)
            assert [top["class"] for top in a["top"]] == [top["class"] for top in b["top"]]
            assert [t["probability"] for t in a["top"]] == pytest.approx([t["probability"] for t in b["top"]], abs=1e-6)
            assert {**a, "path": "", "top": []} == {**b, "path": "", "top": []}
    single = [classifier.predict(image).to_dict(2)["top"] for image in images]
    assert [response.json()["predictions"][0]["top"] for response in raw] == single, "bit for bit"


def test_json_lines_are_those_of_predict(web: Client, classifier: Classifier):
    headers = {"Accept": "application/x-ndjson"}
    response = web.post("/predict", files=files(png(1), names=("image 1",)), headers=headers)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert json.loads(response.text) == classifier.predict(png(1)).to_dict()


def test_an_unreadable_image_does_not_affect_the_others(web: Client):
    response = web.post("/predict", files=files(png(), b"nothing", png(1)))
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert [prediction["error"] for prediction in predictions] == [None, NOT_AN_IMAGE, None]
    assert [len(prediction["top"]) for prediction in predictions] == [3, 0, 3]


def test_the_status_is_422_if_no_image_can_be_read(web: Client):
    for body in (b"nothing", png()[:60]):
        response = web.post("/predict", content=body, headers=OCTETS)
        assert response.status_code == 422
        assert response.json()["predictions"][0]["error"]


def test_hostile_images_are_unreadable_and_nothing_worse(web: Client, shared_data: Path):
    """Decompression bombs, truncated files and others that once broke a decoder."""
    folder = shared_data / "dirty"
    paths = [p for p in sorted(folder.rglob("*")) if p.is_file() and 0 < p.stat().st_size < 49_000][::4]
    assert len(paths) > 50
    statuses = [web.post("/predict", content=p.read_bytes(), headers=OCTETS).status_code for p in paths]
    assert set(statuses) == {200, 422}
    assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200


def test_names_are_displayed_and_never_opened(web: Client, tmp_path: Path):
    secret = tmp_path / "secret.png"
    Image.new("L", (28, 28), 255).save(secret)
    for name in (str(secret), "../../etc/passwd", "日本語.png", "a\u0000b.png"):
        response = web.post("/predict?explain=1", json={"images": [{"name": name, "data": ""}]})
        assert response.status_code == 422
        assert response.json()["predictions"][0]["error"] == "empty"
        assert response.json()["predictions"][0]["path"] == name
    long = web.post("/predict", json={"images": [{"name": "x" * 5000, "data": base64.b64encode(png()).decode()}]})
    assert len(long.json()["predictions"][0]["path"]) == 255
    surrogate = web.post(
        "/predict",
        content=rb'{"images": [{"name": "\ud800", "data": ""}]}',
        headers={"Content-Type": "application/json"},
    )
    assert surrogate.json()["predictions"][0]["path"] == "\\ud800"


def test_explain_adds_a_heat_map(web: Client):
    response = web.post("/predict?explain=1&top=1", files=files(png(), b"broken", png(2, 2)))
    first, broken, last = response.json()["predictions"]
    assert "heat_map" not in broken
    for prediction in (first, last):
        assert prediction["explained"] == prediction["top"][0]
        assert prediction["empty"] is False
        header, _, data = prediction["heat_map"].partition(",")
        assert header == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "RGB")
    assert first["heat_map"] != last["heat_map"]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("top=0", "top: "),
        ("top=-1", "top: "),
        ("top=x", "top: "),
        ("top=99999", "top: "),
        ("explain=maybe", "explain: "),
    ],
)
def test_invalid_query_parameters_are_named(web: Client, query: str, message: str):
    response = web.post(f"/predict?{query}", content=png(), headers=OCTETS)
    assert response.status_code == 422
    assert error(response).startswith(message)


def test_pixels_are_counted_by_the_header(web: Client):
    blank = io.BytesIO()
    Image.new("L", (1001, 1000)).save(blank, "PNG")
    response = web.post("/predict", content=blank.getvalue(), headers=OCTETS)
    assert response.status_code == 422
    assert "1001 x 1000 pixels; this server accepts up to 1,000,000" in response.json()["predictions"][0]["error"]


def test_the_model_is_described_without_paths(classifier: Classifier, tmp_path: Path):
    with client(classifier, report="<p>report") as web:
        info = web.get("/model").json()
    assert info["name"] == "tiny"
    assert info["classes"][1] == {"class": "1", "name": "name of 1"}
    assert info["preprocessing"]["size"] == 28
    assert (info["explains"], info["neighbors"], info["report"]) == (True, None, True)
    assert (info["kind"], info["agreement"]) == ("torch", None)
    assert str(classifier.path.parent) not in json.dumps(info)


def test_the_file_that_answers_and_its_agreement_are_named(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    exported = OnnxRunner(None, classifier.preprocessing, "onnx-int8", Agreement(0.93, 200))
    monkeypatch.setattr(classifier, "path", classifier.path.with_name("model-int8.onnx"))
    with client(classifier) as web:
        monkeypatch.setattr(classifier, "run", exported)
        info = web.get("/model").json()
    assert (info["file"], info["kind"]) == ("model-int8.onnx", "onnx-int8")
    assert info["agreement"] == {"share": 0.93, "n": 200}


def test_health_readiness_and_metrics(classifier: Classifier):
    with client(classifier, Limits(queue=4, images=4)) as web:
        assert web.get("/health").json() == {"status": "ok"}
        assert web.get("/ready").status_code == 200
        web.post("/predict", files=files(png(), b"broken"))
        web.get("/an/unknown/path")
        text = web.get("/metrics").text
        assert 'linnaeus_requests_total{route="/predict",status="200"} 1.0' in text
        assert 'linnaeus_requests_total{route="other",status="404"} 1.0' in text, "unknown paths are not labels"
        assert 'linnaeus_images_total{result="unreadable"} 1.0' in text
        assert 'linnaeus_images_total{result="answered"} 1.0' in text
        assert "linnaeus_batch_size_count 1.0" in text
        with web.service.batcher.admission.admit(4):
            assert web.get("/ready").status_code == 503
            full = web.post("/predict", content=png(), headers=OCTETS)
            assert full.status_code == 503
            assert 1 <= int(full.headers["retry-after"]) <= 60
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200


def test_a_prediction_below_the_threshold_is_unsure(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Classifier, "threshold", 0.9999)
    assert isinstance(classifier.calibration, Calibration | None)
    with client(classifier) as web:
        assert web.post("/predict", content=png(), headers=OCTETS).json()["predictions"][0]["unsure"] is True


def test_an_export_predicts_and_its_original_explains(classifier: Classifier, tmp_path: Path):
    """As in a run whose int8 file is fastest: predictions come from the export, heat maps from the network."""
    export = load(classifier.path)
    export.run = NoNetwork(export.run)  # type: ignore[assignment]
    with client(Service(export, original=classifier)) as web, client(classifier) as reference:
        actual, expected = (c.post("/predict?explain=1", files=files(png())).json() for c in (web, reference))
    assert actual == expected
    with client(export) as web:
        assert web.get("/model").json()["explains"] is False
        assert "heat_map" not in web.post("/predict?explain=1", files=files(png())).json()["predictions"][0]


class NoNetwork:
    """The runner of an export: it predicts, but has no network to look into."""

    def __init__(self, run: Any):
        self._run, self.device, self.has_distance = run, run.device, run.has_distance

    def __call__(self, images: Any) -> Any:
        return self._run(images)

    def scores(self, images: Any) -> Any:
        return self._run.scores(images)


def test_an_accuracy_that_the_most_frequent_class_has_too_is_marked(tmp_path: Path):
    model = load(write_tiny_model(tmp_path / "m.safetensors"), device="cpu")
    known = {"n": 100, "correct": 92, "accuracy": 0.92, "accuracy_ci95": [0.85, 0.96]}
    model.about.metrics = {"valid": known | {"most_frequent": 90}, "test": known | {"most_frequent": 50}}
    assert describe_classifier(model, "m")["no_better"] == ["valid"]
