"""Runs whose head looks at windows: trained, solved, stored, read again and exported; and what refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import SIDE, write_label_sets, write_recipe

import linnaeus
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.export.onnx import export_onnx

pytestmark = pytest.mark.usefixtures("undrawn_runs")
NETWORK = {"name": "digit_resnet", "arguments": {"widths": [6, 8, 12]}, "head": {"windows": 2}}
SOLVED: dict[str, Any] = {"train": ["head"], "head": "auto", "epochs": 1}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: the head trained with everything below, then solved on stored features."""
    root = tmp_path_factory.mktemp("windows")
    source = write_label_sets(root / "data", 90)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINNAEUS_CACHE", str(root / "cache"))
        recipe = write_recipe(root / "r.toml", {"epochs": 2}, SOLVED, model=NETWORK)
        linnaeus.train(source, str(recipe), out=root / "run", device="cpu", draw=False)
    return root / "run"


def test_the_model_file_answers_as_the_run_did(run: Path):
    found = linnaeus.load(run, device="cpu")
    assert found.network.windows == 2
    evaluation = found.evaluate(run.parent / "data" / "all.csv", split="valid")
    metrics = json.loads((run / "metrics.json").read_text())
    assert evaluation.to_dict()["map"] == pytest.approx(metrics["valid"]["map"], abs=1e-6)


def test_an_export_agrees(run: Path, tmp_path: Path):
    model = linnaeus.load(run, device="cpu")
    images = run.parent / "data"
    path, result = export_onnx(
        model, "onnx", data=str(images / "all.csv"), out=tmp_path / "m.onnx", agree=0.99, console=Console(silent=True)
    )
    assert path is not None, result.attempts[0].refused
    exported = linnaeus.load(path)
    for name in ("0.png", "1.png", "7.png"):
        expected = model.predict(images / name).probabilities
        assert exported.predict(images / name).probabilities == pytest.approx(expected, abs=1e-5)


def test_influence_is_refused(run: Path, say):
    refused = say("explain", run, run.parent / "data" / "1.png", "--influence", "--device", "cpu")
    assert refused.status == 2
    assert "its head looks at windows of each image" in refused.err


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"head": {"windows": 9}}, r"model.head.windows = 9: the last feature map has 3 x 3 positions, .* at most 3"),
        ({"head": {"windows": 2, "stages": ["block3"]}}, "uses the last stage alone; leave stages out"),
    ],
)
def test_windows_that_do_not_fit_are_refused_before_the_run(run: Path, tmp_path: Path, model: dict, message: str):
    recipe = write_recipe(tmp_path / "r.toml", model={**NETWORK, **model})
    with pytest.raises(UserError, match=message):
        linnaeus.train(run.parent / "data" / "all.csv", str(recipe), out=tmp_path / "run", draw=False)
    assert not (tmp_path / "run").exists()


def test_one_label_per_image_refuses_windows(tmp_path: Path):
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.fromarray(np.full((SIDE, SIDE), 40 * i, np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    recipe = write_recipe(tmp_path / "r.toml", model=NETWORK)
    with pytest.raises(UserError, match=r"model.head.windows = 2: needs images that may have several labels"):
        linnaeus.train(tmp_path / "photos", str(recipe), out=tmp_path / "run", draw=False)
