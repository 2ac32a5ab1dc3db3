"""The routes of `linnaeus serve`: what they take, what they answer, what they refuse."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from served import OCTETS, Client, client, error, files, png, until, write_model_with_opinions
from tiny import write_images

from linnaeus.cli import serve as cli_serve
from linnaeus.console import Console
from linnaeus.inference.classifier import Classifier, load
from linnaeus.metrics.calibration import Calibration
from linnaeus.serve.gallery import CancellableConsole, GalleryCancelledError, load_gallery
from linnaeus.serve.limits import Limits
from linnaeus.serve.service import Service


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    return load(write_model_with_opinions(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def web(classifier: Classifier) -> Iterator[Client]:
    with client(classifier, Limits(request_bytes=50_000, images=4, pixels=1_000_000)) as found:
        yield found


def test_every_way_of_sending_gives_what_predict_gives(web: Client, classifier: Classifier):
    images = [png(seed, seed % 3) for seed in range(3)]
    expected = [each.to_dict(2) for each in classifier.predict(images)]
    text = [base64.b64encode(each).decode() for each in images]

    multipart = web.post("/predict?top=2", files=files(*images)).json()["predictions"]
    plain = web.post("/predict?top=2", json={"pictures": text}).json()["predictions"]
    named = [{"name": "a", "data": f"data:image/png;base64,{each}"} for each in text]
    data = web.post("/predict?top=2", json={"pictures": named}).json()["predictions"]
    raw = [web.post("/predict?top=2", content=each, headers={"Content-Type": "image/png"}) for each in images]

    assert len({json.dumps(each["top"]) for each in expected}) == 3, "a server that mixes images up would be seen"
    for found, path in ((multipart, "{}.png"), (plain, "image {}"), (data, "a")):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            assert a["path"] == path.format(i if path == "{}.png" else i + 1)
            assert [each["class"] for each in a["top"]] == [each["class"] for each in b["top"]]
            assert [e["probability"] for e in a["top"]] == pytest.approx([e["probability"] for e in b["top"]], abs=1e-6)
            assert {**a, "path": "", "top": []} == {**b, "path": "", "top": []}
    alone = [classifier.predict(each).to_dict(2)["top"] for each in images]
    assert [each.json()["predictions"][0]["top"] for each in raw] == alone, "to the last bit"


def test_json_lines_are_those_of_predict(web: Client, classifier: Classifier):
    answer = web.post("/predict", files=files(png(1), names=("image 1",)), headers={"Accept": "application/x-ndjson"})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert json.loads(answer.text) == classifier.predict(png(1)).to_dict()


def test_one_broken_image_does_not_stop_the_rest(web: Client):
    answer = web.post("/predict", files=files(png(), b"nothing", png(1)))
    assert answer.status_code == 200
    found = answer.json()["predictions"]
    assert [each["error"] for each in found] == [None, "not an image, or in an unsupported format", None]
    assert [len(each["top"]) for each in found] == [3, 0, 3]


def test_where_no_image_can_be_read_the_status_says_so(web: Client):
    for body in (b"nothing", png()[:60]):
        answer = web.post("/predict", content=body, headers=OCTETS)
        assert answer.status_code == 422
        assert answer.json()["predictions"][0]["error"]


def test_hostile_images_are_only_unreadable(web: Client, shared_data: Path):
    """Bombs, truncated files and whatever else broke a decoder once: an answer for each, and the server lives on."""
    folder = shared_data / "dirty"
    some = [p for p in sorted(folder.rglob("*")) if p.is_file() and 0 < p.stat().st_size < 49_000][::4]
    assert len(some) > 50
    statuses = [web.post("/predict", content=p.read_bytes(), headers=OCTETS).status_code for p in some]
    assert set(statuses) == {200, 422}
    assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200


def test_names_are_shown_and_never_opened(web: Client, tmp_path: Path):
    secret = tmp_path / "secret.png"
    Image.new("L", (28, 28), 255).save(secret)
    for name in (str(secret), "../../etc/passwd", "日本語.png", "a\u0000b.png"):
        answer = web.post("/predict?explain=1", json={"pictures": [{"name": name, "data": ""}]})
        assert answer.status_code == 422
        assert answer.json()["predictions"][0]["error"] == "empty"
        assert answer.json()["predictions"][0]["path"] == name
    long = web.post("/predict", json={"pictures": [{"name": "x" * 5000, "data": base64.b64encode(png()).decode()}]})
    assert len(long.json()["predictions"][0]["path"]) == 255
    lone = web.post(
        "/predict",
        content=rb'{"pictures": [{"name": "\ud800", "data": ""}]}',
        headers={"Content-Type": "application/json"},
    )
    assert lone.json()["predictions"][0]["path"] == "\\ud800"


def test_explain_adds_a_heat_map(web: Client):
    found = web.post("/predict?explain=1&top=1", files=files(png(), b"broken", png(2, 2))).json()["predictions"]
    assert "heat_map" not in found[1]
    for each in (found[0], found[2]):
        assert each["explained"] == each["top"][0]
        kind, _, data = each["heat_map"].partition(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert (image.format, image.size, image.mode) == ("PNG", (28, 28), "RGB")
    assert found[0]["heat_map"] != found[2]["heat_map"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("top=0", "top: "),
        ("top=-1", "top: "),
        ("top=x", "top: "),
        ("top=99999", "top: "),
        ("explain=maybe", "explain: "),
    ],
)
def test_bad_questions_are_named(web: Client, query: str, said: str):
    answer = web.post(f"/predict?{query}", content=png(), headers=OCTETS)
    assert answer.status_code == 422
    assert error(answer).startswith(said)


MULTIPART = {"Content-Type": "multipart/form-data; boundary=x"}
PART = b'--x\r\nContent-Disposition: form-data; name="p"; filename="a.png"\r\n\r\nabc\r\n--x--\r\n'


@pytest.mark.parametrize(
    ("content", "headers", "status", "said"),
    [
        (b"abc", {}, 415, "Content-Type says nothing"),
        (b"abc", {"Content-Type": "text/html"}, 415, "Content-Type says text/html"),
        (b"abc", {**OCTETS, "Content-Encoding": "gzip"}, 415, "Content-Encoding"),
        (b"", OCTETS, 422, "no image"),
        (b"x" * 50_001, OCTETS, 413, "over 50,000 bytes"),
        (b"{", {"Content-Type": "application/json"}, 422, "not JSON"),
        (b"[" * 20_000, {"Content-Type": "application/json"}, 422, "not JSON"),
        (b"[]", {"Content-Type": "application/json"}, 422, "pictures"),
        (b'{"pictures": []}', {"Content-Type": "application/json"}, 422, "no image"),
        (b'{"pictures": [1]}', {"Content-Type": "application/json"}, 422, "image 1"),
        (b'{"pictures": ["", "?"]}', {"Content-Type": "application/json"}, 422, "image 2 is not base64"),
        (b'{"pictures": ["", "", "", "", ""]}', {"Content-Type": "application/json"}, 413, "more than 4 images"),
        (PART, {"Content-Type": "multipart/form-data"}, 422, "boundary"),
        (PART, {"Content-Type": "multipart/form-data; boundary=y"}, 422, "not multipart"),
        (PART[:-8], MULTIPART, 422, "no end"),
        (PART.replace(b"; filename=\"a.png\"", b""), MULTIPART, 422, "the field 'p' is no file"),
        (PART.replace(b"a.png", b""), MULTIPART, 422, "no image"),
        (PART.replace(b"a.png", b"a" * 9000), MULTIPART, 422, "not multipart"),
        (PART.replace(b"--x\r\n", b"--x\r\n" + b"X: 1\r\n" * 40), MULTIPART, 422, "not multipart"),
        (PART.removesuffix(b"--x--\r\n") * 5 + b"--x--\r\n", MULTIPART, 413, "more than 4 images"),
    ],
)  # fmt: skip
def test_what_is_no_request_is_refused_in_one_line(
    web: Client, content: bytes, headers: dict[str, str], status: int, said: str
):
    answer = web.post("/predict", content=content, headers=headers)
    assert answer.status_code == status
    assert said in error(answer)
    assert web.service.batcher.in_hand == 0


def test_pixels_are_counted_by_the_header(web: Client):
    blank = io.BytesIO()
    Image.new("L", (1001, 1000)).save(blank, "PNG")
    answer = web.post("/predict", content=blank.getvalue(), headers=OCTETS)
    assert answer.status_code == 422
    assert "1001 x 1000 pixels, and this server takes 1,000,000" in answer.json()["predictions"][0]["error"]


def test_a_body_without_a_length_is_counted_as_it_comes(web: Client):
    def chunks() -> Iterator[bytes]:
        for _ in range(60):
            yield b"x" * 1000

    answer = web.post("/predict", content=chunks(), headers=OCTETS)
    assert answer.status_code == 413
    assert "linnaeus_held_bytes 0.0" in web.get("/metrics").text


def test_all_bodies_together_are_bounded(classifier: Classifier):
    with client(classifier, Limits(held_bytes=100)) as web:
        answer = web.post("/predict", content=png(), headers=OCTETS)
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert web.post("/predict", content=b"x" * 99, headers=OCTETS).status_code == 422, "nothing is held any more"


def test_the_model_says_what_it_is_and_not_where(classifier: Classifier, tmp_path: Path):
    with client(classifier, report="<p>report") as web:
        card = web.get("/model").json()
    assert card["name"] == "tiny"
    assert card["classes"][1] == {"class": "1", "name": "name of 1"}
    assert card["preprocessing"]["size"] == 28
    assert (card["explains"], card["neighbors"], card["report"]) == (True, None, True)
    assert str(classifier.path.parent) not in json.dumps(card)


def test_health_ready_and_metrics(classifier: Classifier):
    with client(classifier, Limits(queue=4, images=4)) as web:
        assert web.get("/health").json() == {"status": "ok"}
        assert web.get("/ready").status_code == 200
        web.post("/predict", files=files(png(), b"broken"))
        web.get("/nowhere/at/all")
        text = web.get("/metrics").text
        assert 'linnaeus_requests_total{route="/predict",status="200"} 1.0' in text
        assert 'linnaeus_requests_total{route="other",status="404"} 1.0' in text, "addresses are no labels"
        assert 'linnaeus_pictures_total{result="unreadable"} 1.0' in text
        assert 'linnaeus_pictures_total{result="answered"} 1.0' in text
        assert "linnaeus_batch_size_count 1.0" in text
        with web.service.batcher.room(4):
            assert web.get("/ready").status_code == 503
            full = web.post("/predict", content=png(), headers=OCTETS)
            assert full.status_code == 503
            assert 1 <= int(full.headers["retry-after"]) <= 60
        assert web.post("/predict", content=png(), headers=OCTETS).status_code == 200


def test_an_unsure_answer_says_so(classifier: Classifier, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Classifier, "threshold", 0.9999)
    assert isinstance(classifier.calibration, Calibration | None)
    with client(classifier) as web:
        assert web.post("/predict", content=png(), headers=OCTETS).json()["predictions"][0]["unsure"] is True


def test_what_looks_alike_comes_with_the_explanation(tmp_path: Path):
    model = write_model_with_opinions(tmp_path)
    source = write_images(tmp_path / "source", each=4)
    service = Service(load(model))
    with load_gallery(service, str(source), Console(quiet=True)):
        until(lambda: service.gallery is not None)
    with client(service) as web:
        assert web.get("/model").json()["neighbors"] == 12
        picture = (source / "1" / "1 2.png").read_bytes()
        inside = str(source / "1" / "1 2.png")  # which a careless server would open, and then leave out as the same
        body = {"pictures": [{"name": inside, "data": base64.b64encode(picture).decode()}]}
        like = web.post("/predict?explain=1", json=body).json()["predictions"][0]["like"]
        assert "like" not in web.post("/predict", json=body).json()["predictions"][0]
    assert len(like) == 5
    assert (like[0]["path"], like[0]["class"], like[0]["name"]) == ("1/1 2.png", "1", "name of 1")
    assert like[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert like[0]["picture"].startswith("data:image/jpeg;base64,")


def test_a_source_that_is_gone_is_a_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    service = Service(load(write_model_with_opinions(tmp_path)))
    with load_gallery(service, str(tmp_path / "gone"), Console(quiet=True)):
        pass
    assert service.gallery is None
    assert "no training images to compare with" in capfd.readouterr().err


def test_comparing_ends_with_the_server(tmp_path: Path):
    """Whatever is left of minutes of work beside the server: it stops at the next step."""
    aside = CancellableConsole(Console(quiet=True))
    with aside.progress("decoding") as advance:
        advance(1, 100)
        aside.over.set()
        with pytest.raises(GalleryCancelledError):
            advance(2, 100)


def test_an_export_answers_and_its_original_explains(classifier: Classifier, tmp_path: Path):
    """As with a run whose int8 file is fastest: the answers are the export's, the maps those of the network."""
    export = load(classifier.path)
    export.run = NoNetwork(export.run)  # type: ignore[assignment]
    with client(Service(export, original=classifier)) as web, client(classifier) as usual:
        shown, expected = (each.post("/predict?explain=1", files=files(png())).json() for each in (web, usual))
    assert shown == expected
    with client(export) as web:
        assert web.get("/model").json()["explains"] is False
        assert "heat_map" not in web.post("/predict?explain=1", files=files(png())).json()["predictions"][0]


class NoNetwork:
    """What runs a model, and no network to look into."""

    def __init__(self, run: Any):
        self._run, self.device = run, run.device

    def __call__(self, images: Any) -> Any:
        return self._run(images)


@pytest.mark.parametrize(
    ("model", "name"), [("runs/flowers", "flowers"), ("runs/flowers/model.safetensors", "flowers"), ("a/b.onnx", "b")]
)
def test_a_model_is_called_by_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str):
    (tmp_path / "runs" / "flowers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert cli_serve._model_name(Path(model)) == name


def test_the_source_is_the_one_that_the_run_notes(tmp_path: Path):
    assert cli_serve._training_source(tmp_path, None) is None
    (tmp_path / "metrics.json").write_text(json.dumps({"source": {"path": str(tmp_path)}}))
    assert cli_serve._training_source(tmp_path, None) == str(tmp_path)
    assert cli_serve._training_source(tmp_path, "none") is None
    assert cli_serve._training_source(tmp_path, "elsewhere") == "elsewhere"
    (tmp_path / "metrics.json").write_text(json.dumps({"source": {"path": str(tmp_path / "gone")}}))
    assert cli_serve._training_source(tmp_path, None) is None
