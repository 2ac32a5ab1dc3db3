"""The fastest file of a run folder is used only if it belongs to this model, passed its gate and was measured here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_onnx import made
from tiny import write_images, write_tiny_model

from linnaeus.errors import UserError
from linnaeus.modelfile import exports
from linnaeus.modelfile.agreement import Agreement
from linnaeus.modelfile.exports import EXPORTS, Verified, fastest, named, note
from linnaeus.modelfile.onnx import file_digest
from linnaeus.modelfile.safetensors import MODEL, read_header

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run with two exports, of which the second is the faster, on a machine without a GPU."""
    monkeypatch.setattr(exports, "_has_gpu", lambda: False)
    write_tiny_model(tmp_path / MODEL)
    for name, ratio in (("model.onnx", 2.0), ("model-int8.onnx", 5.0)):
        (tmp_path / name).write_bytes(made(classes='["0", "1", "2"]', threshold=str(ratio)))
        note_of(tmp_path / name, ratio)
    return tmp_path


ALIKE = Agreement(0.995, 200)


def note_of(file: Path, ratio: float, agreement: Agreement | None = ALIKE) -> None:
    digest = file_digest(file)
    assert digest is not None
    kind = "onnx-int8" if "int8" in file.name else "onnx"
    speed, model_digest = {"1": 9.0, "32": ratio}, read_header(file.parent / MODEL).digest
    note(file, digest, Verified(kind, model_digest, speed, agreement, 0.9))


def test_the_fastest_is_chosen_and_reported(run: Path):
    choice = fastest(run, "auto")
    assert choice.path == run / "model-int8.onnx"
    assert choice.reason == f"onnx-int8: {run / 'model-int8.onnx'}, 5.0 times as fast as model.safetensors here; " + (
        "the same class as the original on 99.5 % of 200 images"
    )
    assert choice.passed_over == []
    note_of(run / "model-int8.onnx", 1.5)
    assert fastest(run, "cpu").path == run / "model.onnx"


def test_a_device_that_is_asked_for_keeps_torch(run: Path, monkeypatch: pytest.MonkeyPatch):
    assert fastest(run, "cuda").path == run / MODEL
    monkeypatch.setattr(exports, "_has_gpu", lambda: True)
    assert fastest(run, "auto").path == run / MODEL
    assert fastest(run, "cpu").path == run / "model-int8.onnx"


def test_a_slower_file_is_not_chosen(run: Path):
    for name in ("model.onnx", "model-int8.onnx"):
        note_of(run / name, 0.8)
    assert fastest(run, "auto").path == run / MODEL


def test_exports_of_another_model_are_passed_over_with_a_message(run: Path):
    from tiny import mini

    write_tiny_model(run / MODEL, mini(seed=5))
    choice = fastest(run, "auto")
    assert choice.path == run / MODEL
    assert len(choice.passed_over) == 2
    assert all("it was made from another model.safetensors; export again" in line for line in choice.passed_over)


def test_files_that_changed_or_disappeared_are_passed_over(run: Path):
    (run / "model-int8.onnx").write_bytes(made(threshold="0.1"))
    (run / "model.onnx").unlink()
    choice = fastest(run, "auto")
    assert choice.path == run / MODEL
    assert "the file is not there" in choice.passed_over[0]
    assert "not the file that passed the gate" in choice.passed_over[1]


def test_a_speed_of_another_machine_does_not_count(run: Path):
    noted = json.loads((run / EXPORTS).read_text())
    noted["model-int8.onnx"]["machine"]["cores"] = 999
    (run / EXPORTS).write_text(json.dumps(noted))
    choice = fastest(run, "auto")
    assert choice.path == run / "model.onnx"
    assert "measured on another machine" in choice.passed_over[0]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"model.onnx": 3, "../x": {"kind": "onnx"}}', '{"model.onnx": {"speed": {}}}']
)
def test_a_damaged_record_is_ignored(text: str, run: Path):
    (run / EXPORTS).write_text(text)
    assert fastest(run, "auto").path == run / MODEL


def test_predict_uses_an_export_for_a_run_folder_and_not_for_a_file(run: Path, tmp_path: Path, say):
    image = next((write_images(tmp_path / "p", each=1) / "0").iterdir())
    note_of(run / "model-int8.onnx", 1.0)
    (run / "model.onnx").write_bytes(made())
    note_of(run / "model.onnx", 3.0)
    said = say("predict", run, image)
    assert said.err.splitlines()[0] == f"onnx: {run / 'model.onnx'}, 3.0 times as fast as model.safetensors here; " + (
        "the same class as the original on 99.5 % of 200 images"
    )
    assert "A" in said.out  # what that file says
    said = say("predict", run / MODEL, image)
    assert said.err == ""
    assert "name of" in said.out
    assert "times as fast" not in say("predict", run, image, "-q").err


@pytest.mark.parametrize(
    ("agreement", "reason"),
    [
        (Agreement(0.93, 400), "it gives the same class as the original on 93.0 % of 400 images, and 99 % is required"),
        (Agreement(1.0, 20), "it was compared on 20 images only, and 100 are required"),
        (None, "how often it agrees with the original is not recorded"),
    ],
)
def test_int8_below_the_default_gate_answers_only_if_it_is_named(agreement: Agreement | None, reason: str, run: Path):
    """`export --agree 0.9` writes the file, and does not change what predict and serve answer."""
    note_of(run / "model-int8.onnx", 5.0, agreement)
    choice = fastest(run, "auto")
    assert choice.path == run / "model.onnx"
    assert choice.passed_over == [f"{run / 'model-int8.onnx'}: passed over, {reason}; --use onnx-int8 uses it"]
    found = named(run, "onnx-int8")
    assert found.path == run / "model-int8.onnx"
    assert found.reason == f"onnx-int8: {found.path}" + ("" if agreement is None else f"; {agreement}")
    assert (named(run, "torch").path, named(run, "onnx").path) == (run / MODEL, run / "model.onnx")


def test_a_float_export_needs_no_number_of_images(run: Path):
    """It is compared by its probabilities, up to rounding."""
    (run / "model-int8.onnx").unlink()
    note_of(run / "model.onnx", 2.0, Agreement(1.0, 3))
    assert fastest(run, "auto").path == run / "model.onnx"


@pytest.mark.parametrize(("differing", "n", "used"), [(1, 200, True), (20, 200, False), (0, 20, False)])
def test_a_record_of_an_earlier_version_is_checked_against_its_file(differing: int, n: int, used: bool, run: Path):
    """It holds no agreement, but the export describes its comparison."""
    share = 1 - differing / n
    tried = [
        {"same_pixels": {"agreement": 0.1}},
        {"same_pixels": {"agreement": 1.0}, "raw_pixels": {"agreement": share}},
    ]
    record = json.dumps({"kind": "onnx-int8", "n": n, "tried": tried, "chosen": 1})
    (run / "model-int8.onnx").write_bytes(made(classes='["0", "1", "2"]', export=record))
    note_of(run / "model-int8.onnx", 5.0)
    noted = json.loads((run / EXPORTS).read_text())
    for key in ("agreement", "n", "gate"):
        del noted["model-int8.onnx"][key]
    (run / EXPORTS).write_text(json.dumps(noted))
    assert (fastest(run, "auto").path == run / "model-int8.onnx") is used


def test_what_cannot_be_named(run: Path, say):
    (run / "model-int8.onnx").write_bytes(made(threshold="0.1"))
    with pytest.raises(
        UserError, match=r"^--use onnx-int8: .*model-int8.onnx: it is not the file that passed the gate"
    ):
        named(run, "onnx-int8")
    (run / EXPORTS).unlink()
    with pytest.raises(UserError, match=r"has no such export; linnaeus export .* --to onnx makes one$"):
        named(run, "onnx")
    image = run / "x.png"
    image.touch()
    assert say("predict", run / MODEL, image, "--use", "onnx").err.count("is a file; omit --use") == 1
    assert say("predict", run, image, "--use", "onnx", "--device", "cuda").err.count("omit --device cuda") == 1
