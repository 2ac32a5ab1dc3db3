"""How `linnaeus serve` derives the name of a model and its training images."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from linnaeus.cli.options import model_name
from linnaeus.cli.serve import _training_source


@pytest.mark.parametrize(
    ("model", "name"), [("runs/flowers", "flowers"), ("runs/flowers/model.safetensors", "flowers"), ("a/b.onnx", "b")]
)
def test_a_model_is_named_after_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: str, name: str):
    (tmp_path / "runs" / "flowers").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name(Path(model)) == name


def test_the_training_images_are_those_recorded_in_the_run(tmp_path: Path):
    assert _training_source(tmp_path, None) is None
    (tmp_path / "metrics.json").write_text(json.dumps({"source": {"path": str(tmp_path)}}))
    assert _training_source(tmp_path, None) == str(tmp_path)
    assert _training_source(tmp_path, "none") is None
    assert _training_source(tmp_path, "elsewhere") == "elsewhere"
    (tmp_path / "metrics.json").write_text(json.dumps({"source": {"path": str(tmp_path / "gone")}}))
    assert _training_source(tmp_path, None) is None
