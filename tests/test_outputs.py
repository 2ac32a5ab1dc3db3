"""Outputs of a command that would replace a file of the user."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import write_images, write_tiny_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model.safetensors")


def test_predictions_do_not_replace_files_of_the_user(model: Path, tmp_path: Path, say):
    image = write_images(tmp_path / "pictures", each=1) / "0" / "0 0.png"
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    before = image.read_bytes()
    for option, file, reason in (
        ("--out", notes, "already exists and is another kind of file"),
        ("--out", image, "unsupported format"),
        ("--out", tmp_path, "is a folder"),
        ("--grid", image, "is one of the images"),
    ):
        said = say("predict", model, image, option, file, "--device", "cpu")
        assert said.status == 2
        assert said.err.count("\n") == 1
        assert f"{file}: {reason}" in said.err
    assert notes.read_text() == "mine"
    assert image.read_bytes() == before
    notes.write_text("")
    assert say("predict", model, image, "--out", notes, "--device", "cpu").status == 0


def test_exports_do_not_replace_files_of_the_user(model: Path, tmp_path: Path, say):
    pytest.importorskip("onnxscript", reason='needs pip install "linnaeus[onnx]"')
    source = write_images(tmp_path / "pictures", each=2)
    notes, before = tmp_path / "notes.txt", model.read_bytes()
    notes.write_text("mine")
    for out, reason in ((notes, "already exists"), (model, "already exists"), (tmp_path, "is a folder")):
        said = say("export", model, "--to", "onnx", "--data", source, "--out", out)
        assert said.status == 2
        assert f"{out}: {reason}" in said.err
    assert notes.read_text() == "mine"
    assert model.read_bytes() == before
    export = tmp_path / "model.onnx"
    export.write_bytes(b"an earlier export")
    assert say("export", model, "--to", "onnx", "--data", source, "--out", export).status == 0
