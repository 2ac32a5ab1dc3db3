"""Of a run folder the file that predicts fastest, if it is of this model, passed its gate, and was measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_onnx import made
from tiny import write_images, write_tiny_model

from linnaeus.modelfile.exports import EXPORTS, fastest, note
from linnaeus.modelfile.onnx import file_digest
from linnaeus.modelfile.safetensors import MODEL, read_header

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two exports, of which the second is the faster."""
    write_tiny_model(tmp_path / MODEL)
    for name, ratio in (("model.onnx", 2.0), ("model-int8.onnx", 5.0)):
        (tmp_path / name).write_bytes(made(classes='["0", "1", "2"]', threshold=str(ratio)))
        note_of(tmp_path / name, ratio)
    return tmp_path


def note_of(file: Path, ratio: float) -> None:
    digest = file_digest(file)
    assert digest is not None
    kind = "onnx-int8" if "int8" in file.name else "onnx"
    note(file, kind, digest, read_header(file.parent / MODEL).digest, {"1": 9.0, "32": ratio})


def test_the_fastest_is_chosen_and_said(run: Path):
    choice = fastest(run, "auto")
    assert choice.path == run / "model-int8.onnx"
    assert choice.said == f"onnx-int8: {run / 'model-int8.onnx'}, 5.0 times as fast as model.safetensors here"
    assert choice.passed_over == []
    note_of(run / "model-int8.onnx", 1.5)
    assert fastest(run, "cpu").path == run / "model.onnx"


def test_a_device_that_is_asked_for_keeps_torch(run: Path):
    assert fastest(run, "cuda").path == run / MODEL


def test_what_is_slower_is_not_chosen(run: Path):
    for name in ("model.onnx", "model-int8.onnx"):
        note_of(run / name, 0.8)
    assert fastest(run, "auto").path == run / MODEL


def test_exports_of_another_model_are_passed_over_with_a_word(run: Path):
    from tiny import mini

    write_tiny_model(run / MODEL, mini(seed=5))
    choice = fastest(run, "auto")
    assert choice.path == run / MODEL
    assert len(choice.passed_over) == 2
    assert all("it was made of another model.safetensors; export again" in line for line in choice.passed_over)


def test_files_that_changed_or_went_are_passed_over(run: Path):
    (run / "model-int8.onnx").write_bytes(made(threshold="0.1"))
    (run / "model.onnx").unlink()
    choice = fastest(run, "auto")
    assert choice.path == run / MODEL
    assert "the file is not there" in choice.passed_over[0]
    assert "not the file that passed the gate" in choice.passed_over[1]


def test_a_speed_of_another_machine_counts_nothing_here(run: Path):
    noted = json.loads((run / EXPORTS).read_text())
    noted["model-int8.onnx"]["machine"]["cores"] = 999
    (run / EXPORTS).write_text(json.dumps(noted))
    choice = fastest(run, "auto")
    assert choice.path == run / "model.onnx"
    assert "measured on another machine" in choice.passed_over[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model.onnx": 3, "../x": {"kind": "onnx"}}', '{"model.onnx": {"speed": {}}}']
)
def test_a_torn_record_is_no_record(text: str, run: Path):
    (run / EXPORTS).write_text(text)
    assert fastest(run, "auto").path == run / MODEL


def test_predict_takes_it_for_a_run_and_not_for_a_file(run: Path, tmp_path: Path, say):
    image = next((write_images(tmp_path / "p", each=1) / "0").iterdir())
    note_of(run / "model-int8.onnx", 1.0)
    (run / "model.onnx").write_bytes(made())
    note_of(run / "model.onnx", 3.0)
    said = say("predict", run, image)
    assert said.err.splitlines()[0] == f"onnx: {run / 'model.onnx'}, 3.0 times as fast as model.safetensors here"
    assert "A" in said.out  # what that file says
    said = say("predict", run / MODEL, image)
    assert said.err == ""
    assert "name of" in said.out
    assert say("predict", run, image, "-q").err == ""
