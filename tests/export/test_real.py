"""ResNet-50 with ImageNet's weights on photographs of flowers: float agrees everywhere, int8 nearly so."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from linnaeus.console import Console
from linnaeus.export import int8
from linnaeus.export.onnx import export_onnx
from linnaeus.inference.classifier import load
from linnaeus.inference.inputs import expand
from linnaeus.modelfile.onnx import INPUT, PROBABILITIES
from linnaeus.modelfile.safetensors import ModelFile, write_model
from linnaeus.models.weights.loading import load_weights
from linnaeus.preprocess import Preprocessing

ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CLASSES = 4


@pytest.fixture(scope="module")
def photos(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes of flowers, some images of each; one of them large, so that it is decoded at a fraction."""
    folder = tmp_path_factory.mktemp("photos")
    for part, n in (("train", 6), ("valid", 4)):
        for below in sorted((shared_data / "flowers16" / part).iterdir())[:CLASSES]:
            (folder / part / below.name).mkdir(parents=True)
            for file in sorted(below.glob("*.jpg"))[:n]:
                shutil.copy(file, folder / part / below.name)
    file = next((folder / "valid").rglob("*.jpg"))
    Image.open(file).resize((1600, 1200), Image.Resampling.BICUBIC).save(file, quality=92)
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network with the mean vector of each class as its head: the nearest by angle is the answer."""
    file = shared_data / "weights" / "resnet50-v1-imagenet.safetensors"
    result = load_weights("resnet50", str(file), classes=CLASSES)
    network, p = result.model.eval(), Preprocessing(256, 224)
    classes = sorted(folder.name for folder in (photos / "train").iterdir())
    with torch.inference_mode():
        means = []
        for name in classes:
            seen = np.stack([p.load(path) for path in expand([str(photos / "train" / name)])])
            x = network.run(p.normalize(torch.from_numpy(seen)), stop="head").mean((2, 3))
            means.append(torch.nn.functional.normalize(x, dim=1).mean(0))
    with torch.no_grad():
        directions = torch.stack(means) - torch.stack(means).mean(0)
        network.fc.weight.copy_(directions)
        network.fc.bias.zero_()
    folder = tmp_path_factory.mktemp("run")
    about = ModelFile(network.arch, tuple(classes), tuple(classes), p)
    write_model(folder / "model.safetensors", network.state_dict(), about)
    return folder


@pytest.mark.long
def test_float_agrees_on_photographs_and_so_do_other_programs(run: Path, photos: Path):
    model = load(run, device="cpu")
    path, result = export_onnx(model, "onnx", data=str(photos), agree=0.99, console=Console(quiet=True))
    assert path is not None, result.attempts[0].refused
    best = result.attempts[0]
    assert best.prepared.largest < 1e-5
    assert best.raw is not None
    assert best.raw.largest < 1e-2
    drafted = result.reference.draft_effect
    assert drafted is not None
    assert drafted.n == 1, "the large one is decoded at a fraction by predict, the others are not"
    assert drafted.largest > 0
    session = ort.InferenceSession(str(path))
    for photo in list(expand([str(photos / "valid")]))[::3]:
        expected = model.predict(photo)
        (output,) = session.run([PROBABILITIES], {INPUT: np.asarray(Image.open(photo))[None]})
        assert output[0].argmax() == expected.index
        assert output[0] == pytest.approx(expected.probabilities, abs=2e-2)
        assert load(path).predict(photo).probabilities == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.long
def test_javascript_gives_the_same_answer(run: Path, photos: Path, tmp_path: Path):
    """The page's script, where node has its packages. JPEG decoders differ by some levels, mostly in color."""
    root = Path(__file__).resolve().parents[2]
    script = root / "docs" / "predict.mjs"
    node = shutil.which("node")
    if node is None or not (script.parent / "node_modules" / "onnxruntime-node").is_dir():
        pytest.skip("needs: cd docs && npm install --ignore-scripts onnxruntime-node jpeg-js")
    photo = next((photos / "valid").rglob("*.jpg"))
    model, _ = export_onnx(
        load(run, device="cpu"),
        "onnx",
        data=str(photos),
        out=tmp_path / "m.onnx",
        agree=0.99,
        console=Console(quiet=True),
    )
    assert model is not None
    done = subprocess.run([node, script, model, photo], capture_output=True, text=True, check=True)
    expected = load(model).predict(photo).probabilities
    assert json.loads(done.stdout) == pytest.approx(expected, abs=5e-2)


@pytest.mark.long
def test_int8_nearly_agrees(run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(int8, "SCHEMES", int8.SCHEMES[:1])
    path, result = export_onnx(
        load(run, device="cpu"),
        "onnx-int8",
        data=str(photos),
        out=tmp_path / "m.onnx",
        agree=0.8,
        console=Console(quiet=True),
    )
    assert path is not None, result.attempts[0].refused
    assert result.attempts[0].prepared.agreement >= 0.8
    assert 0 < result.attempts[0].prepared.mean < 0.1, "rounding changes the answers, but not much"
    assert path.stat().st_size < 0.3 * (run / "model.safetensors").stat().st_size
