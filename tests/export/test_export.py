"""Exporting: a file is written only if it answers like the original."""

from __future__ import annotations

import io
import itertools
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_torchvision import CALIBRATION
from tiny import GRAY, SIDE, draw, mini, write_images

from linnaeus.console import Console
from linnaeus.errors import JobError, UserError
from linnaeus.export import gate, int8, onnx_file
from linnaeus.export import onnx as export_module
from linnaeus.export.gate_table import render
from linnaeus.export.int8 import BATCH, network_input, observe
from linnaeus.export.onnx import GateResult, export_onnx
from linnaeus.export.sample_images import collect_samples, split_calibration
from linnaeus.inference.classifier import Classifier, load
from linnaeus.inference.inputs import expand
from linnaeus.metrics.ood import Thresholds
from linnaeus.metrics.outputs import Outputs
from linnaeus.modelfile.exports import EXPORTS, fastest
from linnaeus.modelfile.onnx import INPUT, LOGITS, PROBABILITIES, file_digest
from linnaeus.modelfile.safetensors import ModelFile, read_header, read_model, write_model
from linnaeus.models import Network, create, wrap
from linnaeus.models.onnx_graph import export_graph
from linnaeus.preprocess import Preprocessing

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

CLASSES = ("0", "1", "2")
QUIET = Console(quiet=True)


def test_an_answer_that_becomes_unsure_is_counted_although_the_class_is_the_same():
    logits = np.log([[0.8, 0.2], [0.8, 0.2], [0.55, 0.45], [0.9, 0.1]])
    rounded = np.log([[0.65, 0.35], [0.8, 0.2], [0.75, 0.25], [0.95, 0.05]])
    labels = np.zeros(4, np.int64)
    found = gate.Comparison.of(Outputs(labels, logits), Outputs(labels, rounded), threshold=0.7)
    assert (found.differing, found.unsure) == (0, 2)


EARLIER = b"\x0a\x06sha256\x12\x40" + b"0" * 64  # the checksum in the metadata of an export


def write_run(folder: Path, network: Network, preprocessing: Preprocessing = GRAY, **more: Any) -> Path:
    """A run folder around a network, calibrated."""
    given: dict[str, Any] = {"calibration": CALIBRATION, "data": {"kind": "folder"}, "recipe": {"name": "t"}} | more
    about = ModelFile(network.arch, CLASSES, tuple(f"name {c}" for c in CLASSES), preprocessing, **given)
    write_model(folder / "model.safetensors", network.state_dict(), about)
    return folder


def with_distinct_outputs(network: Network) -> Network:
    """A network whose answers differ from image to image."""
    torch.manual_seed(1)
    torch.nn.init.normal_(network.get_parameter("fc.weight"), std=0.3)
    return network


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_images(folder / "train", each=8)
    write_images(folder / "valid", each=5, seed=9)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"), with_distinct_outputs(mini()))


GRAPHS: dict[str, bytes] = {}


@pytest.fixture(autouse=True)
def _graphs_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exporter takes seconds; the graph of the same weights is the same."""
    if request.node.get_closest_marker("long") is None:
        monkeypatch.setattr(export_module, "network_graph", graph_once)


def graph_once(classifier: Classifier, squares: torch.Tensor) -> bytes:
    if classifier.about.digest not in GRAPHS:
        GRAPHS[classifier.about.digest] = onnx_file.network_graph(classifier, squares)
    return GRAPHS[classifier.about.digest]


@pytest.fixture(scope="module")
def exported(run: Path, data: Path) -> tuple[Path, GateResult]:
    path, result = export_onnx(load(run, device="cpu"), "onnx", data=str(data), agree=0.99, console=QUIET)
    assert path is not None
    return path, result


def photographs(folder: Path, n: int = 6) -> Path:
    """Class folders of color JPEGs of odd sizes: very wide, very tall, smaller than what a network sees, one pixel."""
    sizes = [(300, 40), (40, 300), (20, 17), (64, 48), (1, 30), (300, 1), (120, 90), (48, 48)]
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for i, (width, height) in enumerate(sizes[:n]):
            small = generator.integers(0, 200, (max(1, height // 8), max(1, width // 8), 3), dtype=np.uint8)
            small[..., label] //= 3
            Image.fromarray(small).resize((width, height)).save(folder / name / f"{i}.jpg", quality=95)
    return folder


def plain(path: Path, image: np.ndarray) -> np.ndarray:
    """Probabilities of ONNX Runtime alone, as another program uses the file."""
    return ort.InferenceSession(str(path)).run([PROBABILITIES], {INPUT: image[None]})[0][0]


def test_the_file_lies_beside_the_model_and_says_what_it_is(exported: tuple[Path, GateResult], run: Path):
    path, result = exported
    assert path == run / "model.onnx"
    session = ort.InferenceSession(str(path))
    assert [(i.name, i.type, i.shape[3]) for i in session.get_inputs()] == [("images", "tensor(uint8)", "channels")]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [
        (PROBABILITIES, ["batch", 3]),
        (LOGITS, ["batch", 3]),
    ]
    output = session.get_modelmeta().custom_metadata_map
    about = read_header(run / "model.safetensors")
    assert json.loads(output["format"]) == 1
    assert json.loads(output["classes"]) == list(CLASSES)
    assert json.loads(output["preprocessing"]) == about.preprocessing.to_dict()
    assert json.loads(output["threshold"]) == 0.75
    assert json.loads(output["calibration"]) == CALIBRATION
    assert output["model_sha256"] == about.digest
    noted = json.loads(output["export"])
    assert noted["tried"] == result.to_dict()["tried"]
    assert noted["tried"][0]["same_pixels"]["n"] == 15
    assert noted["versions"]["linnaeus"]
    assert {o.domain: o.version for o in onnx.load(path).opset_import}[""] == 18


def test_it_predicts_and_evaluates_like_the_model_file(exported: tuple[Path, GateResult], run: Path, data: Path):
    model, export = load(run, device="cpu"), pickle.loads(pickle.dumps(load(exported[0])))
    assert (export.run.kind, export.classes, export.names) == ("onnx", model.classes, model.names)
    assert (export.preprocessing, export.threshold) == (model.preprocessing, model.threshold)
    paths = list(expand([str(data)]))
    for one, other in zip(model.stream(paths), export.stream(paths), strict=True):
        assert other.probabilities == pytest.approx(one.probabilities, abs=1e-5)
        assert (other.index, other.unsure) == (one.index, one.unsure)
    here, there = model.evaluate(data, "valid"), export.evaluate(data, "valid")
    assert (there.n, there.correct) == (here.n, here.correct)
    assert there.loss == pytest.approx(here.loss, abs=1e-5)
    assert len({model.predict(path).index for path in paths}) > 1, "a network with a single answer would prove nothing"


def test_plain_onnx_runtime_gives_the_same_answer_from_raw_pixels(
    exported: tuple[Path, GateResult], run: Path, data: Path
):
    """Whatever it is given: a gray image, the same in color, several at once."""
    model = load(run, device="cpu")
    for path in list(expand([str(data / "valid")]))[::4]:
        pixels = np.asarray(Image.open(path))
        expected = model.predict(path).probabilities
        assert plain(exported[0], pixels[:, :, None]) == pytest.approx(expected, abs=1e-5)
        assert plain(exported[0], np.stack([pixels] * 3, -1)) == pytest.approx(expected, abs=1e-5)
    batch = draw(np.arange(3))[..., None]
    answers = ort.InferenceSession(str(exported[0])).run([PROBABILITIES], {INPUT: batch})[0]
    assert answers.sum(1) == pytest.approx(1)
    assert answers[1] == pytest.approx(plain(exported[0], batch[1]), abs=1e-6)


CASES = [
    ("mini_resnet", {"widths": [6, 8, 12], "head_stages": ["block2", "block3"]}, 3, "crop"),
    *(
        pytest.param(*case, marks=pytest.mark.long)
        for case in (
            ("mini_resnet", {"widths": [6, 8, 12]}, 1, "crop"),
            ("mini_resnet", {"widths": [6, 8, 12]}, 3, "squash"),
            ("resnet20", {}, 3, "pad"),
            ("inception_v1", {}, 3, "crop"),
            ("resnet18", {"stem": "small"}, 1, "pad"),
        )
    ),
]


@pytest.mark.parametrize(("name", "arguments", "channels", "fit"), CASES)
def test_networks_fits_and_channels_on_odd_photographs(
    name: str, arguments: dict, channels: int, fit: str, tmp_path: Path
):
    torch.manual_seed(0)
    network = create(name, 3, channels, **arguments)
    with torch.no_grad():
        network.train()(torch.randn(8, channels, 32, 32))
    p = Preprocessing(37, 32, fit, channels=channels, mean=(0.4,) * channels, std=(0.3,) * channels)
    run = write_run(tmp_path / "run", with_distinct_outputs(network.eval()), p)
    photos = photographs(tmp_path / "photos")
    path, result = export_onnx(load(run, device="cpu"), "onnx", data=str(photos), agree=0.99, console=QUIET)
    assert path is not None, result.attempts[0].refused
    model = load(run, device="cpu")
    for photo in expand([str(photos)]):
        pixels = np.asarray(Image.open(photo))
        assert plain(path, pixels) == pytest.approx(model.predict(photo).probabilities, abs=1e-2)
        assert plain(path, pixels) == pytest.approx(model.predict(pixels).probabilities, abs=1e-2)


@pytest.mark.long
def test_a_custom_network_is_exported_too(tmp_path: Path, data: Path):
    torch.manual_seed(0)
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 3))
    write_run(tmp_path, wrap(own, 3, 1))
    path, _ = export_onnx(load(tmp_path, device="cpu", model=own), "onnx", data=str(data), agree=0.99, console=QUIET)
    assert path is not None
    image = draw(np.array([2]))[0]
    expected = load(tmp_path, device="cpu", model=own).predict(image).probabilities
    assert load(path).predict(image).probabilities == pytest.approx(expected, abs=1e-5)


def test_int8_is_chosen_among_schemes_and_agrees(run: Path, data: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(int8, "SCHEMES", (int8.SCHEMES[0], int8.SCHEMES[-1]))
    out = tmp_path / "small.onnx"
    said = io.StringIO()
    console = Console(stream=said)
    path, result = export_onnx(load(run), "onnx-int8", data=str(data), out=out, agree=0.9, console=console)
    assert path == out
    assert "variant 2 of 3: " in said.getvalue(), "a large network takes minutes for each"
    assert [attempt.scheme for attempt in result.attempts] == [str(scheme) for scheme in int8.SCHEMES]
    assert result.samples.images.split == "valid"
    assert load(path).run.kind == "onnx-int8"
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert "QuantizeLinear" in kinds
    # Of equal schemes the one that changes the probabilities least, because there are fewer than 100 images.
    best = min(result.attempts, key=lambda attempt: (attempt.prepared.differing, attempt.prepared.largest))
    assert result.passed is not None
    assert result.passed.scheme == best.scheme
    rows = [line for line in render(result).splitlines() if "-bit weights" in line and "full size" not in line]
    for row, attempt in zip(rows, result.attempts, strict=True):
        outcome = "written" if attempt is result.passed else "rejected" if attempt.refused else "passed"
        assert row.split()[0] == outcome
    types = {i.data_type for i in onnx.load(path).graph.initializer if len(i.dims) == 4}
    assert types <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT}
    wide = result.passed.scheme == str(int8.SCHEMES[1])
    assert (onnx.TensorProto.UINT8 if wide else onnx.TensorProto.INT8) in types


def test_a_file_that_does_not_agree_is_not_written(run: Path, data: Path, tmp_path: Path, monkeypatch, say):
    """int8 that rounds to nonsense: nothing is written, the table says why, status 1; the old file stays."""
    monkeypatch.setattr(int8, "SCHEMES", int8.SCHEMES[:1])
    monkeypatch.setattr(int8.TensorStatistics, "range", lambda self, how: (0.0, 1e-3))
    out = tmp_path / "m.onnx"
    out.write_bytes(EARLIER)
    output = say("export", run, "--to", "onnx-int8", "--data", data, "--out", out, "--json", tmp_path / "gate.json")
    assert output.status == 1
    assert "min-max, 7-bit weights: agrees on" in output.out
    assert "99.0 % is required" in output.out
    outcomes = [line.split()[0] for line in output.out.splitlines() if "-bit weights" in line]
    assert outcomes == ["rejected", "rejected"]
    assert "no file was written" in output.err
    assert out.read_bytes() == EARLIER
    written = json.loads((tmp_path / "gate.json").read_text())
    assert written["chosen"] is None
    assert "agrees on" in written["tried"][0]["refused"]
    assert [each["scheme"] for each in written["tried"]] == [str(int8.SCHEMES[0]), str(int8.LAST_RESORT)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gate.json", "m.onnx"]


def test_a_float_graph_that_computes_something_else_is_not_written(run: Path, data: Path, tmp_path: Path, monkeypatch):
    """A mean that is off by one level and a wrong temperature are both detected."""
    classifier = load(run, device="cpu")
    original = onnx_file.with_preprocessing

    def shifted(network: bytes, given: Classifier) -> Any:
        model = original(network, given)
        for constant in model.graph.initializer:
            if constant.name.startswith("preprocess") and constant.data_type == onnx.TensorProto.FLOAT:
                constant.raw_data = (np.frombuffer(constant.raw_data, np.float32) + np.float32(0.01)).tobytes()
        return model

    monkeypatch.setattr(onnx_file, "with_preprocessing", shifted)
    path, result = export_onnx(classifier, "onnx", data=str(data), out=tmp_path / "m.onnx", agree=0.99, console=QUIET)
    assert path is None
    assert "on the same pixels" in str(result.attempts[0].refused)
    assert not (tmp_path / "m.onnx").exists()


def test_raw_pixels_have_a_check_of_their_own(tmp_path: Path, monkeypatch):
    """A graph that resizes without antialiasing agrees on prepared pixels, but not on photographs."""
    from linnaeus.export import assemble

    p = Preprocessing(37, 32, "crop", channels=3, mean=(0.4,) * 3, std=(0.05,) * 3)
    torch.manual_seed(0)
    run = write_run(tmp_path / "run", with_distinct_outputs(create("mini_resnet", 3, 3, widths=[6, 8, 12])), p)
    for name in CLASSES:
        (tmp_path / "photos" / name).mkdir(parents=True)
        noise = np.random.default_rng(int(name)).integers(0, 256, (200, 200, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "photos" / name / "noise.png")
    monkeypatch.setitem(assemble.FILTERS, "bilinear", {"mode": "linear"})
    photos = str(tmp_path / "photos")
    path, result = export_onnx(load(run, device="cpu"), "onnx", data=photos, agree=0.99, console=QUIET)
    assert path is None
    assert "at full size" in str(result.attempts[0].refused)
    assert result.attempts[0].prepared.largest < gate.SAME_PIXELS


def test_the_command_prints_the_table_and_the_file(run: Path, data: Path, tmp_path: Path, say):
    out = tmp_path / "m.onnx"
    output = say("export", run, "--to", "onnx", "--data", data, "--out", out)
    assert output.status == 0
    lines = output.out.splitlines()
    assert lines[-1] == str(out)
    assert lines[0].endswith(f"on 15 images, valid of {data}")
    (row,) = [line for line in lines if line.startswith("written")]
    assert "15 of 15" in row
    assert row.endswith("float32")
    unsure = re.search(r"^unsure +(\d+) of 15 images become sure or unsure$", output.out, re.MULTILINE)
    assert unsure is not None
    assert unsure[1] == "0"
    explained = [line.split("  ")[0] for line in lines[lines.index("", 2) :]]
    assert {"same class", "probabilities", "unsure", "speed"} <= set(explained), "every column is explained"
    assert (
        say("predict", out, data / "valid" / "0").out
        == say("predict", run / "model.safetensors", data / "valid" / "0").out
    )


def test_predict_finds_an_export_that_lies_beside_its_model(
    exported: tuple[Path, GateResult], run: Path, tmp_path: Path
):
    """Its agreement, speed and checksums are recorded in the run folder; those of an export elsewhere are not."""
    noted = json.loads((run / EXPORTS).read_text())
    assert list(noted) == ["model.onnx"]
    assert noted["model.onnx"]["sha256"] == file_digest(exported[0])
    assert noted["model.onnx"]["model_sha256"] == read_header(run / "model.safetensors").digest
    assert set(noted["model.onnx"]["speed"]) == {"1", "15"}
    assert fastest(run, "cpu").passed_over == []


def test_the_code_of_the_documentation_page_runs(
    exported: tuple[Path, GateResult], tmp_path: Path, capsys, monkeypatch
):
    """It prints what `linnaeus predict` does, and writes the names and threshold for Node."""
    root = Path(__file__).resolve().parents[2]
    picture = root / "tests" / "golden" / "format1" / "picture.png"
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "photos" / "rose").mkdir(parents=True)
    shutil.copy(exported[0], tmp_path / "runs" / "first" / "model.onnx")
    Image.open(picture).save(tmp_path / "photos" / "rose" / "1.jpg", quality=95)
    blocks = re.findall(r"```python\n(.*?)```", (root / "docs" / "onnx.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for code in blocks:
        exec(compile(code, "docs/onnx.md", "exec"), names)
    name, probability = capsys.readouterr().out.split()[-2:]
    expected = load(exported[0]).predict("photos/rose/1.jpg")
    assert expected.name.endswith(name)
    assert float(probability) == pytest.approx(expected.probability, abs=1e-2)
    assert tuple(json.loads(Path("names.json").read_text())) == expected.names
    assert json.loads(Path("threshold.json").read_text()) == pytest.approx(expected.threshold)
    file = picture.parent / "unknown.onnx"
    metadata = ort.InferenceSession(str(file)).get_modelmeta().custom_metadata_map
    limits = Thresholds(**json.loads(metadata["unknown"])["thresholds"])
    assert limits.distance is not None
    for p, d in itertools.product(np.linspace(0, 1, 11), (None, *np.linspace(0, 2, 9))):
        known = "unsure" if p < json.loads(metadata["threshold"]) else ""
        assert names["verdict"](metadata, p, d) == ("unknown" if limits.is_unknown(d, p) else known)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--to", "onnx"], r"it does not record its training images, .* give --data SOURCE"),
        (["--to", "onnx", "--agree", "0.5"], "--agree 0.5: --to onnx must agree on every image"),
        (["--to", "onnx", "--data", "gone"], "gone"),
        (["--to", "tflite"], "tflite"),
    ],
)
def test_wrong_input_is_one_line(arguments: list[str], reason: str, run: Path, say):
    output = say("export", run, *arguments)
    assert (output.status, output.out) == (2, "")
    assert re.search(reason, output.err)
    assert len(output.err.strip().splitlines()) == 1


def test_missing_packages_are_named(run: Path, monkeypatch):
    monkeypatch.setattr(onnx_file.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else True)
    with pytest.raises(UserError, match=r"--to onnx: needs onnxscript, .* pip install"):
        onnx_file.require("onnx")


def test_a_network_too_large_for_one_file_is_refused_before_the_work(run: Path, monkeypatch):
    monkeypatch.setattr(onnx_file, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match=r"model\.safetensors: .* GB of weights, but an ONNX file holds 2 GB"):
        onnx_file.network_graph(load(run, device="cpu"), torch.zeros(2, 28, 28, 1, dtype=torch.uint8))


def test_a_full_disk_leaves_the_old_file(run: Path, data: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "m.onnx"
    out.write_bytes(EARLIER)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(JobError, match=r"m\.onnx: no space left"):
        export_onnx(load(run, device="cpu"), "onnx", data=str(data), out=out, agree=0.99, console=QUIET)
    assert out.read_bytes() == EARLIER


def test_an_export_finds_the_images_of_its_run(tmp_path: Path, data: Path):
    """By the source in metrics.json; without one, by the paths of split.csv."""
    from linnaeus.export.sample_images import run_source

    run = write_run(tmp_path, mini())
    (run / "metrics.json").write_text(json.dumps({"source": {"path": str(data)}}))
    assert run_source(run / "model.safetensors") == str(data)
    (run / "metrics.json").write_text(json.dumps({"source": {"path": str(tmp_path / "gone")}}))
    (run / "split.csv").write_text("path,label,split\n")
    with pytest.raises(UserError, match=r"no longer in .*gone"):
        run_source(run / "model.safetensors")
    (run / "metrics.json").write_text("{}")
    assert run_source(run / "model.safetensors") == str(run / "split.csv")


def test_int8_is_calibrated_and_compared_on_different_images(tmp_path: Path, data: Path):
    run = write_run(tmp_path / "run", mini()) / "model.safetensors"
    about = read_model(run)[1]
    calibration, compared = split_calibration(collect_samples(about, run, str(data), None), 128)
    assert (calibration.images.split, compared.images.split, len(calibration), len(compared)) == (
        "train",
        "valid",
        24,
        15,
    )
    one = write_images(tmp_path / "one", each=4)  # without splits
    calibration, compared = split_calibration(collect_samples(about, run, str(one), None), 128)
    assert calibration.images is compared.images
    assert sorted([*calibration.positions, *compared.positions]) == list(range(12))


def test_channel_means_of_tokens(tmp_path: Path, data: Path):
    """A tensor of attention has the images on another axis than the first, and the last batch is a smaller one."""

    class Tokens(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(SIDE, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            heads = x.unflatten(2, (2, SIDE // 2)).permute(2, 0, 1, 3, 4).sigmoid()  # (2, N, C, SIDE / 2, SIDE)
            return self.linear(heads.permute(1, 0, 3, 2, 4).flatten(0, 3))

    run = write_run(tmp_path / "run", mini()) / "model.safetensors"
    samples = collect_samples(read_model(run)[1], run, str(data), "valid")
    assert len(samples) % BATCH
    x = torch.from_numpy(network_input(next(samples.squares(len(samples))), samples))
    statistics = observe(export_graph(Tokens().eval(), x), samples, Console(quiet=True))
    (mean,) = (tensor.mean for tensor in statistics.values() if tensor.mean is not None)
    np.testing.assert_allclose(mean, x.sigmoid().mean((0, 1, 2)).numpy(), rtol=1e-5)


def test_an_export_does_not_change_the_network(exported: tuple[Path, GateResult], run: Path):
    """After fusing, export and comparison its weights are the same and can be trained."""
    network = exported[1].reference.run.network  # type: ignore[attr-defined]
    before = read_model(run / "model.safetensors")[0].state_dict()
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_a_network_on_a_gpu_is_exported_from_a_copy_on_the_cpu(run: Path, data: Path, tmp_path: Path):
    """Sample images are on the CPU. The network of the caller stays where it is, and is not used."""
    classifier = load(run, device="cpu")
    original = classifier.network

    def refuse(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        assert module is not original, "expected all tensors to be on the same device"

    original.register_forward_pre_hook(refuse)
    classifier.device = classifier.run.device = torch.device("cuda")
    path, result = export_onnx(classifier, "onnx", data=str(data), out=tmp_path / "a.onnx", agree=0.99, console=QUIET)
    assert path is not None
    assert result.reference.run.device == torch.device("cpu")
    assert classifier.network is original
