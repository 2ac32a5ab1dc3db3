"""An ONNX file computes the distance from the training images, so it recognizes unknown images as its model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_export import QUIET, with_distinct_outputs, write_run
from tiny import GRAY, mini, write_images

from linnaeus.export.distance import DistanceCheck, check_distance, with_distance
from linnaeus.export.onnx import export_onnx
from linnaeus.export.reference_model import ReferenceModel
from linnaeus.export.sample_images import collect_samples
from linnaeus.inference.classifier import Classifier, load
from linnaeus.metrics.ood import Thresholds, unit
from linnaeus.metrics.thumbnails import Thumbnails
from linnaeus.modelfile.onnx import INPUT
from linnaeus.modelfile.safetensors import read_model, write_model
from linnaeus.modelfile.unknown import THUMBNAILS, UnknownDetector

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that recognizes unknown images, `data`, and an export."""
    folder = tmp_path_factory.mktemp("place")
    write_images(folder / "data" / "train", each=8)
    write_images(folder / "data" / "valid", each=5, seed=9)
    network = with_distinct_outputs(mini())
    x = GRAY.normalize(torch.randint(0, 256, (20, GRAY.size, GRAY.size, 1), dtype=torch.uint8))
    with torch.inference_mode():
        features, _ = network.eval().features_and_logits(x)
    references = unit(features.numpy())[:4].astype(np.float16)
    thumbnails = Thumbnails(unit(np.random.default_rng(2).random((3, 64))).astype(np.float16), 0.5)
    detector = UnknownDetector(Thresholds(0.1, 0.2, 15, 14), references, thumbnails=thumbnails)
    (folder / "run").mkdir()
    write_run(folder / "run", network, unknown=detector.to_dict(), unknown_tensors=detector.tensors())
    path, _ = export_onnx(
        load(folder / "run", device="cpu"), "onnx", data=str(folder / "data"), agree=0.99, console=QUIET
    )
    assert path == folder / "run" / "model.onnx"
    return folder


def test_distances_and_verdicts_are_those_of_the_model(place: Path):
    model, export = (load(place / "run" / name, device="cpu") for name in ("model.safetensors", "model.onnx"))
    images = [str(path) for path in sorted((place / "data" / "valid").rglob("*.png"))]
    ours, theirs = model.predict(images), export.predict(images)
    distances = [prediction.distance for prediction in ours]
    assert len(set(distances)) > 1
    assert [prediction.distance for prediction in theirs] == pytest.approx(distances, abs=1e-5)
    assert [prediction.unknown for prediction in theirs] == [prediction.unknown for prediction in ours]
    assert export.notice == model.notice  # no message about a missing distance


def test_the_larger_of_both_distances_counts(place: Path, tmp_path: Path):
    model = load(place / "run" / "model.safetensors", device="cpu")
    images = [str(path) for path in sorted((place / "data" / "valid").rglob("*.png"))]
    both = [prediction.distance for prediction in model.predict(images)]
    network, about = read_model(place / "run" / "model.safetensors")
    assert about.unknown is not None
    del about.unknown_tensors[THUMBNAILS]
    about.unknown = {key: value for key, value in about.unknown.items() if not key.startswith("thumbnail")}
    write_model(tmp_path / "m.safetensors", network.state_dict(), about)
    alone = [prediction.distance for prediction in load(tmp_path / "m.safetensors", device="cpu").predict(images)]
    more = np.array(both, float) - np.array(alone, float)
    assert more.min() > -1e-6
    assert more.max() > 1e-3


def test_a_program_without_linnaeus_gets_the_distances(place: Path):
    session = ort.InferenceSession(str(place / "run" / "model.onnx"))
    (distance,) = session.run(["distance"], {INPUT: np.zeros((2, 40, 30, 1), np.uint8)})
    assert distance.shape == (2,)
    assert distance.dtype == np.float32
    assert (distance >= 0).all()


def test_references_take_two_bytes_a_number(place: Path):
    """With 2 MB of them, float32 would make a small int8 file several times as large."""
    classifier = load(place / "run" / "model.safetensors")
    plain = graph_of(place, classifier)
    features = classifier.detector.references.shape[1]  # type: ignore[union-attr]
    references = unit(np.random.default_rng(0).normal(size=(2048, features))).astype(np.float16)
    larger = with_distance(plain, references)
    assert larger is not None
    lengths = 4 * len(references)
    assert larger.ByteSize() - plain.ByteSize() < references.nbytes + lengths + 2000


def test_logits_that_come_from_no_linear_layer_have_no_distance(place: Path):
    classifier = load(place / "run" / "model.safetensors", device="cpu")
    assert with_distance(graph_of(place, classifier), np.ones((3, 77), np.float16)) is None


def test_a_wrong_distance_is_left_out(place: Path):
    classifier = load(place / "run" / "model.safetensors", device="cpu")
    assert classifier.detector is not None
    assert classifier.detector.references is not None
    other = with_distance(graph_of(place, classifier), np.ascontiguousarray(classifier.detector.references[:, ::-1]))
    samples = collect_samples(classifier.about, classifier.path, str(place / "data"), None)
    check = check_distance(other, ReferenceModel(classifier, samples, QUIET), "onnx")
    assert "a distance differs by" in str(check.refused("onnx", 0.99))
    assert DistanceCheck(100, 0.05, 1).refused("onnx-int8", 0.99) is None
    assert (
        DistanceCheck(100, 0.05, 2).refused("onnx-int8", 0.99) == "2 of 100 images are unknown to only one of the two"
    )
    assert DistanceCheck(100, float("nan"), 0).refused("onnx", 0.99) is not None


def graph_of(place: Path, classifier: Classifier):
    """The exported graph without its output `distance`."""
    model = onnx.load(place / "run" / "model.onnx")
    kept = [node for node in model.graph.node if not node.name.startswith("unknown/")]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    outputs = [output for output in model.graph.output if output.name != "distance"]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    constants = [each for each in model.graph.initializer if not each.name.startswith("unknown/")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    return model
