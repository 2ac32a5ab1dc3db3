"""A model file is read back as it was written; any other file is refused in one line."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import GRAY, mini, write_tiny_model

import linnaeus
from linnaeus.errors import JobError, UserError
from linnaeus.modelfile.safetensors import (
    MODEL,
    ModelFile,
    description_digest,
    model_path,
    read_header,
    read_model,
    write_model,
)
from linnaeus.models import create, wrap

CALIBRATION: dict[str, Any] = {
    "temperature": 1.7, "split": "valid", "curve": [[0.6, 180, 3], [0.0, 200, 12]],
    "abstention": {"target_risk": 0.02, "n": 200, "estimated": None, "tested": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = mini()
    for parameter in model.parameters():  # biases start as zeros, alike
        torch.nn.init.normal_(parameter)
    return write_tiny_model(tmp_path_factory.mktemp("whole") / MODEL, model).read_bytes()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("given")


def parts(raw: bytes) -> tuple[dict[str, Any], bytes]:
    """(safetensors' header, tensors) of a file."""
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def changed(raw: bytes, **description: Any) -> bytes:
    """The file with other entries in its description, and a checksum that fits them; None removes one."""
    header, tensors = parts(raw)
    about = json.loads(header["__metadata__"]["linnaeus"]) | description
    about = {key: value for key, value in about.items() if value is not None}
    header["__metadata__"]["linnaeus"] = json.dumps(about | {"sha256": description_digest(about)})
    return joined(header, tensors)


def refused(path: Path, raw: bytes) -> str:
    """The one line with which a file of these bytes is refused."""
    path.write_bytes(raw)
    with pytest.raises(UserError) as caught:
        read_model(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    assert len(line) < 600
    return line


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [("mini_resnet", {"widths": [4, 6, 8]}, 28), ("resnet20", {"shortcut": "B"}, 32), ("inception_v1", {}, 64)],
)
def test_the_same_network_is_read_back(name: str, arguments: dict, size: int, tmp_path: Path):
    """The same logits to the bit, the statistics of BatchNorm, and the whole description."""
    torch.manual_seed(0)
    model = create(name, 3, 1, **arguments).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(2, 1, size, size)
    model.train()(x)  # gives the running statistics values of their own
    names = ("一", "zwei ü", 'three "3"')
    about = ModelFile(model.arch, ("a", "b", "c"), names, GRAY, metrics={"valid": {"n": 3}}, recipe={"seed": 1})
    write_model(tmp_path / "new" / MODEL, model.state_dict(), about)
    again, said = read_model(tmp_path / "new" / MODEL)
    assert not any(module.training for module in again.modules())
    assert torch.equal(again(x), model.eval()(x))
    assert (said.arch, said.classes, said.names) == (model.arch, ("a", "b", "c"), names)
    assert (said.preprocessing, said.metrics, said.recipe) == (GRAY, {"valid": {"n": 3}}, {"seed": 1})
    assert said.versions["linnaeus"] == linnaeus.__version__
    assert read_header(tmp_path / "new" / MODEL) == said
    assert all(parameter.requires_grad for parameter in again.parameters())  # it can be trained further


def test_reading_imports_neither_the_compiler_of_torch_nor_statistics(tmp_path: Path):
    """A network on the meta device that draws weights or computes imports the compiler, which takes more than a second;
    scipy.stats takes half a second."""
    path = write_tiny_model(tmp_path / "m.safetensors", create("mini_resnet", 3, 1, head_stages=["block2", "block3"]))
    code = f"""
import sys
from pathlib import Path
from linnaeus.modelfile.safetensors import read_model
from linnaeus.models.receptive_field import receptive_field_centers
network, _ = read_model(Path({str(path)!r}))
receptive_field_centers(network, 28, 28)  # of a heat map
assert not {{"torch._dynamo", "sympy", "scipy.stats"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_reading_draws_no_random_number(tmp_path: Path):
    path = write_tiny_model(tmp_path / MODEL)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    read_model(path)
    assert torch.equal(torch.rand(3), expected)


def test_auxiliary_heads_are_not_stored(tmp_path: Path):
    model = create("inception_v1", 3, 1, aux=True).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    arch = {**model.arch, "arguments": {**model.arch["arguments"], "aux": False}}
    write_model(tmp_path / MODEL, model.state_dict(), ModelFile(arch, ("a", "b", "c"), ("a", "b", "c"), GRAY))
    again, _ = read_model(tmp_path / MODEL)
    assert not any(name.startswith("aux") for name in again.state_dict())
    x = torch.randn(1, 1, 64, 64)
    assert torch.equal(again(x), model.eval()(x))


def test_the_file_is_plain_safetensors(whole: bytes):
    tensors = safetensors.torch.load(whole)
    assert tensors.keys() == mini().state_dict().keys()


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.1, 0.5, 0.999])
def test_a_file_cut_short_is_refused(share: float, whole: bytes, tmp_path: Path):
    line = refused(tmp_path / "m.safetensors", whole[: int(len(whole) * share)])
    assert "cut short, or not a model file" in line


@pytest.mark.parametrize("at", [-1, -3000, 0.5])
def test_a_byte_flipped_in_the_weights_is_found(at: float, whole: bytes, tmp_path: Path):
    header, tensors = parts(whole)
    altered = bytearray(tensors)
    altered[int(at) if at < 0 else int(len(tensors) * at)] ^= 1
    assert "do not match their checksum" in refused(tmp_path / "m.safetensors", joined(header, bytes(altered)))


def test_weights_under_exchanged_names_are_found(whole: bytes, tmp_path: Path):
    """The same bytes under the names of two tensors of one shape: the checksum covers names too."""
    header, tensors = parts(whole)
    a, b = "block2.block.conv1.bias", "block3.block.conv1.bias"
    header[a], header[b] = header[b], header[a]
    assert "checksum" in refused(tmp_path / "m.safetensors", joined(header, tensors))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "model file format 2, and this version reads format 1"),
        ({"format": None}, "format None"),
        ({"classes": None}, "classes: Field required"),
        ({"classes": 5}, "classes = 5: Input should be a valid list"),
        ({"classes": ["a", "b"]}, "2 classes and 3 class names for 3 outputs"),
        ({"names": ["a"]}, "3 classes and 1 class names"),
        ({"arch": None}, "arch: Field required"),
        ({"arch": []}, "arch: Input should be"),
        ({"arch": {"name": "mini_resnet", "classes": 3}}, "arch.channels: Field required"),
        ({"arch": {"name": "mini_resnet", "classes": 3, "channels": 3}}, "for a network of 3"),
        ({"arch": {"name": "resnet20", "classes": 3, "channels": 1}}, "do not fit the network resnet20"),
        ({"arch": {"name": "os.system", "classes": 3, "channels": 1}}, "unknown model 'os.system'"),
        ({"arch": {"name": "mini_resnet", "classes": 3, "channels": 1, "arguments": {"widths": "ab"}}}, "widths"),
        ({"arch": {"name": "mini_resnet", "classes": 3, "channels": 1, "arguments": {"x": 1}}}, "no argument 'x'"),
        ({"arch": {"name": "resnet20", "classes": 3, "channels": 1, "arguments": {"name": "resnet110"}}}, "resnet20"),
        ({"arch": {"name": "custom", "classes": 3, "channels": 1}}, "your own code (None)"),
        ({"preprocessing": {}}, "preprocessing.resize: Field required"),
        ({"preprocessing": "crop"}, "preprocessing = 'crop'"),
        ({"preprocessing": {**GRAY.to_dict(), "resize": "28"}}, "preprocessing.resize = '28'"),
        ({"preprocessing": {**GRAY.to_dict(), "size": 10**9, "resize": 10**9}}, "less than or equal to 8192"),
        ({"preprocessing": {**GRAY.to_dict(), "fit": "stretch"}}, "preprocessing.fit = 'stretch'"),
        ({"preprocessing": {**GRAY.to_dict(), "mean": [0.1, 0.2]}}, "1 channel but mean"),
        ({"preprocessing": {**GRAY.to_dict(), "std": [0.0]}}, "preprocessing.std.0 = 0.0"),
        ({"preprocessing": {**GRAY.to_dict(), "std": [float("nan")]}}, "finite number"),
        ({"preprocessing": {**GRAY.to_dict(), "std": [1e-45]}}, "preprocessing.std.0 = 1e-45"),
        ({"preprocessing": {**GRAY.to_dict(), "mean": [1e39]}}, "preprocessing.mean.0 = 1e+39"),
        ({"preprocessing": {**GRAY.to_dict(), "channels": True}}, "preprocessing.channels = True"),
        ({"preprocessing": {**GRAY.to_dict(), "size": 1}}, "does not take images of 1 pixels"),
        ({"preprocessing": {**GRAY.to_dict(), "resize": 27}}, "size 28 is larger than resize 27"),
        ({"preprocessing": {**GRAY.to_dict(), "levels": [0, 4095]}}, "upgrade linnaeus"),
        ({"abstains": True, "versions": {"linnaeus": "9.1"}}, "written by version 9.1); upgrade linnaeus"),
        ({"classes": ["a", "b", "a"]}, "class 'a' occurs twice"),
        ({"classes": ["a", "", "c"]}, "classes.1 = ''"),
        ({"names": ["a", 5, "c"]}, "names.1 = 5"),
        ({"calibration": {**CALIBRATION, "temperature": 1e-320}}, "temperature 1e-320"),
        ({"calibration": {**CALIBRATION, "temperature": 1e9}}, "temperature 1000000000.0"),
        ({"calibration": {**CALIBRATION, "curve": [[0.6, 200, 3], [0.0, 180, 12]]}}, "out of range"),
        ({"calibration": {**CALIBRATION, "curve": []}}, "out of range"),
        ({"calibration": {}}, "calibration is incomplete"),
        ({"metrics": {"valid": {"n": 9, "correct": 3, "accuracy": 0.99}}}, "accuracy 0.99 with 3 correct of 9"),
        ({"metrics": {"valid": {"accuracy": "high"}}}, "metrics.valid.accuracy = 'high'"),
        ({"data": {"counts": {"train": -1}}}, "data.counts.train = -1"),
        ({"recipe": {"data": {"split": {"seed": "x"}}}}, "recipe.data.split.seed = 'x'"),
        ({"versions": {"linnaeus": 1}}, "versions.linnaeus = 1"),
        ({"tensors": "0" * 64}, "the weights do not match their checksum"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_description_is_refused(change: dict, message: str, whole: bytes, tmp_path: Path):
    assert message in refused(tmp_path / "m.safetensors", changed(whole, **change))


def test_entries_that_change_no_answer_may_be_added(whole: bytes, tmp_path: Path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(changed(whole, data={"hashes": "abc"}, metrics={"valid": {"n": 3, "auc": 0.5}}))
    about = read_model(path)[1]
    assert (about.data, about.metrics) == ({"hashes": "abc"}, {"valid": {"n": 3, "auc": 0.5}})


def test_every_entry_is_covered_by_the_checksum(whole: bytes, tmp_path: Path):
    """Another meaning of any entry is noticed, also without the weights; other spellings of the same one are not."""
    header, tensors = parts(whole)
    about = json.loads(header["__metadata__"]["linnaeus"])
    path = tmp_path / "m.safetensors"
    for key in about.keys() - {"sha256", "format"}:
        values: list[Any] = [{}, "x", [about["names"]]]
        for value in values:
            if about[key] == value:
                continue
            header["__metadata__"]["linnaeus"] = json.dumps({**about, key: value})
            line = refused(path, joined(header, tensors))
            assert "does not match its checksum" in line or key == "tensors"
            with pytest.raises(UserError):
                read_header(path)
    without = {key: value for key, value in about.items() if key != "tensors"}  # as an earlier version wrote it
    header["__metadata__"]["linnaeus"] = json.dumps(without)
    assert "the weights do not match their checksum" in refused(path, joined(header, tensors))
    header["__metadata__"]["linnaeus"] = json.dumps(about, indent=3, sort_keys=True)
    path.write_bytes(joined(header, tensors))
    assert read_model(path)[1] == read_header(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    model = mini()
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = float("nan")
    path = write_tiny_model(tmp_path / MODEL, model)
    assert "not finite" in refused(path, path.read_bytes())


def test_an_answer_that_is_not_finite_is_no_answer(tmp_path: Path):
    """Finite weights whose product is infinite: otherwise the first class would be a certain answer."""
    model = mini()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e30)
    path = write_tiny_model(tmp_path / MODEL, model)
    with pytest.raises(UserError, match="not finite"):
        linnaeus.load(path).predict(np.full((28, 28), 200, np.uint8))


def test_a_network_larger_than_its_weights_takes_no_memory(whole: bytes, tmp_path: Path):
    """A header of a few bytes must not make anybody allocate 40 GB."""
    widths = {"widths": [1_000_000, 1_000, 10]}
    arch = {"name": "mini_resnet", "classes": 3, "channels": 1, "arguments": widths}
    line = refused(tmp_path / "m.safetensors", changed(whole, arch=arch))
    assert "the file has (6, 1, 5, 5) torch.float32, the network (1000000, 1, 5, 5)" in line


def test_weights_of_another_type_are_refused(tmp_path: Path):
    model = mini().half()
    write_model(tmp_path / MODEL, model.state_dict(), ModelFile(model.arch, tuple("abc"), tuple("abc"), GRAY))
    with pytest.raises(UserError, match=r"torch\.float16, the network .*torch\.float32"):
        read_model(tmp_path / MODEL)


def test_what_is_no_model_file_is_refused(whole: bytes, tmp_path: Path):
    path = tmp_path / "m.safetensors"
    assert "not a model file" in refused(path, b"%PDF-1.7" + bytes(2000))
    torch.save({"a": torch.zeros(3)}, path)
    assert "not a model file" in refused(path, path.read_bytes())
    assert "not a model that linnaeus wrote" in refused(path, safetensors.torch.save({"a": torch.zeros(3)}))
    header, tensors = parts(whole)
    for text in ("{", "[]", "3", "[" * 100_000, '{"format": 1}'):
        header["__metadata__"]["linnaeus"] = text
        refused(path, joined(header, tensors))


def test_a_missing_file_is_reported(tmp_path: Path):
    with pytest.raises(UserError, match=r"gone\.safetensors: no such model file"):
        read_model(tmp_path / "gone.safetensors")
    with pytest.raises(UserError, match=r"holds no model\.safetensors"):
        model_path(tmp_path)
    write_tiny_model(tmp_path / MODEL)
    assert model_path(tmp_path) == tmp_path / MODEL


def test_a_custom_network_needs_its_code_again(tmp_path: Path):
    def build() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))

    model = wrap(build(), 3, 1, source="net.py:build")
    write_model(tmp_path / MODEL, model.state_dict(), ModelFile(model.arch, tuple("abc"), tuple("abc"), GRAY))
    with pytest.raises(UserError, match=r"your own code \(net\.py:build\).*--model FILE\.py:FUNCTION"):
        read_model(tmp_path / MODEL)
    x = torch.randn(2, 1, 28, 28)
    again, _ = read_model(tmp_path / MODEL, wrap(build(), 3, 1))
    assert torch.equal(again(x), model(x))
    with pytest.raises(UserError, match="do not fit the network custom"):
        read_model(
            tmp_path / MODEL, wrap(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3, bias=False)), 3)
        )


def test_the_code_that_a_file_names_is_not_run(whole: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\ndef build(n): raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    for name in ("evil.py:build", "custom"):
        arch = {"name": name, "classes": 3, "channels": 1, "arguments": {"source": "evil.py:build"}}
        refused(tmp_path / "m.safetensors", changed(whole, arch=arch))
    assert not (tmp_path / "ran").exists()


def test_a_failed_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = write_tiny_model(tmp_path / MODEL)
    before = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise safetensors.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("linnaeus.modelfile.safetensors.save_file", fail)
    with pytest.raises(JobError, match=r"model\.safetensors: no space left on the disk"):
        write_tiny_model(path, mini(seed=1))
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [MODEL]


@st.composite
def damaged(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Bytes to write over a file at places; most of them in its header."""
    places = st.one_of(st.integers(0, 3000), st.integers(0, 60_000))
    return [(draw(places), draw(st.binary(min_size=1, max_size=12))) for _ in range(draw(st.integers(1, 4)))]


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_or_refuse(path: Path, raw: bytes) -> None:
    """Reading raises nothing but a UserError of one line."""
    path.write_bytes(raw)
    try:
        read_model(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - other outcomes are fine


@FUZZ
@given(damage=damaged())
def test_damage_anywhere_is_refused_or_harmless(damage: list[tuple[int, bytes]], whole: bytes, folder: Path):
    raw = bytearray(whole)
    for place, piece in damage:
        raw[place : place + len(piece)] = piece
    read_or_refuse(folder / "damaged.safetensors", bytes(raw))


@FUZZ
@given(raw=st.binary(max_size=300))
def test_any_bytes_are_refused(raw: bytes, folder: Path):
    path = folder / "any.safetensors"
    path.write_bytes(raw)
    with pytest.raises(UserError):
        read_model(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
ENTRIES = (
    "arch",
    "classes",
    "names",
    "preprocessing",
    "calibration",
    "metrics",
    "data",
    "recipe",
    "versions",
    "sha256",
)
INSIDE = ("name", "classes", "channels", "arguments", "resize", "size", "fit", "interpolation", "mean", "std")


@FUZZ
@given(entry=st.sampled_from(ENTRIES), inside=st.sampled_from(INSIDE), value=JSON, deep=st.booleans())
def test_any_description_is_refused_or_harmless(
    entry: str, inside: str, value: Any, deep: bool, whole: bytes, folder: Path
):
    header, tensors = parts(whole)
    about = json.loads(header["__metadata__"]["linnaeus"])
    if deep:
        for part in ("arch", "preprocessing"):
            if inside in about[part]:
                about[part][inside] = value
    else:
        about[entry] = value
    header["__metadata__"]["linnaeus"] = json.dumps(about)
    read_or_refuse(folder / "described.safetensors", joined(header, tensors))


def test_a_mutated_file_is_refused_or_answers_the_same():
    """A little of what `benchmarks/mutations.py` does for long."""
    script = Path(__file__).parents[2] / "benchmarks" / "mutations.py"
    done = subprocess.run([sys.executable, script, "--count", "400"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 mutations" in done.stdout
