"""Files that earlier versions wrote load, and answer what they answered then. They are never written anew."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from linnaeus.errors import UserError
from linnaeus.inference.classifier import load
from linnaeus.modelfile.safetensors import read_model

GOLDEN = Path(__file__).parents[1] / "golden"
FORMATS = [folder for folder in sorted(GOLDEN.iterdir()) if folder.name.startswith("format")]
FILES = [f for folder in FORMATS for f in sorted(folder.iterdir()) if f.suffix in (".safetensors", ".onnx")]


def own() -> torch.nn.Module:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.own()


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_old_files_load_and_answer_as_they_did(file: Path):
    if file.suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    expected = json.loads((file.parent / "expected.json").read_text())[file.name]
    model = load(file, device="cpu", model=own() if file.stem == "custom" else None)
    found = model.predict(file.parent / "picture.png")
    assert found.probabilities == pytest.approx(expected["probabilities"], abs=1e-4)
    assert found.unsure == expected["unsure"]
    assert found.unknown == expected.get("unknown", False)
    assert found.distance == pytest.approx(expected.get("distance"), abs=1e-5)
    assert max(expected["probabilities"]) < 0.999, "a test needs answers that depend on the image"


def test_the_description_beside_the_weights_is_kept():
    _, about = read_model(GOLDEN / "format1" / "color.safetensors")
    assert about.names == ("rose", "玫瑰", 'a "b", c\\d')
    assert about.arch["arguments"]["head_stages"] == ["block2", "block3"]
    assert about.calibration is not None
    assert about.calibration["temperature"] == 1.7
    assert about.metrics["valid"]["accuracy_ci95"] == [0.898, 0.965]
    p = about.preprocessing
    assert (p.resize, p.size, p.fit, p.interpolation, p.mean) == (40, 32, "crop", "bilinear", (0.485, 0.456, 0.406))
    onnx = load(GOLDEN / "format1" / "color.onnx")
    assert replace(onnx.about) == about


def test_there_are_golden_files_and_they_are_small():
    assert [f"{file.parent.name}/{file.name}" for file in FILES] == [
        "format1/color.onnx",
        "format1/color.safetensors",
        "format1/custom.safetensors",
        "format1/gray.safetensors",
        "format1/unknown.onnx",
        "format1/unknown.safetensors",
    ]
    sizes = [file.stat().st_size for file in FILES]
    assert max(sizes) < 300_000
    assert sum(sizes) < 800_000


@pytest.mark.parametrize("file", FILES, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_a_changed_weight_is_noticed(file: Path, tmp_path: Path):
    raw = bytearray(file.read_bytes())
    raw[len(raw) * 3 // 4] ^= 4
    (tmp_path / file.name).write_bytes(raw)
    with pytest.raises(UserError, match="checksum"):
        load(tmp_path / file.name, model=own() if file.stem == "custom" else None)


def test_the_image_is_what_it_was():
    from linnaeus.data.images.decode import decode

    assert decode(GOLDEN / "format1" / "picture.png").shape == (42, 56, 3)
    assert int(decode(GOLDEN / "format1" / "picture.png").astype(np.int64).sum()) > 0
