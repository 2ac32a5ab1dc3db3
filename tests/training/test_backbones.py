"""Networks of timm, of the hub and of ONNX: training, resumption, processes, sweeps, scikit-learn, neighbors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import QUIET, check_same, contents, dying, in_child, undrawn
from reference import torchvision
from safetensors.torch import save_file
from several import several
from tiny import write_images, write_label_sets

import linnaeus
from linnaeus.check.data_check import check
from linnaeus.console import Console
from linnaeus.errors import UserError
from linnaeus.explain.neighbors import gallery
from linnaeus.export.onnx import export_onnx
from linnaeus.models.weights.store import import_file
from linnaeus.training.checkpoint import Checkpoints
from linnaeus.training.setup.request import Request
from linnaeus.training.setup.resolve import resolve_recipe

pytestmark = [pytest.mark.long, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that fork")]

FINE_TUNED: dict[str, Any] = {
    "data.size": 32,
    "data.resize": 32,
    "data.split.valid": 0.25,
    "phase": [{"train": ["blocks.4", "head"], "epochs": 2, "lr": 1e-3, "batch": 8}],
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision()
    undrawn(monkeypatch)
    monkeypatch.setenv("LINNAEUS_OFFLINE", "1")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def hub_network(folder: Path) -> str:
    """A network of transformers whose weights are on this machine."""
    transformers = pytest.importorskip("transformers", reason="pip install transformers")
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 5, "num_attention_heads": 2, "mlp_ratio": 2}
    config = transformers.Dinov2Config(**settings, image_size=32, patch_size=8)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    import_file("hf/somebody/tiny", folder)
    return "hf/somebody/tiny"


def timm_network(folder: Path, name: str = "test_vit") -> str:
    """A network of timm whose weights are on this machine."""
    timm = pytest.importorskip("timm", reason="pip install --no-deps timm")
    torch.manual_seed(0)
    tensors = {key: tensor.contiguous() for key, tensor in timm.create_model(name).state_dict().items()}
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    import_file(f"timm/{name}", folder)
    return f"timm/{name}"


def onnx_network(folder: Path) -> str:
    """A graph of ONNX that averages a convolution."""
    onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
    helper, kernel = onnx.helper, np.random.default_rng(0).standard_normal((6, 3, 4, 4)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["images", "kernel"], ["map"], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
    ]
    ends = (
        [helper.make_tensor_value_info("images", 1, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("features", 1, ["n", 6])],
    )
    graph = helper.make_graph(nodes, "net", *ends, [onnx.numpy_helper.from_array(kernel, "kernel")])
    folder.mkdir()
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "net.onnx")
    return f"onnx/{folder / 'net.onnx'}"


NETWORKS = {"hf": hub_network, "timm": timm_network, "onnx": onnx_network}


def train(source: Path, out: Path, model: str, **more: Any) -> Any:
    return linnaeus.train(source, out=out, model=model, device="cpu", console=QUIET, seed=0, **more)


def check_resumed(source: Path, folder: Path, model: str, **more: Any) -> None:
    """A run killed at its third checkpoint ends, when it is resumed, as the run `whole`."""

    def killed() -> None:
        dying(Checkpoints, "write", 3, after=True)
        train(source, folder / "killed", model, **more)

    assert in_child(killed) == -9
    train(source, folder / "killed", model, resume=True, **more)
    check_same(folder / "killed", folder / "whole")


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_linear_head_and_what_follows(kind: str, source: Path, tmp_path: Path):
    """Alone and in two processes the same model; its neighbors, predictions and the embeddings of check."""
    model = NETWORKS[kind](tmp_path / "net")
    settings = {"data.split.valid": 0.25}
    train(source, tmp_path / "one", model, settings=settings)
    several(2, lambda rank: bool(train(source, tmp_path / "two", model, settings=settings)))
    found, expected = (contents(tmp_path / run)[0] for run in ("two", "one"))
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    classifier = linnaeus.load(tmp_path / "one")
    images = sorted((source / "1").iterdir())[:3]
    predictions = classifier.predict(images)
    assert [len(found.probabilities) for found in predictions] == [3, 3, 3]  # type: ignore[arg-type]
    similar = gallery(classifier, source, Console(quiet=True))
    assert len(similar.nearest(next(iter(classifier.predict(images[:1]))), 2)) == 2
    assert not any("labels were not checked" in note for note in check(source, weights=model).notes)


def test_fine_tuning_resumed_after_a_kill(source: Path, tmp_path: Path):
    model = hub_network(tmp_path / "net")
    more = {"weights": "pretrained", "settings": FINE_TUNED, "checkpoint_every": "2steps"}
    train(source, tmp_path / "whole", model, recipe="photos", **more)

    check_resumed(source, tmp_path, model, recipe="photos", **more)


def test_sweep_and_scikit_learn(source: Path, tmp_path: Path):
    pytest.importorskip("optuna")
    from linnaeus.sklearn import ImageClassifier

    model = hub_network(tmp_path / "net")
    found = linnaeus.sweep(
        source,
        "photos",
        {"model.arguments.pool": {"choices": ["cls", "mean"]}},
        trials=2,
        out=tmp_path / "sweep",
        device="cpu",
        console=QUIET,
        settings={
            "model.name": model,
            "model.head": None,
            "model.weights": "pretrained",
            "data.size": 32,
            "data.resize": 40,
        },
    )
    assert len(found.trials) == 2
    estimator = ImageClassifier(model=model, settings={"data.split.valid": 0.25})
    files = [str(path) for path in sorted(source.rglob("*.png"))]
    labels = [Path(path).parent.name for path in files]
    assert estimator.fit(files, labels).predict(files[:4]).shape == (4,)


WINDOWS: dict[str, Any] = {
    "model.head": {"windows": 2},
    "data.size": 64,
    "data.resize": 64,
    "data.split.valid": 0.25,
    "phase": [{"train": ["head"], "head": "auto", "epochs": 1, "batch": 8, "lr": 1e-3}],
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_windows_need_a_feature_map(kind: str, tmp_path: Path):
    """A vision transformer has tokens, and of the other libraries only the pooled features are used."""
    model, source = NETWORKS[kind](tmp_path / "net"), write_label_sets(tmp_path / "images")
    with pytest.raises(UserError, match=r"model\.head\.windows.*; leave it out$"):
        train(source, tmp_path / "run", model, settings=WINDOWS)
    assert not (tmp_path / "run").exists()


def test_windows_on_a_feature_map_of_timm(tmp_path: Path):
    """In two processes the same head as in one; the ONNX file and the run resumed after a kill agree with it."""
    model, source = timm_network(tmp_path / "net", "test_efficientnet"), write_label_sets(tmp_path / "images")
    train(source, tmp_path / "one", model, settings=WINDOWS)
    several(2, lambda rank: bool(train(source, tmp_path / "two", model, settings=WINDOWS)))
    found, expected = (contents(tmp_path / run)[0] for run in ("two", "one"))
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    classifier = linnaeus.load(tmp_path / "one", device="cpu")
    path, _ = export_onnx(
        classifier, "onnx", data=str(source), out=tmp_path / "m.onnx", agree=0.99, console=Console(silent=True)
    )
    assert path is not None
    image = tmp_path / "images" / "1.png"
    exported = linnaeus.load(path).predict(image).probabilities
    assert exported == pytest.approx(classifier.predict(image).probabilities, abs=1e-5)

    trained = {**WINDOWS, "phase": [{"train": ["head"], "epochs": 2, "batch": 8, "lr": 1e-2}]}
    more = {"settings": trained, "checkpoint_every": "2steps"}
    train(source, tmp_path / "whole", model, **more)
    check_resumed(source, tmp_path, model, **more)


def test_set_of_the_name_is_the_same_as_the_option_model(source: Path, tmp_path: Path):
    """Which is the only way for a sweep: the head of the recipe's network means nothing to another one."""
    name = timm_network(tmp_path / "weights")
    by_option, _ = resolve_recipe(Request(source, "photos", model=name), QUIET)
    by_key, _ = resolve_recipe(Request(source, "photos", settings={"model.name": name}), QUIET)
    assert by_key == by_option
    assert by_key.model.head is None
