"""Made the golden files of format 1, once. They are never made again: a later version must load what this one wrote.

    python tests/golden/make.py FOLDER

writes into an empty folder, for the golden files of a format to come.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from linnaeus.console import Console
from linnaeus.export.onnx import export_onnx
from linnaeus.inference.classifier import load
from linnaeus.metrics.ood import Thresholds, unit
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.modelfile.unknown import UnknownDetector
from linnaeus.models import Network, create, wrap
from linnaeus.preprocess import Preprocessing

CALIBRATION = {
    "temperature": 1.7,
    "split": "valid",
    "abstention": {
        "error": 0.02,
        "confidence": 0.95,
        "n": 200,
        "smallest_n": 149,
        "estimated": {"threshold": 0.6, "answered": 180, "wrong": 3},
        "promised": None,
        "threshold": 0.6,
    },
    "curve": [[0.6, 180, 3], [0.0, 200, 12]],
}
METRICS = {"valid": {"n": 200, "correct": 188, "accuracy": 0.94, "accuracy_ci95": [0.898, 0.965], "loss": 0.2}}
DATA = {"kind": "folder", "counts": {"train": 800, "valid": 200}, "fingerprint": "0" * 64}
GRAY = Preprocessing(30, 28, "squash", channels=1, mean=(0.1,), std=(0.3,))
COLOR = Preprocessing(40, 32, "crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PADDED = Preprocessing(32, 32, "pad", interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.2, 0.3, 0.4))


def own() -> nn.Module:
    """The network of custom.safetensors: what stands for a user's own code."""
    layers = (nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8, 2))


def trained(network: Network) -> Network:
    """Weights and statistics that no new network has, so that a test notices any that are lost."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        x = torch.randn(8, network.arch["channels"], 32, 32)
        network.train()(x)
        last = [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
        scale = network.eval()(x).std()  # answers that are neither certain nor even
        last.weight.div_(scale)
        last.bias.div_(scale)
    return network


def unknown_detector(network: Network) -> UnknownDetector:
    """A detector with references in random directions."""
    features = network.arch["arguments"]["widths"][-1]
    references = unit(np.random.default_rng(1).normal(size=(20, features))).astype(np.float16)
    measured = {"left_out_classes": {"classes": ["class 0"], "of": 3}}
    return UnknownDetector(Thresholds(0.2, 0.3, 40, 38), references, measured)


def write(path: Path, network: Network, preprocessing: Preprocessing, **more: Any) -> None:
    classes = tuple(f"class {i}" for i in range(network.arch["classes"]))
    names = ("rose", "玫瑰", 'a "b", c\\d')[: len(classes)]
    about = ModelFile(network.arch, classes, names, preprocessing, **more)
    write_model(path, trained(network).state_dict(), about)


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = folder / "picture.png"
    Image.fromarray(small).resize((56, 42), Image.Resampling.BICUBIC).save(image)
    widths = [6, 8, 12]
    said: dict[str, Any] = {"metrics": METRICS, "data": DATA, "recipe": {"name": "golden"}}
    write(folder / "gray.safetensors", create("mini_resnet", 3, 1, widths=widths), GRAY)
    stages = ["block2", "block3"]
    color = create("mini_resnet", 3, 3, widths=widths, head_stages=stages)
    write(folder / "color.safetensors", color, COLOR, calibration=CALIBRATION, **said)
    known = create("mini_resnet", 3, 3, widths=widths)
    detector = unknown_detector(known)
    tensors = detector.tensors()
    write(folder / "unknown.safetensors", known, COLOR, unknown=detector.to_dict(), unknown_tensors=tensors, **said)
    write(folder / "custom.safetensors", wrap(own(), 2, source="net.py:own"), PADDED)
    images = folder / "pictures"
    for name in ("class 0", "class 1"):
        (images / name).mkdir(parents=True)
        Image.open(image).save(images / name / "picture.png")
    for name in ("color", "unknown"):
        out = folder / f"{name}.onnx"
        model = load(folder / f"{name}.safetensors")
        written, _ = export_onnx(model, "onnx", data=str(images), out=out, agree=1, console=Console())
        assert written is not None
    for file in images.rglob("*.png"):
        file.unlink()
    for below in (*images.iterdir(), images):
        below.rmdir()
    expected = {}
    for file in sorted([*folder.glob("*.safetensors"), *folder.glob("*.onnx")]):
        model = load(file, device="cpu", model=own() if file.stem == "custom" else None)
        found = model.predict(image)
        assert found.probabilities is not None
        verdict = {"unsure": found.unsure, "unknown": found.unknown, "distance": found.distance}
        expected[file.name] = {"probabilities": found.probabilities.tolist(), **verdict}
    (folder / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
