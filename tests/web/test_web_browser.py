"""The exported page in a real browser, with the real ONNX Runtime: it answers as `predict`, also without a network."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hosting import Host, hosted
from PIL import Image
from reference import torchvision
from watching import Watcher

from linnaeus.console import Console
from linnaeus.environment import cache_dir
from linnaeus.inference.classifier import Classifier, load
from linnaeus.metrics.ood import Thresholds
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.models.weights.files import read_weights
from linnaeus.models.weights.loading import load_weights
from linnaeus.preprocess import Preprocessing
from linnaeus.serve.pages import translations
from linnaeus.web import runtime
from linnaeus.web.export import export_web

pytestmark = pytest.mark.long
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

EN, ZH = translations()["en"], translations()["zh"]
CACHE = cache_dir()  # of this user, before the tests get one of their own
PHONE = {"width": 390, "height": 844}
DONE = ".answer.answered, .answer.unsure, .answer.failed"
IMAGES = 100
UNSURE, UNKNOWN = 0.7, 0.3  # below these probabilities
CALIBRATION = {
    "temperature": 1.2,
    "split": "valid",
    "abstention": {
        "target_risk": 0.02,
        "confidence": 0.95,
        "n": 200,
        "smallest_n": 149,
        "estimated": {"threshold": UNSURE, "answered": 180, "wrong": 3},
        "tested": None,
        "threshold": UNSURE,
    },
    "curve": [[UNSURE, 180, 3], [0.0, 200, 12]],
}
PROBABILITY = 1e-2
"""Largest allowed difference: JPEG decoders and resizing differ by a few of 255 levels."""


@pytest.fixture(scope="module")
def real_runtime() -> Path:
    """onnxruntime-web in the cache of this user; tests that need it are skipped, by name, without it."""
    path = CACHE / "web" / runtime.ARCHIVE
    if not path.is_file():
        pytest.skip(f"needs onnxruntime-web: fetch {runtime.archive_url()} to {path}")
    return path


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> list[Path]:
    """Photographs of flowers and of dishes."""
    flowers = sorted((shared_data / "flowers16" / "valid").rglob("*.jpg"))[:: 171 // (IMAGES // 2)]
    dishes = sorted((shared_data / "food10" / "images").rglob("*.jpg"))[:: 520 // (IMAGES // 2)]
    return [*flowers[: IMAGES // 2], *dishes[: IMAGES // 2]]


@pytest.fixture(scope="module")
def model(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Classifier:
    """EfficientNet-Lite0 with the 1,000 classes of ImageNet, and thresholds among its probabilities."""
    torchvision()  # which timm imports
    pytest.importorskip("timm")
    file = shared_data / "weights" / "tf_efficientnet_lite0-imagenet.safetensors"
    network = load_weights("timm/tf_efficientnet_lite0", str(file), classes=1000).model.eval()
    head = read_weights(file)[0]
    with torch.no_grad():
        network.fc.weight.copy_(head["classifier.weight"])
        network.fc.bias.copy_(head["classifier.bias"])
    p = Preprocessing(256, 224, interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    classes = tuple(f"{i:03}" for i in range(1000))
    shown = tuple(f"name of {name}" for name in classes)
    detector = UnknownDetector(Thresholds(distance=None, probability=UNKNOWN, n=99, accepted=95))
    about = ModelFile(network.arch, classes, shown, p, calibration=CALIBRATION, unknown=detector.to_dict())
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    write_model(path, network.state_dict(), about)
    return load(path, device="cpu")


@pytest.fixture(scope="module")
def folder(model: Classifier, photos: list[Path], real_runtime: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported page, compared with the model on two of the photographs."""
    data = tmp_path_factory.mktemp("data")
    for i, photo in enumerate(photos[:: IMAGES // 2]):
        below = data / "valid" / model.classes[i]
        below.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, below)
    out = tmp_path_factory.mktemp("site") / "flowers"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "archive_path", lambda: real_runtime)
        written, result = export_web(
            model, out, "a thousand classes", examples=str(data), data=str(data), console=Console(quiet=True)
        )
    assert written is not None, result and result.attempts[0].refused
    return written.path


class Visit:
    """A visitor's browser at the page, which lies in a folder of its host."""

    def __init__(self, browser: Any, host: Host, **options: Any):
        self.watcher, self.address = Watcher(browser), f"{host.address}/flowers/"
        self.page = self.watcher.open(self.address, **options)
        self.context = self.page.context
        self.page.locator("#model").wait_for()

    def open(self) -> None:
        self.page.goto(self.address)
        self.page.locator("#model").wait_for()

    def add(self, *files: Path | tuple[str, bytes]) -> None:
        """Choose images and wait until all are answered or have failed."""
        before = self.page.locator(".answer").count()
        pairs = [(f.name, f.read_bytes()) if isinstance(f, Path) else f for f in files]
        chosen = [{"name": name, "mimeType": "image/png", "buffer": content} for name, content in pairs]
        self.page.set_input_files("#files", chosen)
        self.page.locator(DONE).nth(before + len(files) - 1).wait_for(timeout=60_000)

    def rows(self) -> dict[str, dict[str, str]]:
        """The downloaded table by the name of the image."""
        with self.page.expect_download() as download:
            self.page.locator("#csv").click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        return {row["path"]: row for row in csv.DictReader(io.StringIO(text))}

    def keep(self) -> None:
        """Wait until the page works without a network."""
        self.page.evaluate("navigator.serviceWorker.ready.then(() => true)")


@pytest.fixture
def visit(browser: Any, folder: Path) -> Iterator[Callable[..., Visit]]:
    """visit(**options of a browser context). At the end nothing may have gone elsewhere, and no message be left."""
    with hosted(folder.parent) as host:
        visits: list[Visit] = []

        def start(**options: Any) -> Visit:
            visits.append(Visit(browser, host, **options))
            return visits[-1]

        yield start
        for one in visits:
            one.watcher.close()
            assert one.watcher.messages == []
            assert one.watcher.urls_outside(one.address, "blob:", "data:") == []


def compare(row: dict[str, str], model: Classifier, source: Path | bytes) -> float:
    """The largest difference of a probability; the verdicts must be the same unless a threshold lies in between."""
    expected = model.predict(source)
    assert expected.probabilities is not None
    assert row["class_1"] == expected.classes[expected.index], expected
    for column, threshold, verdict in (("unsure", UNSURE, expected.unsure), ("unknown", UNKNOWN, expected.unknown)):
        assert row[column] == str(int(verdict)) or abs(expected.probability - threshold) < PROBABILITY, expected
    shown = [(int(row[f"class_{k}"]), float(row[f"probability_{k}"])) for k in range(1, 6)]
    return max(abs(expected.probabilities[i] - p) for i, p in shown)


def test_a_hundred_photographs_get_the_answers_of_predict(
    visit: Callable[..., Visit], model: Classifier, photos: list[Path]
):
    here = visit()
    here.add(*photos)
    rows = here.rows()
    assert len(rows) == IMAGES
    assert max(compare(rows[photo.name], model, photo) for photo in photos) <= PROBABILITY
    verdicts = {(row["unsure"], row["unknown"]) for row in rows.values()}
    assert verdicts == {("0", "0"), ("1", "0"), ("1", "1")}, "all three are among them"


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_images_of_all_kinds_are_decoded_as_predict_does(
    visit: Callable[..., Visit], model: Classifier, photos: list[Path]
):
    photo = Image.open(photos[0]).convert("RGB")
    turned = Image.Exif()
    turned[0x0112] = 6  # turn by 90 degrees
    alpha = Image.linear_gradient("L").resize(photo.size)
    cut = photo.copy()
    cut.putalpha(alpha)
    deep = Image.fromarray((np.asarray(photo.convert("L")).astype(np.uint16) << 8) + 77)
    files = {
        "turned.jpg": encode(photo, "JPEG", quality=90, exif=turned),
        "alpha.png": encode(cut, "PNG"),
        "palette.png": encode(photo.quantize(64), "PNG"),
        "gray.jpg": encode(photo.convert("L"), "JPEG"),
        "deep.png": encode(deep, "PNG"),
        "still.webp": encode(photo, "WEBP", quality=90),
        "bitmap.bmp": encode(photo.resize((90, 70)), "BMP"),
        "wide.png": encode(photo.resize((900, 60)), "PNG"),
        "dot.png": encode(photo.resize((1, 1)), "PNG"),
    }
    here = visit()
    here.add(*files.items())
    rows = here.rows()
    differences = {name: compare(rows[name], model, content) for name, content in files.items()}
    assert max(differences.values()) <= PROBABILITY, differences


def test_a_file_that_is_no_image_fails_and_the_others_are_answered(visit: Callable[..., Visit], photos: list[Path]):
    here = visit()
    here.add(("text.png", b"no image"), photos[0], ("cut.jpg", photos[1].read_bytes()[:3000]))
    rows = here.rows()
    assert rows["text.png"]["error"] == EN["not_decoded"]
    assert rows["cut.jpg"]["error"] == EN["not_decoded"]
    assert rows[photos[0].name]["error"] == ""
    here.page.locator("#language").click()
    assert here.page.locator(".answer.failed .error").first.inner_text() == ZH["not_decoded"]


def test_an_example_is_classified_with_a_click_also_without_a_network(
    browser: Any, folder: Path, model: Classifier, photos: list[Path]
):
    with hosted(folder.parent) as host:
        here = Visit(browser, host)
        here.page.locator("#example-list button").nth(1).wait_for()
        here.keep()
    here.page.reload()
    here.page.get_by_role("button", name=photos[0].name).click()
    here.page.locator(DONE).wait_for(timeout=60_000)
    examples = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    (picture,) = [example["image"] for example in examples if example["name"] == photos[0].name]
    content = base64.b64decode(picture.partition(",")[2])
    assert compare(here.rows()[photos[0].name], model, content) <= PROBABILITY
    here.context.close()
    assert here.watcher.messages == []


def test_the_page_works_without_a_network_once_it_was_loaded(
    browser: Any, folder: Path, model: Classifier, photos: list[Path]
):
    with hosted(folder.parent) as host:
        here = Visit(browser, host)
        here.add(photos[0])
        here.keep()
    here.page.reload()
    here.page.locator("#model").wait_for()
    here.add(photos[1])
    assert compare(here.rows()[photos[1].name], model, photos[1]) <= PROBABILITY
    assert here.page.evaluate("crossOriginIsolated"), "several threads may run the network"
    here.context.close()
    assert here.watcher.messages == []


def test_a_phone_scrolls_vertically_only_and_speaks_the_language_of_its_browser(
    visit: Callable[..., Visit], photos: list[Path]
):
    here = visit(viewport=PHONE, is_mobile=True, has_touch=True, locale="zh-CN", color_scheme="dark")
    here.add(photos[0])
    assert here.page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert here.page.locator("#drop-h").inner_text() == ZH["drop_touch"]
    assert ZH["drop_more_here"] in here.page.locator("#drop").inner_text()
    assert not here.page.locator("#start").count()
