"""Weights for torchvision: loaded strictly there they answer the same; where they would not, they are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import torchvision
from tiny import write_tiny_model

from linnaeus.errors import UserError
from linnaeus.export.torchvision import export_torchvision, torchvision_call
from linnaeus.inference.classifier import load
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models import create, wrap
from linnaeus.preprocess import Preprocessing

CLASSES = ("daisy", "rose *red*", "tulip")
COLORS = Preprocessing(40, 32, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
METRICS = {
    "valid": {"n": 50, "correct": 45, "accuracy": 0.9, "accuracy_ci95": [0.79, 0.96], "balanced_accuracy": 0.88},
    "test": {"n": 10, "correct": 8, "accuracy": 0.8, "loss": 0.5},
}
POINT = {"threshold": 0.75, "answered": 90, "wrong": 1}
CALIBRATION = {
    "temperature": 1.5,
    "split": "valid",
    "abstention": {"target_risk": 0.02, "n": 100, "estimated": POINT, "tested": None},
    "curve": [[0.75, 90, 1], [0.0, 100, 8]],
}


def written(path: Path, name: str, **arguments: Any) -> Path:
    """A model file of a network with statistics of its own."""
    torch.manual_seed(0)
    network = create(name, 3, **arguments)
    with torch.no_grad():
        network.train()(torch.randn(4, 3, 64, 64))
    about = ModelFile(
        network.arch,
        CLASSES,
        CLASSES,
        COLORS,
        calibration=CALIBRATION,
        metrics=METRICS,
        data={"kind": "folder", "counts": {"train": 100, "valid": 50}, "fingerprint": "abc", "contents": {"hash": "x"}},
        recipe={"name": "flowers", "model": {"weights": "imagenet"}},
    )
    write_model(path / "model.safetensors", network.state_dict(), about)
    return path / "model.safetensors"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet18", {}),
        pytest.param("resnet50", {}, marks=pytest.mark.long),
        ("inception_v1", {"branch5x5": "3x3"}),
    ],
)
def test_torchvision_loads_it_strictly_and_answers_the_same(name: str, arguments: dict, tmp_path: Path):
    classifier = load(written(tmp_path, name, **arguments), device="cpu")
    path, beside = export_torchvision(classifier)
    assert (path, beside) == (tmp_path / "torchvision.pth", tmp_path / "MODEL_CARD.md")
    models = torchvision().models
    call = torchvision_call(classifier.network, "m")
    theirs = eval(f"models.{call}", {"models": models})  # what the card tells people to type
    theirs.load_state_dict(torch.load(path, weights_only=True), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(theirs.eval()(x), classifier.network(x), rtol=1e-4, atol=1e-5)
    assert f"torchvision.models.{call}" in beside.read_text()


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("resnet50", {"stride_in": "1x1"}, "accuracy would be some 10 points lower"),
        ("resnet18", {"stem": "small"}, "the small stem"),
        ("resnet18", {"head_stages": ["layer3", "layer4"]}, "its head uses layer3 and layer4"),
        ("resnet18", {"channels": 1}, r"takes 1 channel, and torchvision's resnet18 takes 3"),
        ("resnet20", {}, "torchvision has no resnet20"),
        ("mini_resnet", {}, "torchvision has no mini_resnet"),
        ("inception_v1", {}, "5x5 branch"),
    ],
)
def test_a_network_that_torchvision_would_compute_differently_is_refused(name: str, arguments: dict, reason: str):
    with torch.device("meta"):
        network = create(name, 3, **arguments)
    with pytest.raises(UserError, match=reason) as caught:
        torchvision_call(network, "m.safetensors")
    assert "--to onnx" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_stride_matters_only_where_there_is_a_choice():
    with torch.device("meta"):
        assert torchvision_call(create("resnet34", 7), "m") == "resnet34(num_classes=7)"
        with pytest.raises(UserError, match="a network of your own"):
            torchvision_call(wrap(torch.nn.Linear(2, 2), 2), "m")


def test_the_card_says_what_where_how_good_and_how(tmp_path: Path):
    classifier = load(written(tmp_path, "resnet18"), device="cpu")
    _, beside = export_torchvision(classifier, tmp_path / "out" / "weights.pth")
    text = beside.read_text(encoding="utf-8")
    assert beside == tmp_path / "out" / "MODEL_CARD.md"
    assert text.startswith("---\n")
    front, body = text[4:].split("\n---\n", 1)
    assert "pipeline_tag: image-classification" in front
    assert "value: 0.900000" in front
    assert "value: 0.800000" in front
    for said in (
        "| valid | 50 | 90.00 % (45) | 79.0 % to 96.0 % | balanced accuracy 88.00 % |",
        "| test | 10 | 80.00 % (8) | 49.0 % to 94.3 % | loss 0.500 |",  # an interval where the file has none
        "the temperature 1.5, fitted on `valid`",
        "Below a probability of 0.75",
        "100 train, 50 valid images (a folder source; fingerprint `abc`)",
        "Whether an image was among them can be tested",
        'torch.load("weights.pth", weights_only=True)',
        "short side to 40 pixels, central 32 x 32",
        "[0.1, 0.2, 0.3] and standard deviation [0.4, 0.5, 0.6]",
        "1. rose \\*red\\*",
        "starting from the weights `imagenet`",
    ):
        assert said in body, said


def test_the_front_matter_is_yaml(tmp_path: Path):
    """Names hold quotes, colons and Chinese; the hub must read them all the same."""
    yaml = pytest.importorskip("yaml")
    path = written(tmp_path, "resnet18")
    classifier = load(path, device="cpu")
    classifier.about = replace(classifier.about, recipe={"name": 'a: "b" - 花 #1'})
    export_torchvision(classifier)
    front = (tmp_path / "MODEL_CARD.md").read_text(encoding="utf-8").split("---\n")[1]
    read = yaml.safe_load(front)
    assert read["model-index"][0]["results"][0]["dataset"]["name"] == 'a: "b" - 花 #1, 3 classes'
    assert [r["metrics"][0]["value"] for r in read["model-index"][0]["results"]] == [0.8, 0.9]


def test_the_command_writes_both_and_refuses_what_it_does_not_use(say, tmp_path: Path):
    path = written(tmp_path, "resnet18")
    said = say("export", path, "--to", "torchvision")
    assert said.status == 0
    assert said.out.split() == [str(tmp_path / "torchvision.pth"), str(tmp_path / "MODEL_CARD.md")]
    said = say("export", path, "--to", "torchvision", "--data", "x")
    assert (said.status, said.out) == (2, "")
    assert "--data x: --to torchvision makes no comparison" in said.err
    said = say("export", write_tiny_model(tmp_path / "tiny.safetensors"), "--to", "torchvision")
    assert said.status == 2
    assert "torchvision has no mini_resnet" in said.err
    assert json.dumps(said.err).count("\\n") == 1


def test_only_exports_and_cards_that_nobody_changed_are_replaced(say, tmp_path: Path):
    path = written(tmp_path, "resnet18")
    out, card = tmp_path / "out.pth", tmp_path / "MODEL_CARD.md"
    for _ in range(2):
        assert say("export", path, "--to", "torchvision", "--out", out).status == 0
    export = out.read_bytes()
    torch.save({"mine": torch.ones(3)}, tmp_path / "mine.pth")
    completed = card.read_text(encoding="utf-8").replace("license: ", "license: mit #")
    for file, content in (
        (out, (tmp_path / "mine.pth").read_bytes()),
        (out, b"mine"),
        (card, completed.encode()),
        (card, b"My model, made with Linnaeus"),
    ):
        before = file.read_bytes()
        file.write_bytes(content)
        said = say("export", path, "--to", "torchvision", "--out", out)
        assert said.status == 2
        assert f"{file}: exists and was not written by this command" in said.err
        assert file.read_bytes() == content
        file.write_bytes(before)
    assert torch.load(out, weights_only=True, mmap=True).keys() == load(path).network.state_dict().keys()
    assert out.read_bytes() == export


def test_the_card_of_a_model_that_was_stopped_says_so(tmp_path: Path):
    classifier = load(written(tmp_path, "resnet18"), device="cpu")
    assert "stopped" not in export_torchvision(classifier)[1].read_text()
    classifier.about.data["unfinished"] = True
    assert "The training was stopped before its end" in export_torchvision(classifier)[1].read_text()
