"""Graphs of ONNX as frozen backbones: layouts, batches, outputs, model files, export, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from linnaeus.errors import UserError
from linnaeus.export.compose import composed
from linnaeus.modelfile.safetensors import ModelFile, read_model, write_model
from linnaeus.models import create
from linnaeus.models.backbones import onnx_features
from linnaeus.models.executors import FrozenPart, choose_executor
from linnaeus.models.onnx_graph import inference_session
from linnaeus.models.weights.loading import load_weights
from linnaeus.preprocess import Preprocessing
from linnaeus.training.optim import training_stages

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

FEATURES = 5


def weights(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_graph(
    path: Path,
    *,
    shape: tuple[Any, ...] = ("n", 3, 16, 16),
    pooled: bool = True,
    kind: int = 1,
    opset: int = 17,
    outputs: tuple[str, ...] = ("features",),
    inputs: tuple[str, ...] = ("images",),
) -> Path:
    """A convolution, and its average over the map if `pooled`, for images in the layout of `shape`."""
    helper, nodes = onnx.helper, []
    x = inputs[0]
    if shape[3] == 3:
        nodes.append(helper.make_node("Transpose", [x], ["channels_first"], perm=[0, 3, 1, 2]))
        x = "channels_first"
    nodes.append(helper.make_node("Conv", [x, "kernel"], ["map"], kernel_shape=[4, 4], strides=[4, 4]))
    last = ["GlobalAveragePool", "Flatten"] if pooled else ["Identity"]
    found = "map"
    for i, op in enumerate(last):
        name = outputs[0] if i == len(last) - 1 else "pooled"
        nodes.append(helper.make_node(op, [found], [name]))
        found = name
    kernel = weights((FEATURES, 3, 4, 4)).astype(np.float16 if kind == 10 else np.float32)
    graph = helper.make_graph(
        nodes,
        "backbone",
        [helper.make_tensor_value_info(name, kind, list(shape)) for name in inputs],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def expected(x: torch.Tensor) -> torch.Tensor:
    """The map that the graph computes."""
    return torch.nn.functional.conv2d(x, torch.from_numpy(weights((FEATURES, 3, 4, 4))), stride=4)


def images(n: int = 3, channels: int = 3) -> torch.Tensor:
    return torch.randn(n, channels, 16, 16, generator=torch.Generator().manual_seed(0))


def network(file: Path, classes: int = 2, channels: int = 3, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return create(f"onnx/{file}", classes, channels, **arguments).eval()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shape": (1, 3, 16, 16)},
        {"shape": (2, 3, 16, 16)},
        {"shape": ("n", 3, "h", "w")},
        {"shape": ("n", 16, 16, 3)},
        {"shape": ("n", None, None, None)},
        {"kind": 10},
        {"pooled": False},
    ],
)
def test_features(options: dict[str, Any], tmp_path: Path):
    """Any batch through graphs of a fixed batch, of another layout, of half precision, and with maps as outputs."""
    model = network(write_graph(tmp_path / "net.onnx", **options))
    tolerance = 2e-2 if "kind" in options else 1e-5
    with torch.inference_mode():
        for n in (1, 3):
            x = images(n)
            found = FrozenPart(model, "head")(x)
            torch.testing.assert_close(found, expected(x).mean((2, 3)), atol=tolerance, rtol=tolerance)
            torch.testing.assert_close(model(x), model.fc(found))
    assert model.stages == ("body", "head")
    assert model.head_input == FEATURES


def test_pooling_and_outputs_in_the_middle(tmp_path: Path):
    file = write_graph(tmp_path / "net.onnx")
    x = images()
    with torch.inference_mode():
        flat = network(file, output="map", pool="flatten")
        torch.testing.assert_close(flat.pool(flat.run(x, stop="head")), expected(x).flatten(1), atol=1e-5, rtol=1e-5)
        assert flat.head_input == FEATURES * 16
        mean = network(file, output="map")
        torch.testing.assert_close(mean.pool(mean.run(x, stop="head")), expected(x).mean((2, 3)), atol=1e-5, rtol=1e-5)
        assert mean.as_map("body", mean.run(x, stop="head")).shape == (3, FEATURES, 4, 4)


def test_gray_images_go_into_all_channels(tmp_path: Path):
    model = network(write_graph(tmp_path / "net.onnx"), channels=1)
    x = images(channels=1)
    with torch.inference_mode():
        found = model.pool(model.run(x, stop="head"))
        torch.testing.assert_close(found, expected(x.repeat(1, 3, 1, 1)).mean((2, 3)), atol=1e-5, rtol=1e-5)


def test_preprocessing_by_arguments_or_imagenets(tmp_path: Path):
    name = f"onnx/{write_graph(tmp_path / 'net.onnx')}"
    loaded = load_weights(name, "pretrained", classes=2)
    assert loaded.normalization["mean"] == (0.485, 0.456, 0.406)
    assert loaded.normalization["size"] == 16
    assert any("assuming ImageNet's; set arguments.normalize" in note for note in loaded.notes)
    half = {"normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}
    loaded = load_weights(name, "imagenet", classes=2, arguments=half)
    assert loaded.normalization["mean"] == (0.5, 0.5, 0.5)
    assert not any("assuming" in note for note in loaded.notes)


def test_a_model_file_carries_the_graph(tmp_path: Path):
    file = write_graph(tmp_path / "net.onnx")
    model = network(file)
    about = ModelFile(model.arch, ("a", "b"), ("a", "b"), Preprocessing(16, 16))
    write_model(tmp_path / "model.safetensors", model.state_dict(), about)
    file.unlink()
    again, about = read_model(tmp_path / "model.safetensors")
    assert about.arch["name"] == "onnx/net.onnx", "without the folders of whoever trained it"
    assert "onnxruntime" in about.versions
    x = images()
    with torch.inference_mode():
        torch.testing.assert_close(again(x), model(x))
        torch.testing.assert_close(copy.deepcopy(again)(x), model(x))


def test_weights_in_files_beside_the_graph(tmp_path: Path):
    file = write_graph(tmp_path / "net.onnx")
    model = onnx.load(file)
    onnx.save_model(model, file, save_as_external_data=True, location="net.data", size_threshold=0)
    assert (tmp_path / "net.data").is_file()
    x = images()
    with torch.inference_mode():
        found = FrozenPart(network(file), "head")(x)
        torch.testing.assert_close(found, expected(x).mean((2, 3)), atol=1e-5, rtol=1e-5)
    (tmp_path / "net.data").rename(tmp_path / "moved")
    file.touch()
    refused(lambda: network(file), r"keeps weights in net\.data, which is not beside it")


def test_it_runs_as_a_frozen_part_and_trains_nothing(tmp_path: Path):
    model = network(write_graph(tmp_path / "net.onnx"))
    executor = choose_executor(FrozenPart(model, "head"), images(), 100)
    torch.testing.assert_close(executor(images()), expected(images()).mean((2, 3)), atol=1e-5, rtol=1e-5)
    assert training_stages(model, ["head"]) == ("head",)
    for train in (["all"], ["body"], ["body", "head"]):
        with pytest.raises(UserError, match=r"cannot be trained; use train = \['head'\]"):
            training_stages(model, train)
    refused(lambda: model(images().requires_grad_()), "has no gradients; use --method occlusion")


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {}),
        ({"shape": (1, 3, 16, 16)}, {}),
        ({"shape": ("n", 16, 16, 3)}, {}),
        ({"pooled": False}, {"pool": "flatten"}),
        ({"pooled": False, "opset": 13}, {}),
        ({"kind": 10}, {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_export_joins_graph_and_head(options: Any, arguments: Any, channels: int, tmp_path: Path):
    model = network(write_graph(tmp_path / "net.onnx", **options), channels=channels, **arguments)
    x = images(4, channels)
    session = inference_session(composed(model, x.numpy()))
    with torch.inference_mode():
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(found, model(x), atol=1e-4, rtol=1e-4)


def refused(call: Callable[[], Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_what_is_refused_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def graph(**options: Any) -> Path:
        return write_graph(tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx", **options)

    good = graph()
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(good.read_bytes()[:100])
    tokens = tmp_path / "tokens.onnx"
    model = onnx.load(graph(pooled=False, outputs=("map2",)))
    nodes = [
        onnx.helper.make_node("Reshape", ["map2", "to"], ["flat"]),
        onnx.helper.make_node("Transpose", ["flat"], ["tokens"], perm=[0, 2, 1]),
    ]
    model.graph.node.extend(nodes)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0, FEATURES, 16]), "to"))
    model.graph.output[0].name = "tokens"
    onnx.save(model, tokens)
    with torch.inference_mode():
        by_token = network(tokens, pool="cls+mean")
        assert by_token(images()).shape == (3, 2)
        assert by_token.head_input == 2 * FEATURES
    for call, reason in (
        (lambda: network(tmp_path / "gone.onnx"), r"gone\.onnx: there is no such file"),
        (lambda: network(damaged), "not an ONNX file, or damaged"),
        (
            lambda: network(graph(outputs=("features", "map"))),
            "has 2 outputs; choose one with arguments = .*features, map",
        ),
        (lambda: network(good, output="mapp"), r"has no output 'mapp' \(did you mean map\?\)"),
        (lambda: network(graph(inputs=("images", "text"))), r"takes 2 inputs \(images, text\)"),
        (lambda: network(graph(kind=2)), "takes uint8 of 4 dimensions, not normalized float images"),
        (lambda: network(graph(shape=("n", 7, 16, 16))), "not square images of 1 or 3 channels"),
        (lambda: network(graph(shape=("n", 3, 16, 32))), "not square images of 1 or 3 channels"),
        (lambda: network(tokens), 'choose how they become features with arguments = { pool = "cls" }'),
        (lambda: network(good, pool="mean"), "pool = 'mean' does not fit output 'features'"),
        (lambda: network(good, pool="max"), "pool = 'max' is unknown"),
        (lambda: network(good, normalize={"mean": [0.5]}), r"normalize = .*: write { mean = \[0\.5"),
        (lambda: network(good, output="kernel"), "has no output 'kernel'"),
        (lambda: load_weights(f"onnx/{good}", "some.safetensors", classes=2), "contains its weights"),
    ):
        refused(call, reason)
    with pytest.raises(ValueError, match="the graph takes images of 16 pixels"):
        network(good)(torch.zeros(1, 3, 32, 32))
    monkeypatch.setattr(onnx_features, "MOST_BYTES", 100)
    good.touch()
    refused(lambda: network(good), "which the model file would have to hold; the limit is")


def test_a_graph_in_a_model_file_reads_no_other_files(tmp_path: Path):
    """A model file may come from anybody."""
    secret = tmp_path / "secret"
    secret.write_bytes(weights((FEATURES, 3, 4, 4)).tobytes())
    model = onnx.load(write_graph(tmp_path / "net.onnx"))
    tensor = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(tensor, "secret")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    with pytest.raises(UserError, match="refers to other files"):
        onnx_features.session_of(model.SerializeToString())
    inside = tmp_path / "inside"
    inside.mkdir()
    next(entry for entry in tensor.external_data if entry.key == "location").value = "../secret"
    (inside / "net.onnx").write_bytes(model.SerializeToString())
    refused(lambda: network(inside / "net.onnx"), "outside its folder|is damaged")
