"""An ONNX file that changed after it was written is refused in one line before anything reads it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import GRAY

from linnaeus.errors import UserError
from linnaeus.inference.classifier import load
from linnaeus.modelfile.onnx import OURS, UNSEALED, checksum, file_digest, metadata, read_onnx, seal
from linnaeus.modelfile.safetensors import ModelFile

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ARCH = {"name": "mini_resnet", "classes": 2, "channels": 1, "arguments": {}}
ABOUT = ModelFile(ARCH, ("a", "b"), ("A", "花"), GRAY, metrics={"valid": {"n": 3}}, digest="d" * 64)


def made(**changed: str) -> bytes:
    """A valid file whose logits are the mean of the pixels, and its negative."""
    h = onnx.helper
    nodes = [
        h.make_node("Cast", ["images"], ["x"], to=1),
        h.make_node("ReduceMean", ["x", "axes"], ["m"], keepdims=0),
        h.make_node("Unsqueeze", ["m", "last"], ["u"]),
        h.make_node("Neg", ["u"], ["v"]),
        h.make_node("Concat", ["u", "v"], ["logits"], axis=1),
        h.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    axes = [onnx.numpy_helper.from_array(np.array(a, np.int64), n) for a, n in (([1, 2, 3], "axes"), ([1], "last"))]
    given = h.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", "h", "w", "c"])
    out = [h.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", 2]) for n in ("probabilities", "logits")]
    graph = h.make_graph(nodes, "g", [given], out, initializer=axes)
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=10)
    for key, value in (metadata(ABOUT, 0.5, {"kind": "onnx"}) | changed).items():
        model.metadata_props.add(key=key, value=value)
    return seal(model.SerializeToString())


@pytest.fixture(scope="module")
def whole() -> bytes:
    return made()


def test_what_was_written_is_read_back(whole: bytes, tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    _, about, export = read_onnx(path)
    assert about == ABOUT
    assert export == {"kind": "onnx"}
    assert onnx.load(path).metadata_props[-1].value == file_digest(path) == checksum(path, whole)
    (tmp_path / "long").write_bytes(whole + bytes(2 << 20))  # it stands far from the end
    assert file_digest(tmp_path / "long") == checksum(path, whole)
    (tmp_path / "none").write_bytes(bytes(2 << 20))
    assert file_digest(tmp_path / "none") is file_digest(tmp_path / "gone") is None
    classifier = load(path)
    assert classifier.predict(np.full((28, 28), 200, np.uint8)).top(1)[0] == ("A", pytest.approx(1))
    entries = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert set(entries) == {*OURS, "threshold", "model_sha256", "export", "sha256"}
    assert json.loads(entries["names"]) == ["A", "花"]


def test_any_altered_byte_is_found(whole: bytes, tmp_path: Path):
    """In the weights, the names, the checksum itself."""
    path = tmp_path / "m.onnx"
    for at in range(0, len(whole), 7):
        raw = bytearray(whole)
        raw[at] ^= 1
        with pytest.raises(UserError, match=r"m\.onnx: (cut short|does not match its checksum)"):
            checksum(path, bytes(raw))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_file_cut_short_is_refused(share: float, whole: bytes, tmp_path: Path):
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"m\.onnx: .*cut short") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path: Path):
    """ONNX of another program, of a future format, with an incomplete description; and no ONNX at all."""
    path = tmp_path / "m.onnx"
    path.write_bytes(made().replace(b"sha256", b"sha255"))
    with pytest.raises(UserError, match="not an ONNX file that linnaeus wrote"):
        load(path)
    path.write_bytes(made(format="2"))
    with pytest.raises(UserError, match="model file format 2, and this version reads format 1; upgrade"):
        load(path)
    path.write_bytes(made(classes='["a"]'))
    with pytest.raises(UserError, match="1 classes and 2 class names for 2 outputs"):
        load(path)
    path.write_bytes(made(names="[" * 9))
    with pytest.raises(UserError, match="cannot be opened"):
        load(path)
    with pytest.raises(UserError, match=r"gone\.onnx: no such model file"):
        load(tmp_path / "gone.onnx")


def test_it_runs_on_cpu_and_gives_answers_alone(whole: bytes, tmp_path: Path, say):
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    with pytest.raises(UserError, match=r"--device cuda: .*m\.onnx runs on CPU"):
        load(path, device="cuda")
    with pytest.raises(UserError, match="an ONNX file can only predict"):
        _ = load(path).network
    (image := tmp_path / "x.png").touch()
    said = say("explain", path, image)
    assert said.status == 2
    assert "an ONNX file can only predict" in said.err
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err
    said = say("predict", path, image, "--model", "net.py:build")
    assert said.status == 2
    assert "contains its network" in said.err


def test_without_onnx_runtime_it_says_what_to_install(whole: bytes, tmp_path: Path, monkeypatch):
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    monkeypatch.setattr("linnaeus.modelfile.onnx.has_runtime", lambda: False)
    with pytest.raises(UserError, match=r"needs ONNX Runtime, which is not installed: pip install"):
        load(path)


def test_the_seal_covers_all_but_itself(whole: bytes):
    assert whole.count(UNSEALED.encode()) == 0
    assert len(whole) == len(made())
