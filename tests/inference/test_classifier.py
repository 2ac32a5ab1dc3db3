"""Predicting: which images, in which order, with what answers; and what happens to the unreadable."""

from __future__ import annotations

import copy
import csv
import io
import json
import pickle
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import draw, mini, write_images, write_tiny_model

import linnaeus
from linnaeus.errors import UserError
from linnaeus.inference.classifier import BATCH, Classifier, Prediction, load
from linnaeus.inference.inputs import expand
from linnaeus.inference.writers import open_writer
from linnaeus.modelfile.safetensors import read_model, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    network = mini()
    torch.nn.init.normal_(network.get_parameter("fc.weight"))  # so that answers differ from image to image
    return write_tiny_model(tmp_path_factory.mktemp("model") / "model.safetensors", network)


@pytest.fixture(scope="module")
def classifier(model: Path) -> Classifier:
    return load(model, device="cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("pictures"), each=BATCH)


def all_of(folder: Path) -> list[str]:
    return list(expand([str(folder)]))


def test_a_pickle_or_a_copy_answers_alike_without_the_file(model: Path, images: Path, tmp_path: Path):
    """As joblib and other processes need it; that of a GPU is loaded where there is none."""
    classifier = load(shutil.copy(model, tmp_path / "model.safetensors"), device="cpu")
    (tmp_path / "model.safetensors").unlink()
    paths = all_of(images)

    def answers(model: Classifier) -> np.ndarray:
        return np.array([[probability for _, probability in p.top(3)] for p in model.predict(paths)])

    expected = answers(classifier)
    pickled = pickle.dumps(classifier)
    classifier.run.device = torch.device("cuda")
    on_gpu = pickle.dumps(classifier)
    classifier.run.device = torch.device("cpu")
    restored = [pickle.loads(pickled), copy.deepcopy(classifier)]
    if not torch.cuda.is_available():
        restored.append(pickle.loads(on_gpu))
    for other in restored:
        assert other.network is not classifier.network
        assert (answers(other) == expected).all()
        assert other.evaluate(images).to_dict() == classifier.evaluate(images).to_dict()


def test_answers_are_those_of_the_network(classifier: Classifier, images: Path):
    """Predictions equal those computed one by one from pixels read here: batches, threads and order change nothing."""
    paths = all_of(images)
    assert len(paths) == 3 * BATCH
    found = list(classifier.stream(paths))
    assert [p.path for p in found] == paths
    for prediction in found[:: BATCH // 2]:
        pixels = np.asarray(Image.open(prediction.path))
        with torch.no_grad():
            x = torch.from_numpy(pixels / 255).float()[None, None]
            expected = classifier.network(x).softmax(1)[0].numpy()
        assert prediction.probabilities == pytest.approx(expected, abs=1e-6)
        assert prediction.index == expected.argmax()
        assert prediction.image is not None
        assert np.array_equal(prediction.image[..., 0], pixels)
    assert len({p.probabilities.tobytes() for p in found if p.probabilities is not None}) > BATCH


def test_the_kinds_of_image(classifier: Classifier, images: Path):
    path = all_of(images)[0]
    one = classifier.predict(path)
    pixels = np.asarray(Image.open(path))
    for same in (Path(path), Path(path).read_bytes(), pixels, np.stack([pixels] * 3, axis=-1)):
        assert classifier.predict(same).probabilities == pytest.approx(one.probabilities, abs=1e-5)
    several = classifier.predict([path, path])
    assert [p.index for p in several] == [one.index] * 2


def test_top_are_the_likeliest_in_order(classifier: Classifier, images: Path):
    one = classifier.predict(all_of(images)[0])
    top = one.top(2)
    assert [name for name, _ in top] == [classifier.names[i] for i, _ in one.ranked(2)]
    assert top[0] == (one.name, one.probability)
    assert top[0][1] >= top[1][1]
    assert sum(p for _, p in one.top(99)) == pytest.approx(1)
    assert len(one.top(99)) == 3


def test_an_unreadable_image_does_not_stop_the_others(classifier: Classifier, images: Path, tmp_path: Path):
    paths = all_of(images)[: BATCH + 5]
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(paths[0]).read_bytes()[:200])
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    bad = {3: str(cut), BATCH: str(text), BATCH + 2: str(tmp_path / "gone.png"), BATCH + 3: str(tmp_path)}
    for at, path in bad.items():
        paths.insert(at, path)
    found = list(classifier.stream(paths))  # `predict` takes a folder for the images in it
    assert [p.path for p in found] == paths
    assert {i: p.path for i, p in enumerate(found) if p.error is not None} == bad
    for at, reason in ((3, "truncated"), (BATCH, "not an image"), (BATCH + 2, "No such file"), (BATCH + 3, "folder")):
        assert reason.lower() in str(found[at].error).lower()
        assert "\n" not in str(found[at].error)
        assert paths[at] not in str(found[at].error)  # without the path, which the caller prints
        assert found[at].to_dict()["top"] == []
    with pytest.raises(UserError, match=r"cut\.png: "):
        _ = found[3].name
    with pytest.raises(UserError, match=r"cut\.png: "):
        classifier.predict(cut)


def test_images_without_a_path_are_numbered(classifier: Classifier):
    raw = [np.asarray(image) for image in draw(np.zeros(3 * BATCH, int))]
    raw[2 * BATCH + 1] = np.asarray(raw[0])
    found = classifier.predict([*raw, b"", b"no image"])
    assert [p.path for p in found] == [f"image {i + 1}" for i in range(3 * BATCH + 2)]
    assert found[-2].error == "empty"
    assert "picture" not in str(found[-2].error)


def test_only_a_few_images_are_in_memory_at_a_time(classifier: Classifier):
    """The number of images that are read ahead is bounded."""
    asked = 0

    def endless():
        nonlocal asked
        while True:
            asked += 1
            yield np.zeros((28, 28), np.uint8)

    stream = classifier.stream(endless())
    for done in range(1, 5 * BATCH):
        next(stream)
        assert asked - done <= 2 * BATCH
    stream.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("linnaeus-decode")]


@pytest.mark.long
def test_ten_thousand_images_in_constant_memory(model: Path, tmp_path: Path):
    """The growth between the 2,000th and the 10,000th is less than 8,000 of them would take (60 MB as float)."""
    import subprocess
    import sys

    paths: list[str] = []
    for image in draw(np.arange(100) % 3):
        paths.append(str(tmp_path / f"{len(paths)}.png"))
        Image.fromarray(image).save(paths[-1])
    code = f"""
import sys
from linnaeus.inference.classifier import load
def resident(): return int(open("/proc/self/statm").read().split()[1]) * 4096
stream = load({str(model)!r}, device="cpu").stream(sys.argv[1:][i % 100] for i in range(10_000))
for i, prediction in enumerate(stream, 1):
    assert prediction.error is None
    if i == 2_000: before = resident()
print(resident() - before, i)
"""
    result = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True)
    grown, count = map(int, result.stdout.split())
    assert count == 10_000
    assert grown < 10e6


def test_a_folder_is_walked_in_natural_order(tmp_path: Path):
    for name in ("b/10.png", "b/2.png", "b/nested/x.JPEG", "a.jpg", ".hidden.png", ".git/y.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [str(Path(path).relative_to(tmp_path)) for path in expand([str(tmp_path)])]
    assert found == ["a.jpg", "b/2.png", "b/10.png", "b/nested/x.JPEG"]


def test_globs_lists_and_files_in_the_order_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("10.png", "9.png", "[1].png", "sub/3.png", "zwei Wörter 一.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    lines = ["zwei Wörter 一.png\n", "\n", " 9.png\r\n"]
    assert list(expand(["10.png", "-"], lines)) == ["10.png", "zwei Wörter 一.png", " 9.png"]
    assert list(expand(["*.png"])) == ["9.png", "10.png", "[1].png", "zwei Wörter 一.png"]
    assert list(expand(["**/3.png"])) == ["sub/3.png"]
    assert list(expand(["[1].png"])) == ["[1].png"]  # a file that looks like a pattern
    assert list(expand(["gone.png"])) == ["gone.png"]  # reported in its place
    with pytest.raises(UserError, match=r"\*\.gif: no file matches"):
        list(expand(["*.gif"]))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: no images in this folder"):
        list(expand(["empty"]))


def test_the_true_class_is_that_of_the_folder(classifier: Classifier, tmp_path: Path):
    assert classifier.true_class("pictures/2/a.png") == 2
    assert classifier.true_class("pictures/x/a.png") is None
    assert classifier.true_class(str(tmp_path / "1" / "a.png")) == 1


def written(form: str, predictions: list[Prediction], top: int) -> str:
    file = io.StringIO()
    write = open_writer(form, file, top)
    for prediction in predictions:
        write(prediction)
    return file.getvalue()


@pytest.fixture
def two() -> list[Prediction]:
    """A readable image and an unreadable one, with names that CSV and JSON have to quote."""
    names = ('Rose, "rot"', "玫瑰", "c")
    good = Prediction("a b/ü.jpg", ("0", "1", "2"), names, np.array([0.2, 0.7, 0.1]))
    return [good, Prediction("x,y.jpg", ("0", "1", "2"), names, None, error="cut short, sadly")]


def test_json_lines_have_the_keys_of_the_contract(two: list[Prediction]):
    good, bad = map(json.loads, written("jsonl", two, 2).splitlines())
    assert list(good) == ["path", "top", "unsure", "unknown", "distance", "error"]
    assert good["path"] == "a b/ü.jpg"
    assert good["error"] is None
    assert good["unsure"] is False
    assert good["top"] == [
        {"class": "1", "name": "玫瑰", "probability": 0.7},
        {"class": "0", "name": 'Rose, "rot"', "probability": 0.2},
    ]
    untold = {"unknown": None, "distance": None}  # the model cannot tell
    assert bad == {"path": "x,y.jpg", "top": [], "unsure": False, "error": "cut short, sadly"} | untold


def test_csv_has_the_same_columns_in_every_row(two: list[Prediction]):
    rows = list(csv.reader(io.StringIO(written("csv", two, 2))))
    assert rows[0] == [
        "path",
        "unsure",
        "error",
        *(f"{c}_{k}" for k in (1, 2) for c in ("class", "name", "probability")),
        "unknown",
        "distance",
    ]
    assert rows[1] == ["a b/ü.jpg", "0", "", "1", "玫瑰", "0.700000", "0", 'Rose, "rot"', "0.200000", "", ""]
    assert rows[2] == ["x,y.jpg", "", "cut short, sadly", *[""] * 8]


def test_the_table_has_a_line_or_a_paragraph_for_each_image(two: list[Prediction]):
    lines = written("table", two, 1).splitlines()
    assert len(lines) == 1  # the unreadable one is told on stderr
    assert lines[0].split() == ["70.0", "%", "玫瑰", "a", "b/ü.jpg"]
    lines = written("table", two, 3).splitlines()
    assert lines[0] == "a b/ü.jpg"
    assert [line.split()[0] for line in lines[1:]] == ["70.0", "20.0", "10.0"]


TEMPERATURE, THRESHOLD = 0.2, 0.75
POINT = {"threshold": THRESHOLD, "answered": 90, "wrong": 1}
CALIBRATION = {
    "temperature": TEMPERATURE,
    "split": "valid",
    "abstention": {"target_risk": 0.02, "n": 100, "estimated": POINT, "tested": None},
    "curve": [[THRESHOLD, 90, 1], [0.0, 100, 8]],
}


def calibrated_copy(model: Path, path: Path, calibration: dict[str, Any]) -> Path:
    network, about = read_model(model)
    write_model(path, network.state_dict(), replace(about, calibration=calibration))
    return path


def test_a_calibration_is_applied(model: Path, classifier: Classifier, images: Path, tmp_path: Path):
    """Probabilities at the temperature, the same answer first, and unsure below the threshold."""
    sure = load(calibrated_copy(model, tmp_path / "m.safetensors", CALIBRATION), device="cpu")
    paths = all_of(images)
    plain, found = classifier.predict(paths), sure.predict(paths)
    assert not any(p.unsure for p in plain)  # a model without a calibration answers everything
    for one, other in zip(plain, found, strict=True):
        assert one.probabilities is not None
        expected = one.probabilities ** (1 / TEMPERATURE)
        assert other.probabilities == pytest.approx(expected / expected.sum())
        assert other.index == one.index
        assert other.unsure == (other.probability < THRESHOLD)
    unsure = [p.unsure for p in found]
    assert any(unsure)
    assert not all(unsure)
    assert [p.to_dict()["unsure"] for p in found] == unsure


def test_unsure_in_every_format(two: list[Prediction]):
    shy = [replace(two[0], threshold=0.71), replace(two[0], threshold=0.7), replace(two[1], threshold=0.9)]
    assert [p.unsure for p in shy] == [True, False, False]
    assert [json.loads(line)["unsure"] for line in written("jsonl", shy, 1).splitlines()] == [True, False, False]
    assert [row["unsure"] for row in csv.DictReader(io.StringIO(written("csv", shy, 1)))] == ["1", "0", ""]
    lines = written("table", shy, 1).splitlines()
    assert "unsure (玫瑰)" in lines[0]
    assert "unsure" not in lines[1]
    assert [line for line in written("table", shy, 2).splitlines() if "ü.jpg" in line] == [
        "a b/ü.jpg  unsure",
        "a b/ü.jpg",
    ]


def test_figures_of_a_calibrated_model(model: Path, classifier: Classifier, tmp_path: Path):
    write_images(tmp_path / "data" / "test", each=7)
    sure = load(calibrated_copy(model, tmp_path / "m.safetensors", CALIBRATION), device="cpu")
    plain, found = classifier.evaluate(tmp_path / "data"), sure.evaluate(tmp_path / "data")
    assert found.correct == plain.correct
    answered = classifier.outputs(classifier.images(tmp_path / "data"))
    assert plain.loss == pytest.approx(answered.losses.mean())
    assert found.loss == pytest.approx(answered.at(TEMPERATURE).losses.mean())
    assert found.loss != pytest.approx(plain.loss)


def test_an_invalid_calibration_names_the_file(model: Path, tmp_path: Path):
    with pytest.raises(UserError, match=r"odd\.safetensors: its calibration .*temperature -1"):
        calibrated_copy(model, tmp_path / "odd.safetensors", CALIBRATION | {"temperature": -1})


def test_loading_reports_what_is_wrong(tmp_path: Path, model: Path):
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        linnaeus.load(tmp_path)
    with pytest.raises(UserError, match="no such model file"):
        linnaeus.load(tmp_path / "gone")
    with pytest.raises(UserError, match="--device tpu"):
        linnaeus.load(model, device="tpu")


def test_evaluating_on_a_source(classifier: Classifier, tmp_path: Path):
    """Classes are matched by name, so a source may lack some; one that is new to the model is refused."""
    write_images(tmp_path / "data" / "test", ("2", "0"), each=5)
    found = classifier.evaluate(tmp_path / "data", "test")
    assert found.n == 10
    paths = all_of(tmp_path / "data")
    right = [classifier.predict(path).index == classifier.true_class(path) for path in paths]
    assert found.correct == sum(right)
    with pytest.raises(UserError, match="has no split 'valid'; choose from"):
        classifier.evaluate(tmp_path / "data", "valid")
    assert len(classifier.images(tmp_path / "data", "testing").indices) == 10
    with pytest.raises(UserError, match="has no split 'valid'"):
        classifier.evaluate(tmp_path / "data", "val")
    write_images(tmp_path / "data" / "test", ("new",), each=1)
    with pytest.raises(UserError, match="does not know 'new'; the source lacks '1', which the model knows; rename"):
        classifier.evaluate(tmp_path / "data", "test")


def test_display_names_of_a_source_that_contradict_the_model_are_not_ignored(classifier: Classifier, tmp_path: Path):
    data = write_images(tmp_path / "data", ("0", "1"), each=2)

    def call(**names: str) -> None:
        (data / "cat_to_name.json").write_text(json.dumps({key[1:]: value for key, value in names.items()}))

    call(_0="Name of 0", _1="NAME-OF_1")
    assert classifier.images(data).called_differently == ""
    call(_0="零", _1="name of 1")
    warning = "class '0' is '零' here and 'name of 0' in the model: matched by class, not by display name"
    assert warning in " ".join(classifier.images(data).notes())
    call(_0="name of 1", _1="name of 0")
    with pytest.raises(UserError, match="'0' is 'name of 1', which is class '1' of the model; its '0' is 'name of 0'"):
        classifier.evaluate(data)
